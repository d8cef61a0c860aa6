"""What gen_judgment.py of Arena-Hard writes, data/BENCH/model_judgment/JUDGE/MODEL.jsonl: a row a prompt, two games."""

from collections.abc import Iterator
from typing import Any, Final

from stages.benchmarks.judged import Judged, Judgments, Subject, key_in, text_in
from stages.data.text_files import Placed

BENCHMARK: Final = "arena-hard"
JUDGMENTS: Final = frozenset({"uid", "model", "judge", "games"})
NO_VERDICT: Final = "without a verdict in both games"
# `load_judgments` of show_result.py: a verdict of >> counts as three games.
STRONG: Final = 3
VERDICTS: Final = {
    "A>>B": [1.0] * STRONG,
    "A>B": [1.0],
    "A=B": [0.5],
    "B=A": [0.5],
    "B>A": [0.0],
    "A<B": [0.0],
    "B<A": [1.0],
    "B>>A": [0.0] * STRONG,
    "A<<B": [0.0] * STRONG,
    "B<<A": [1.0] * STRONG,
}
"""points of A"""


def read_judgments(rows: Iterator[Placed], source: str) -> list[Judged]:
    """Win rates in percent over games, by category: in the first game the baseline is A, in the second the model."""
    found: dict[Subject, Judgments] = {}
    for where, row in rows:
        judge, model = (text_in(row, name, where) for name in ("judge", "model"))
        category, against = (row.get(name) for name in ("category", "baseline"))
        subject = Subject(BENCHMARK, str(category or ""), judge, str(against or ""), model)
        ours = found.setdefault(subject, Judgments(subject, source))
        points = _points(row["games"])
        if points:
            ours.put(key_in(row, "uid", where), {"win_rate": (100 * sum(points), len(points))})
        else:
            ours.count(NO_VERDICT)
    return [each.judged() for each in found.values()]


def _points(games: Any) -> list[float]:
    """The model's, of both games; none where one of them has no verdict: the official script drops both, too."""
    if not isinstance(games, list) or len(games) < 2:
        return []
    scores = [game.get("score") if isinstance(game, dict) else None for game in games[:2]]
    first, second = (VERDICTS.get(score) if isinstance(score, str) else None for score in scores)
    return [*second, *(1 - point for point in first)] if first and second else []
