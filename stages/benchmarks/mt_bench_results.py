"""What FastChat's llm_judge and nvidia-mtbench-evaluator write: JUDGE_single.jsonl, JUDGE_pair.jsonl, result.json."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from stages.benchmarks.judged import AGAIN, Judged, Judgments, Parts, Subject, key_in, number_in, stated, text_in
from stages.data.text_files import Placed

BENCHMARK: Final = "mt-bench"
PAIRS: Final = "mt-bench-pairs"
SINGLE: Final = frozenset({"question_id", "model", "judge", "score", "turn"})
PAIR: Final = frozenset({"question_id", "model_1", "model_2", "g1_winner", "g2_winner"})
TOTAL: Final = frozenset({"total", "category", "num_missing", "judge"})
UNREAD: Final = "without a score that could be read (-1)"
ERROR: Final = "with an error of the judge"
TURNS: Final = {1: "first_turn", 2: "second_turn"}


def read_single(rows: Iterator[Placed], source: str) -> list[Judged]:
    """Scores from 1 to 10; -1 is what the tool writes where it found none, and is no score."""
    found: dict[Subject, Judgments] = {}
    scores: dict[Subject, dict[str, dict[str, float]]] = {}
    for where, row in rows:
        subject = Subject(BENCHMARK, "", _judge(row), "", text_in(row, "model", where))
        ours = found.setdefault(subject, Judgments(subject, source))
        prompt, turn = key_in(row, "question_id", where), TURNS.get(row["turn"], "")
        score = number_in(row, "score")
        if score is None or score < 0 or not turn:
            ours.count(UNREAD)
            continue
        of_prompt = scores.setdefault(subject, {}).setdefault(prompt, {})
        ours.count(AGAIN, turn in of_prompt)
        of_prompt[turn] = score
    for subject, by_prompt in scores.items():
        for prompt, by_turn in by_prompt.items():
            # Of all scores, as show_result.py does: a turn that was not read weighs nothing.
            parts: Parts = {"average": (sum(by_turn.values()), float(len(by_turn)))}
            found[subject].put(prompt, parts | {turn: (score, 1.0) for turn, score in by_turn.items()})
    return [each.judged() for each in found.values()]


def read_pairs(rows: Iterator[Placed], source: str) -> list[Judged]:
    """Win rates in percent of the first model over the second, two games a turn that must agree; a tie counts half."""
    found: dict[Subject, Judgments] = {}
    seen: dict[tuple[Subject, str, Any], float] = {}
    for where, row in rows:
        model, against = (text_in(row, name, where) for name in ("model_1", "model_2"))
        subject = Subject(PAIRS, "", _judge(row), against, model)
        ours = found.setdefault(subject, Judgments(subject, source))
        winners = (row["g1_winner"], row["g2_winner"])
        if "error" in winners:
            ours.count(ERROR)
            continue
        key = (subject, key_in(row, "question_id", where), str(row.get("turn")))
        ours.count(AGAIN, key in seen)
        seen[key] = {"model_1": 1.0, "model_2": 0.0}.get(winners[0], 0.5) if winners[0] == winners[1] else 0.5
    for (subject, prompt, _), points in seen.items():
        found[subject].add(prompt, {"win_rate": (100 * points, 1.0)})
    return [each.judged() for each in found.values()]


def read_total(rows: Iterator[Placed], source: str) -> list[Judged]:
    """nvidia's mean of all scores; the model is named by its folder alone."""
    found = []
    for where, row in rows:
        subject = Subject(BENCHMARK, "", text_in(row, "judge", where), "", Path(source).parent.name)
        average = stated(number_in(row, "total"), None)
        missing = number_in(row, "num_missing")
        counts = {UNREAD: int(missing)} if missing else {}
        found.append(Judged(subject, source, [], {}, {"average": average} if average else {}, counts, {}))
    return found


def _judge(row: dict[str, Any]) -> str:
    """A name, or a name and that of the prompt, which differs by category."""
    judge = row.get("judge")
    return str(judge[0] if isinstance(judge, list) and judge else judge)
