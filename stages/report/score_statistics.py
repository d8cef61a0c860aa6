"""What a folder of scores looks like as a whole, from one reading of it in constant memory.

Shapes: ``P`` pairs; ``T`` tokens of a side; ``V`` ids; ``B`` bins.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.method.fine_histogram import FineHistogram
from stages.method.selection import Mask, order_within
from stages.method.statistics import Interval, mean_interval, preference_accuracy, wilson
from stages.report.token_classes import CLASSES
from stages.report.token_selection import TokenSelector
from stages.reporting import Reporter
from stages.store.columns import ScoreColumns, Side
from stages.store.scores import Scores
from stages.store.shape import lookup
from stages.types import Floats, Ids

STEPS: Final = 20
"""of the cumulative shares: the top 5%, 10%, ... 100% of each response's tokens"""
POSITIONS: Final = 10
"""tenths of a response"""
TYPES_SHOWN: Final = 20
BINS: Final = 41
_LEAST_Z: Final = 2.0
"""below it chance would do, and most types of a small data set are there once"""
_LONGEST: Final = 31
"""doublings of a response's length"""
PAIRS_SAMPLED: Final = 1000
"""pairs that are kept one by one for a picture of margin against length"""


class Distribution(NamedTuple):
    """All response scores together, nats."""

    tokens: int
    median: float
    """within 0.1%, as `far` is"""
    mean: float
    spread: float
    """standard deviation"""
    low: float
    high: float
    far: float
    """98th percentile of |score - median|, where colours end"""


class Bins(NamedTuple):
    """A histogram of both sides over the same bins; what lies outside is counted in the first or the last."""

    edges: NDArray[Any]
    """(B + 1,)"""
    chosen: NDArray[Any]
    """(B,) tokens"""
    rejected: NDArray[Any]
    """(B,)"""


class Part(NamedTuple):
    """Some tokens of a side, and how many of them were selected."""

    name: str
    """such as ``0-10%`` of the response, ``punctuation``, or ``64-127`` tokens"""
    tokens: int
    selected: int
    mean_score: float
    """nats; 0 where there is no token"""


class TokenType(NamedTuple):
    """A token type that is selected more often than chance would."""

    id: int
    tokens: int
    selected: int
    expected: float
    """the sum over its occurrences of the share that was selected of their responses"""
    z: float
    """(selected - expected) / sqrt(the sum of share * (1 - share)): what the types are ranked by"""
    mean_score: float


@dataclass(frozen=True)
class SideStatistics:
    """The chosen or the rejected responses."""

    tokens: int
    selected: int
    cumulative: list[float]
    """(STEPS,) Figure 1: see `ScoreStatistics.cumulative`"""
    by_position: list[Part]
    """by tenth of the response"""
    by_class: list[Part]
    """by class of token (`stages.report.token_classes.CLASSES`); none without a tokenizer"""
    by_length: list[Part]
    """by tokens of the response, doubling; empty bins are left out"""
    last_selected: Interval
    """how often a response's last token, its end of turn, is selected"""
    types: list[TokenType]
    """those selected most above expectation, best first; of z at least 2"""


@dataclass(frozen=True)
class MarginStatistics:
    """Of each pair the sum of the chosen scores minus that of the rejected ones, nats."""

    mean: Interval
    accuracy: Interval
    """share of pairs whose margin is above 0, a tie counts half"""
    length_correlation: float | None
    """Pearson's, of the margin with chosen minus rejected length; None where one of them is the same in all pairs"""
    longer_accuracy: Interval
    """how often the longer response is the chosen one: what a preference for length alone would reach"""
    sample: NDArray[Any]
    """(min(P, PAIRS_SAMPLED), 3): chosen length minus rejected length, margin, row number from 0; a seeded sample"""


@dataclass(frozen=True)
class Drifting:
    """How often the best token of a chosen response and the worst of its rejected one are of the same type."""

    same: Interval
    expected: float
    """if best and worst tokens of different pairs were compared"""
    types: list[tuple[int, int]]
    """(id, pairs) of the most frequent ones"""


@dataclass(frozen=True)
class ScoreStatistics:
    """A folder of scores as a whole."""

    pairs: int
    prompt_tokens: int
    scores: Distribution
    histogram: Bins
    noise: float | None
    """99th percentile of the scorer's error, nats, if it was measured"""
    within_noise: float | None
    """share of the tokens whose score is nearer to the median than that"""
    cumulative: list[float] | None
    """(STEPS,) Figure 1 of arXiv 2408.13518. Let top(f, y) be the ceil(f n) highest scores of a chosen response and the
    lowest of a rejected one: the sum of the chosen ones' minus the sum of the rejected ones', over all pairs, divided
    by the same at f = 1, the sum of all margins. It may exceed 1, since what is left out holds scores against the pair;
    None where the margins do not sum up to more than 0. On a side: the wanted part alone, max(0, score) of chosen
    tokens and max(0, -score) of rejected ones, which rises from 0 to 1."""
    margin: MarginStatistics
    drifting: Drifting
    chosen: SideStatistics
    rejected: SideStatistics
    notes: dict[str, int]
    """what the rule said happened how often"""


