"""What was found in a folder of scores, in words, tables and colours, and for programs."""

import re
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Final

import numpy as np

from stages.report.census import bars
from stages.report.heat import STEPS as COLOURS
from stages.report.pair_view import ColourScale, PairView, ShownToken
from stages.report.score_statistics import STEPS, Part, ScoreStatistics, TokenType
from stages.report.visible import shortened
from stages.reporting import HeatMap, Piece, Table

TOP: Final = (0.1, 0.2, 0.3, 0.5)
"""shares of a response's tokens for which Figure 1 is quoted"""
TOKENS_LISTED: Final = 8
"""of each response"""

Name = Callable[[int], str]
"""how a token type is shown, by its id"""


def summary_rows(found: ScoreStatistics) -> list[tuple[str, str]]:
    """The figures of a folder that are no table."""
    scores, margin, drifting, edges = found.scores, found.margin, found.drifting, found.histogram.edges
    correlation = "none" if margin.length_correlation is None else f"{margin.length_correlation:+.2f}"
    prompts, firsts, seconds = (
        f"{side:,}" for side in (found.prompt_tokens, found.chosen.tokens, found.rejected.tokens)
    )
    rows = [
        ("pairs", f"{found.pairs:,}"),
        ("tokens", f"{prompts} prompt, {firsts} chosen, {seconds} rejected"),
        ("scores", f"median {scores.median:+.3f}, mean {scores.mean:+.3f}, spread {scores.spread:.3f} nats"),
        ("", f"from {scores.low:+.3f} to {scores.high:+.3f}; 98% within {scores.far:.3f} of the median"),
        ("chosen", f"[{bars(np.sqrt(found.histogram.chosen))}]"),
        ("rejected", f"[{bars(np.sqrt(found.histogram.rejected))}]"),
        ("", f"from below {edges[0]:+.3f} to above {edges[-1]:+.3f}; square roots"),
        ("noise", "not measured" if found.noise is None else f"{found.noise:.2g} nats (99th percentile)"),
        ("margin of a pair", f"{margin.mean:+.3f} nats"),
        ("its accuracy", f"{margin.accuracy:.3f}"),
        ("that of length", f"{margin.longer_accuracy:.3f} (the longer one is chosen)"),
        ("margin and length", f"correlation {correlation} (with chosen minus rejected length)"),
        ("drift", f"{drifting.same:.3f} of the pairs have one type as best"),
        ("", f"chosen and worst rejected token; {drifting.expected:.3f} if pairs were mixed"),
        *(("of the selection", f"{count:,} {what}") for what, count in found.notes.items()),
    ]  # fmt: skip
    if found.within_noise is not None:
        rows.insert(8, ("", f"{found.within_noise:.1%} of the scores are nearer than that to the median"))
    return rows


def summary_tables(found: ScoreStatistics, name: Name) -> list[Table]:
    """The figures of a folder that are tables."""
    chosen, rejected = found.chosen, found.rejected
    steps = [round(share * STEPS) - 1 for share in TOP]
    net: list[Any] = found.cumulative or [None] * STEPS
    top = [
        [f"{share:.0%}", *(_percent(each[step]) for each in (net, chosen.cumulative, rejected.cumulative))]
        for share, step in zip(TOP, steps, strict=True)
    ]
    parts = [
        *_part_rows("at {}", chosen.by_position, rejected.by_position),
        *_part_rows("{}", chosen.by_class, rejected.by_class),
        *_part_rows("{} tokens", chosen.by_length, rejected.by_length, lambda part: (len(part), part)),
    ]
    last = " and ".join(f"{side.last_selected.value:.1%}" for side in (chosen, rejected))
    title = f"What is selected (of last tokens {last}), and mean scores"
    types = [
        [*_type_cells(one, name), *_type_cells(other, name)] for one, other in zip_longest(chosen.types, rejected.types)
    ]
    columns = ["selected", "of", "z"]
    same = [[name(id_), f"{count:,}"] for id_, count in found.drifting.types[:5]]
    tables = [
        Table(
            "What the top tokens hold; above 100% what is left out is against the gap",
            ["top", "of the gap", "of chosen reward", "of rejected reward"],
            top,
        ),
        Table(title, ["part", "chosen", "selected", "mean", "rejected", "selected", "mean"], parts),
        Table(
            "Token types selected most above chance, by z: standard deviations",
            ["chosen", *columns, "rejected", *columns],
            types,
        ),
        Table("Best and worst at once", ["type", "pairs"], same),
    ]
    return [table for table in tables if table.rows]


