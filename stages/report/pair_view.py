"""Pairs as they are looked at: found in a folder of scores, and token by token."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.method.fine_histogram import FineHistogram
from stages.method.selection import Mask, order_within
from stages.report.heat import levels
from stages.report.token_selection import TokenSelector
from stages.report.vocabulary import Vocabulary
from stages.reporting import Reporter
from stages.store.columns import ScoreColumns, Side
from stages.store.scores import Scores


class ColourScale(NamedTuple):
    """How scores become colours, nats."""

    median: float
    """of all scores: the middle"""
    far: float
    """98th percentile of |score - median|: the end"""
    noise: float | None
    """99th percentile of the scorer's error, if it was measured"""


class ShownToken(NamedTuple):
    """A response token."""

    id: int
    text: str
    """visibly; its id where there is no tokenizer"""
    score: float
    level: int
    """of its colour (`stages.report.heat`)"""
    selected: bool
    reference: float | None
    """log pi_ref, if it is known"""
    rank: int
    """1 for the token of its response that is wanted most"""


class PairView(NamedTuple):
    """A pair."""

    row: int
    """number in the folder, from 0"""
    pair_id: int
    prompt: str
    """as it is, or its ids where there is no tokenizer"""
    chosen: list[ShownToken]
    rejected: list[ShownToken]

    @property
    def margin(self) -> float:
        """Sum of the chosen scores minus that of the rejected ones, nats."""
        return sum(token.score for token in self.chosen) - sum(token.score for token in self.rejected)


class PairIndex(NamedTuple):
    """What is known of every pair of a folder, (P,) each."""

    pair_ids: NDArray[np.int64]
    margins: NDArray[np.float64]
    lengths: NDArray[np.int64]
    """tokens of both responses"""
    found: NDArray[np.bool_]
    """whether the text that was searched is in it"""
    scale: ColourScale

    def ordered(self, sort: str | None, within_noise: NDArray[np.float64] | None) -> list[int]:
        """The row numbers of the pairs that were found, in an order of `InspectConfig.sort`."""
        keys = {"margin": -self.margins, "wrong": self.margins, "length": -self.lengths}
        if within_noise is not None:
            keys["noise"] = -within_noise
        wanted = self.found & (self.margins < 0) if sort == "wrong" else self.found
        order = np.arange(len(wanted)) if sort is None else np.argsort(keys[sort], kind="stable")
        return [int(row) for row in order if wanted[row]]


def index_pairs(
    scores: Scores, noise: float | None, search: str | None, vocabulary: Vocabulary | None, reporter: Reporter
) -> PairIndex:
    """Read all of a folder once.

    Args:
        search: a text that has to be in a pair, in capital or small letters; needs the vocabulary.
    """
    histogram = FineHistogram()
    parts: list[list[NDArray[Any]]] = [[], [], [], []]
    for columns in _read(scores, reporter):
        for side in (columns.chosen, columns.rejected):
            histogram.add(side.scores)
        sums = [np.add.reduceat(side.scores, side.offsets[:-1], dtype=np.float64) for side in columns[-2:]]
        found = np.ones(len(columns.pair_ids), bool)
        if search is not None and vocabulary is not None:
            found = _search(columns, search.casefold(), vocabulary)
        lengths = columns.chosen.lengths + columns.rejected.lengths
        for part, values in zip(parts, (columns.pair_ids, sums[0] - sums[1], lengths, found), strict=True):
            part.append(values)
    median = histogram.median
    pair_ids, margins, lengths, matches = map(np.concatenate, parts)
    scale = ColourScale(median, histogram.distance(median, 0.98), noise)
    return PairIndex(pair_ids, margins, lengths, matches, scale)


def shares_within_noise(scores: Scores, scale: ColourScale, reporter: Reporter) -> NDArray[np.float64]:
    """(P,) of each pair's response tokens the share whose scores are nearer to the median than the scorer's noise."""
    assert scale.noise is not None
    shares = []
    for columns in _read(scores, reporter):
        within = np.zeros(len(columns.pair_ids))
        for side in (columns.chosen, columns.rejected):
            near = np.abs(side.scores.astype(np.float64) - scale.median) < scale.noise
            within += np.add.reduceat(near, side.offsets[:-1], dtype=np.int64)
        shares.append(within / (columns.chosen.lengths + columns.rejected.lengths))
    return np.concatenate(shares)


def view_pairs(
    scores: Scores, rows: Iterable[int], selector: TokenSelector, scale: ColourScale, vocabulary: Vocabulary | None
) -> list[PairView]:
    """Pairs by their row numbers, in that order."""
    wanted = [*rows]
    found = {}
    for columns in scores.columns():
        inside = [row - columns.start for row in wanted if 0 <= row - columns.start < len(columns.pair_ids)]
        masks = selector.masks(columns) if inside else ()
        for at in inside:
            found[columns.start + at] = _view(columns, at, masks, scale, vocabulary)
        if len(found) == len(wanted):
            break
    return [found[row] for row in wanted]


def _view(
    columns: ScoreColumns, at: int, masks: tuple[Mask, ...], scale: ColourScale, vocabulary: Vocabulary | None
) -> PairView:
    prompt = columns.prompt_ids[slice(*columns.prompt_offsets[at : at + 2])].tolist()
    chosen, rejected = (
        _tokens(side, at, mask, sign, scale, vocabulary)
        for side, mask, sign in zip(columns[-2:], masks, (1, -1), strict=True)
    )
    text = " ".join(map(str, prompt)) if vocabulary is None else vocabulary.decoded([prompt])[0]
    return PairView(columns.start + at, int(columns.pair_ids[at]), text, chosen, rejected)


def _tokens(
    side: Side, at: int, mask: Mask, sign: int, scale: ColourScale, vocabulary: Vocabulary | None
) -> list[ShownToken]:
    here = slice(*side.offsets[at : at + 2])
    ids, scores = side.ids[here].tolist(), side.scores[here]
    texts = [f"{id_} " for id_ in ids] if vocabulary is None else vocabulary.parts(ids)
    reference = [None] * len(ids)
    if side.reference is not None and not np.isnan(side.reference[here.start]):
        reference = side.reference[here].tolist()
    ranks = np.empty(len(ids), np.int64)
    ranks[order_within(sign * scores, np.array([0, len(ids)]))] = np.arange(1, len(ids) + 1)
    columns = scores.tolist(), levels(scores, scale.median, scale.far).tolist(), mask[here].tolist(), reference
    return [*map(ShownToken, ids, texts, *columns, ranks.tolist())]


def _search(columns: ScoreColumns, text: str, vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Which rows have a text in one of their three parts, which is given as `str.casefold` has it."""
    parts = [
        (columns.prompt_ids, columns.prompt_offsets),
        *((side.ids, side.offsets) for side in (columns.chosen, columns.rejected)),
    ]
    found = np.zeros(len(columns.pair_ids), bool)
    for ids, offsets in parts:
        texts = vocabulary.decoded([each.tolist() for each in np.split(ids, offsets[1:-1])])
        found |= [text in each.casefold() for each in texts]
    return found


def _read(scores: Scores, reporter: Reporter) -> Iterator[ScoreColumns]:
    with reporter.task(f"read {scores.folder}", scores.manifest["counts"]["kept"], "pairs") as task:
        for columns in scores.columns():
            yield columns
            task.advance(len(columns.pair_ids))