def read_statistics(
    scores: Scores, selector: TokenSelector, reporter: Reporter, classes: NDArray[Any] | None = None
) -> ScoreStatistics | None:
    """Read all of a folder once; None where it has no pair. Memory grows by 24 bytes a pair, for the margins.

    Args:
        classes: (V,) of each id its class (`stages.report.token_classes.classes_of`).
    """
    chosen, rejected, pairs = _SideSums(+1), _SideSums(-1), _PairSums()
    with reporter.task(f"read {scores.folder}", scores.manifest["counts"]["kept"], "pairs") as task:
        for columns in scores.columns():
            masks = selector.masks(columns)
            best = chosen.add(columns.chosen, masks[0])
            worst = rejected.add(columns.rejected, masks[1])
            pairs.add(columns, best, worst)
            task.advance(len(columns.pair_ids))
    if not pairs.margins:
        return None
    both = chosen.histogram + rejected.histogram
    median, noise = both.median, lookup(scores.manifest, "results.noise.p99")
    edges = _edges(both.quantile(0.005), both.quantile(0.995))
    net = chosen.net + rejected.net
    return ScoreStatistics(
        pairs=pairs.count,
        prompt_tokens=pairs.prompt_tokens,
        scores=Distribution(
            both.count, median, both.mean, both.spread, both.low, both.high, both.distance(median, 0.98)
        ),
        histogram=Bins(edges, chosen.histogram.binned(edges), rejected.histogram.binned(edges)),
        noise=noise,
        within_noise=None if noise is None else both.within(median, noise),
        cumulative=_shares(net) if net.sum() > 0 else None,
        margin=pairs.margin(),
        drifting=pairs.drifting(),
        chosen=chosen.statistics(classes),
        rejected=rejected.statistics(classes),
        notes=dict(selector.notes),
    )