def as_json(found: ScoreStatistics, name: Name) -> dict[str, Any]:
    """All that was found, and the texts of the token types in it."""
    ids = [each.id for side in (found.chosen, found.rejected) for each in side.types]
    ids += [id_ for id_, _ in found.drifting.types]
    plain: dict[str, Any] = _plain(found)
    return plain | {"texts": {str(id_): name(id_) for id_ in ids}}


def heat_map(view: PairView, scale: ColourScale) -> HeatMap:
    """A pair in colours."""
    verdict = ", which is wrong" if view.margin < 0 else "" if view.margin else ", a tie"
    sides = [("chosen", view.chosen), ("rejected", view.rejected)]
    legend = [
        Piece(f" {scale.median + scale.far * level / COLOURS:+.3f} ", level)
        for level in range(-COLOURS, COLOURS + 1, 5)
    ]
    note = "" if scale.noise is None else f"; noise {scale.noise:.2g}"
    return HeatMap(
        f"Pair {view.pair_id:,}: margin {view.margin:+.3f} nats{verdict}",
        (
            ("prompt", [*map(Piece, re.split(r"(?<= )", shortened(view.prompt)))]),
            *((_heading(side, tokens), [Piece(each.text, each.level, each.selected) for each in tokens])
              for side, tokens in sides),
        ),
        [Piece("nats "), *legend, Piece(" "), Piece("selected", 0, True), Piece(note)],
    )  # fmt: skip


def token_table(view: PairView) -> Table:
    """The most wanted tokens of both responses of a pair."""
    rows = [
        [side, str(each.rank), each.text, str(each.id), f"{each.score:+.4f}", _number(each.reference), _star(each)]
        for side, tokens in (("chosen", view.chosen), ("rejected", view.rejected))
        for each in sorted(tokens, key=lambda token: token.rank)[:TOKENS_LISTED]
    ]  # fmt: skip
    columns = ["response", "rank", "token", "id", "score", "log pi_ref", "selected"]
    return Table(f"Its top tokens, at most {TOKENS_LISTED} of each response", columns, rows)


def pair_json(view: PairView) -> dict[str, Any]:
    sides = {side: [token._asdict() for token in getattr(view, side)] for side in ("chosen", "rejected")}
    return {"pair_id": view.pair_id, "row": view.row, "margin": view.margin, "prompt": view.prompt, **sides}


def _heading(side: str, tokens: list[ShownToken]) -> str:
    total, selected = sum(token.score for token in tokens), sum(token.selected for token in tokens)
    return f"{side}: {len(tokens):,} tokens, sum {total:+.3f}, {selected:,} selected"


def _part_rows(
    name: str, chosen: list[Part], rejected: list[Part], order: Callable[[str], Any] = lambda part: 0
) -> list[list[str]]:
    """A row for each part that a side has."""
    sides = [{part.name: part for part in parts} for parts in (chosen, rejected)]
    names = sorted({**sides[0], **sides[1]}, key=order)
    return [[name.format(each), *(cell for side in sides for cell in _part_cells(side.get(each)))] for each in names]


def _part_cells(part: Part | None) -> list[str]:
    if part is None:
        return ["0", "", ""]
    return [f"{part.tokens:,}", f"{part.selected / part.tokens:.1%}", f"{part.mean_score:+.3f}"]


def _type_cells(found: TokenType | None, name: Name) -> list[str]:
    if found is None:
        return [""] * 4
    return [name(found.id), f"{found.selected:,}", f"{found.tokens:,}", f"{found.z:.1f}"]


def _percent(share: float | None) -> str:
    return "no gap" if share is None else f"{share:.0%}"


def _star(token: ShownToken) -> str:
    return "yes" if token.selected else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _plain(value: Any) -> Any:
    """Dataclasses and named tuples as objects, arrays as lists."""
    names: tuple[str, ...] = getattr(value, "__match_args__", ())
    if names:
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple):
        return [*map(_plain, value)]
    return value.tolist() if isinstance(value, np.ndarray) else value
