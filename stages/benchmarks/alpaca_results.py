"""What `alpaca_eval evaluate` writes: annotations.json, a row an instruction, and leaderboard.csv, a row a model."""

from collections.abc import Iterator
from typing import Any, Final

from stages.benchmarks.judged import Judged, Judgments, Subject, number_in, prompt_key, stated, text_in
from stages.data.text_files import Placed

BENCHMARK: Final = "alpaca-eval"
ANNOTATIONS: Final = frozenset({"instruction", "generator_1", "generator_2", "preference"})
LEADERBOARD: Final = frozenset({"", "win_rate", "standard_error", "avg_length"})
DRAW: Final = 1.5
NO_PREFERENCE: Final = "without a preference"


def read_annotations(rows: Iterator[Placed], source: str) -> list[Judged]:
    """Win rates in percent: of 1, the baseline wins, to 2, the model wins, the mean less 1.

    `glm_preference` is there where the tool could control for length: the win rate predicted at the baseline's length.
    """
    found: dict[Subject, Judgments] = {}
    for where, row in rows:
        judge = row.get("annotator")
        against, model = (text_in(row, name, where) for name in ("generator_1", "generator_2"))
        subject = Subject(BENCHMARK, "", judge if isinstance(judge, str) else "", against, model)
        ours = found.setdefault(subject, Judgments(subject, source))
        prompt, preference = prompt_key(text_in(row, "instruction", where)), _preference(row)
        if preference is None:
            ours.count(NO_PREFERENCE)
            continue
        parts = {"win_rate": (100 * (preference - 1), 1.0)}
        controlled = number_in(row, "glm_preference")
        if controlled is not None:
            parts = {"lc_win_rate": (100 * controlled, 1.0)} | parts
        answer = row.get("output_2")
        if isinstance(answer, str):
            parts["characters"] = (len(answer), 1.0)
        ours.put(prompt, parts, answer if isinstance(answer, str) else None)
    return [each.judged() for each in found.values()]


def _preference(row: dict[str, Any]) -> float | None:
    """From 1 to 2, as `AbsoluteScoringRule` takes it: 0 is how a draw was written once."""
    value = number_in(row, "preference")
    value = DRAW if value == 0 else value
    return value if value is not None and 1 <= value <= 2 else None


def read_leaderboard(rows: Iterator[Placed], source: str) -> list[Judged]:
    """What it says of each model; who judged, and against whom, it does not say."""
    found = []
    for where, row in rows:
        names = {"lc_win_rate": ("length_controlled_winrate", "lc_standard_error")}
        names |= {"win_rate": ("win_rate", "standard_error"), "characters": ("avg_length", "")}
        figures = {name: stated(*(number_in(row, column) for column in both)) for name, both in names.items()}
        there = {name: each for name, each in figures.items() if each is not None}
        found.append(Judged(Subject(BENCHMARK, "", "", "", text_in(row, "", where)), source, [], {}, there, {}, {}))
    return found