class _SideSums:
    """What adds up over the responses of one side.

    Args:
        sign: of the scores that are wanted.
    """

    def __init__(self, sign: int) -> None:
        self._sign = sign
        self.histogram = FineHistogram()
        self.net = np.zeros(STEPS)
        """sums of sign * score by step from the most wanted tokens of a response to the least wanted"""
        self._wanted = np.zeros(STEPS)
        self._positions = np.zeros((3, POSITIONS))
        """tokens, selected ones, sum of scores; as below"""
        self._lengths = np.zeros((3, _LONGEST))
        self._types = np.zeros((5, 0))
        """also the expected number of selected ones, and its variance"""
        self._responses = self._last_selected = 0

    def add(self, side: Side, mask: Mask) -> Ids:
        """Add some responses; returns of each (P,) the type of its most wanted token."""
        lengths, starts = side.lengths, side.offsets[:-1]
        # Position in the response, or in the order of what is wanted, as a step of its length.
        step = (np.arange(len(mask)) - np.repeat(starts, lengths)) * STEPS // np.repeat(lengths, lengths)
        keys = self._sign * side.scores
        order = order_within(keys, side.offsets)
        ranked = keys[order]
        self.histogram.add(side.scores)
        self.net += np.bincount(step, ranked, STEPS)
        self._wanted += np.bincount(step, np.maximum(ranked, 0), STEPS)
        self._positions += _sums(step * POSITIONS // STEPS, mask, side.scores, POSITIONS)
        selected, totals = (np.add.reduceat(each, starts, dtype=np.float64) for each in (mask, side.scores))
        doublings = np.log2(lengths).astype(np.int64)
        self._lengths += [np.bincount(doublings, each, _LONGEST) for each in (lengths, selected, totals)]
        self._add_types(side, mask, selected / lengths)
        self._responses += len(lengths)
        self._last_selected += int(mask[side.offsets[1:] - 1].sum())
        return side.ids[order[starts]]

    def _add_types(self, side: Side, mask: Mask, share: NDArray[np.float64]) -> None:
        """
        Args:
            share: (P,) that was selected of each response.
        """
        size = max(self._types.shape[1], int(side.ids.max()) + 1)
        if size > self._types.shape[1]:
            self._types = np.pad(self._types, ((0, 0), (0, size - self._types.shape[1])))
        self._types[:3] += _sums(side.ids, mask, side.scores, size)
        self._types[3] += np.bincount(side.ids, np.repeat(share, side.lengths), size)
        self._types[4] += np.bincount(side.ids, np.repeat(share * (1 - share), side.lengths), size)

    def statistics(self, classes: NDArray[Any] | None) -> SideStatistics:
        tokens, selected = (int(row.sum()) for row in self._types[:2])
        bounds = [(1 << bit, (2 << bit) - 1) for bit in range(_LONGEST)]
        by_class = np.zeros((3, len(CLASSES)))
        if classes is not None:
            types = self._types[:3, : len(classes)]
            by_class = np.stack([np.bincount(classes[: types.shape[1]], row, len(CLASSES)) for row in types])
        return SideStatistics(
            tokens=tokens,
            selected=selected,
            cumulative=_shares(self._wanted),
            by_position=_parts([f"{10 * tenth}-{10 * tenth + 10}%" for tenth in range(POSITIONS)], self._positions),
            by_class=_parts(CLASSES, by_class),
            by_length=_parts([f"{low:,}-{high:,}" if low < high else f"{low}" for low, high in bounds], self._lengths),
            last_selected=wilson(self._last_selected, self._responses),
            types=self._best_types(),
        )

    def _best_types(self) -> list[TokenType]:
        tokens, selected, totals, expected, variance = self._types
        # Rounding leaves a rest where every token is taken.
        z = np.where(variance > 1e-9, (selected - expected) / np.sqrt(np.maximum(variance, 1e-9)), 0.0)
        best = [id_ for id_ in np.argsort(-z, kind="stable")[:TYPES_SHOWN].tolist() if z[id_] >= _LEAST_Z]
        return [
            TokenType(
                id_,
                int(tokens[id_]),
                int(selected[id_]),
                float(expected[id_]),
                float(z[id_]),
                float(totals[id_] / tokens[id_]),
            )
            for id_ in best
        ]


class _PairSums:
    """What is known of pairs, not of one of their responses."""

    def __init__(self) -> None:
        self.margins: list[NDArray[np.float64]] = []
        self._longer: list[NDArray[np.int64]] = []
        self.prompt_tokens = self.count = self._same = 0
        self._best, self._worst, self._both = (np.zeros(0, np.int64) for _ in range(3))

    def add(self, columns: ScoreColumns, best: Ids, worst: Ids) -> None:
        """
        Args:
            best: (P,) type of each chosen response's best token.
            worst: (P,) type of each rejected response's worst token.
        """
        sums = [np.add.reduceat(side.scores, side.offsets[:-1], dtype=np.float64) for side in columns[-2:]]
        self.margins.append(sums[0] - sums[1])
        self._longer.append(columns.chosen.lengths - columns.rejected.lengths)
        self.prompt_tokens += len(columns.prompt_ids)
        self.count += len(best)
        self._best, self._worst = _counted(self._best, best), _counted(self._worst, worst)
        self._both = _counted(self._both, best[best == worst])

    def margin(self) -> MarginStatistics:
        margins, longer = np.concatenate(self.margins), np.concatenate(self._longer)
        varies = np.ptp(margins) > 0 and np.ptp(longer) > 0
        drawn = np.sort(np.random.default_rng(0).permutation(len(margins))[:PAIRS_SAMPLED])
        return MarginStatistics(
            mean=mean_interval(margins),
            accuracy=preference_accuracy(margins.tolist()),
            length_correlation=float(np.corrcoef(margins, longer)[0, 1]) if varies else None,
            longer_accuracy=preference_accuracy(longer.tolist()),
            sample=np.stack([longer[drawn], margins[drawn], drawn], 1),
        )

    def drifting(self) -> Drifting:
        size = min(len(self._best), len(self._worst))
        expected = float((self._best[:size] * self._worst[:size]).sum()) / self.count**2
        order = np.argsort(-self._both, kind="stable")[:TYPES_SHOWN]
        types = [(int(id_), int(self._both[id_])) for id_ in order if self._both[id_]]
        return Drifting(wilson(int(self._both.sum()), self.count), expected, types)


def _sums(which: NDArray[Any], mask: Mask, scores: Floats, size: int) -> NDArray[np.float64]:
    """(3, size): tokens, selected ones and the sum of scores, by what each token is one of."""
    counts = np.bincount(which, minlength=size), np.bincount(which[mask], minlength=size)
    return np.stack([*counts, np.bincount(which, scores, size)])


def _counted(counts: NDArray[np.int64], ids: Ids) -> NDArray[np.int64]:
    """Counts by id with these added, as long as it takes."""
    more = np.bincount(ids, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _parts(names: Iterable[str], sums: NDArray[np.float64]) -> list[Part]:
    """Those that hold a token."""
    rows = zip(names, *sums.tolist(), strict=True)
    return [Part(name, int(tokens), int(selected), total / tokens) for name, tokens, selected, total in rows if tokens]


def _shares(steps: NDArray[np.float64]) -> list[float]:
    """What the first step, the first two... hold of all; 0 where there is nothing."""
    found: list[float] = (np.cumsum(steps) / (steps.sum() or 1.0)).tolist()
    return found


def _edges(low: float, high: float) -> NDArray[np.float64]:
    """Of bins from one score to another; of some width where all scores are one."""
    return np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 0.5, low + 0.5, BINS + 1)
