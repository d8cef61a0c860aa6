"""What scores add up to: the same to the bit in whatever order, and by however many workers, shards are added.

Counts are whole numbers, and so are sums over a token type: every score enters them as two whole numbers. What is a
sum of floats is one for each shard, and those are added in the order of the shards.

Shapes: ``V`` ids; ``T`` tokens of a shard's responses, pair by pair, the chosen response before the rejected one.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.method.statistics import Interval, implicit_margin, preferred, wilson
from stages.types import Floats, PairLogps, ScoredPair

MEDIAN_SAMPLE: Final = 1_000_000
SHARED_TYPES: Final = 10
"""of tokens, by which drift is told"""
LIMIT: Final = 0.5
LIMIT_OF_ONE: Final = 2.0
UNIT: Final = 2.0**-24
"""nats; twice over it holds every float32 of at least 3e-8 nats exactly, and 64-bit floats a billion times as many"""
_NOTHING: Final[Collection[int]] = ()


class Drift(NamedTuple):
    """What DPO does to tokens that chosen and rejected responses share, which its loss cannot see; in nats.

    Only the difference of two responses enters DPO's loss, so a token that both contain may move by any amount. A score
    that is mostly drift ranks tokens by how common they are, not by how good they are.
    """

    median: float
    """of the first million scores"""
    spread: float
    """standard deviation of all scores"""
    shared: float
    """mean score of the token types that chosen and rejected responses share most"""
    worst_id: int
    """the one of those types whose mean is farthest from 0"""
    worst: float
    worst_token: str = ""
    """that type as text"""

    @property
    def large(self) -> bool:
        """Whether what both sides share moved by half the spread of all scores, or one such type by twice it."""
        together, alone = max(abs(self.median), abs(self.shared)), abs(self.worst)
        return together > LIMIT * self.spread or alone > LIMIT_OF_ONE * self.spread


class ShardFigures(NamedTuple):
    """Of the scores of one shard, nats."""

    tokens: float
    total: float
    squares: float
    low: float
    high: float
    pairs: float
    preferred: float
    """pairs whose chosen response has the higher sum; a tie counts half"""


class ScoreTotals:
    """Adds up scored pairs, shard by shard, in memory that does not grow with them but for 56 bytes a shard.

    Args:
        kept: pair ids whose scores are kept one by one.
    """

    def __init__(self, vocabulary_size: int, kept: Collection[int] = _NOTHING) -> None:
        self._types_4V = np.zeros((4, vocabulary_size))
        """tokens of chosen and of rejected responses, and their scores' sum in units and in units of units"""
        self._figures: dict[str, ShardFigures] = {}
        self._sample: dict[str, Floats] = {}
        """of the shards that begin within the first million scores, those scores"""
        self._ids = frozenset(kept)
        self.kept: dict[int, PairLogps] = {}
        """pair id -> its scores"""

    def add(self, shard: str, rows: Sequence[ScoredPair], first_token: int = 0) -> None:
        """Add the pairs of a shard (at least one) that has not been added.

        Args:
            first_token: how many response tokens there are in the shards before it.
        """
        sides = [np.asarray(side, np.float32) for row in rows for side in row.scores]
        scores_T = np.concatenate(sides)
        size = self._types_4V.shape[1]
        parts = [[row.pair.parts[side] for row in rows] for side in (1, 2)]
        ids_T = np.concatenate([ids for pair in zip(*parts, strict=True) for ids in pair])
        self._types_4V += [
            *(np.bincount(np.concatenate(ids), minlength=size) for ids in parts),
            *(np.bincount(ids_T, units, size) for units in _in_units(scores_T)),
        ]
        exact_T = scores_T.astype(np.float64)
        self._figures[shard] = ShardFigures(
            len(exact_T),
            float(exact_T.sum()),
            float(np.square(exact_T).sum()),
            float(exact_T.min()),
            float(exact_T.max()),
            len(rows),
            preferred([implicit_margin(row.scores) for row in rows]),
        )
        ends = np.cumsum([len(side) for side in sides])
        sampled = int(np.searchsorted(first_token + np.concatenate([[0], ends[:-1]]), MEDIAN_SAMPLE))
        if sampled:
            self._sample[shard] = scores_T[: ends[sampled - 1]]
        self.kept |= {row.pair.pair_id: row.scores for row in rows if row.pair.pair_id in self._ids}

    def merge(self, other: "ScoreTotals") -> None:
        """Add what another one has added, of other shards."""
        self._types_4V += other._types_4V
        self._figures |= other._figures
        self._sample |= other._sample
        self.kept |= other.kept

    @property
    def accuracy(self) -> Interval:
        """Of the implicit reward."""
        return wilson(self._sum("preferred"), int(self._sum("pairs")))

    @property
    def low(self) -> float:
        return min(each.low for each in self._figures.values())

    @property
    def high(self) -> float:
        return max(each.high for each in self._figures.values())

    @property
    def spread(self) -> float:
        """Standard deviation."""
        tokens = self._sum("tokens")
        return math.sqrt(max(0.0, self._sum("squares") / tokens - (self._sum("total") / tokens) ** 2))

    def drift(self, decode: Callable[[list[int]], str]) -> Drift:
        """The drift of what was added, its worst token decoded by the tokenizer."""
        chosen_V, rejected_V, units_V, rests_V = self._types_4V
        totals_V, counts_V = (units_V + rests_V * UNIT) * UNIT, chosen_V + rejected_V
        median = float(np.median(np.concatenate(self._in_order(self._sample))))
        both_V = np.minimum(chosen_V, rejected_V)
        types = np.argsort(-both_V, kind="stable")[:SHARED_TYPES]
        types = types[both_V[types] > 0]
        if len(types) == 0:
            return Drift(median, self.spread, 0.0, -1, 0.0)
        means = totals_V[types] / counts_V[types]
        worst = int(np.argmax(np.abs(means)))
        shared = float(totals_V[types].sum() / counts_V[types].sum())
        worst_id = int(types[worst])
        return Drift(median, self.spread, shared, worst_id, float(means[worst]), decode([worst_id]))

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """All of it as flat arrays, for a file."""
        samples, pairs = self._in_order(self._sample), list(self.kept.values())
        return {
            "types": self._types_4V.ravel(),
            "shards": np.array(sorted(self._figures)),
            "figures": np.array(self._in_order(self._figures), np.float64).ravel(),
            "sampled_shards": np.array(sorted(self._sample), dtype=np.str_),
            "sample_lengths": np.array([len(each) for each in samples], np.int64),
            "sample": _joined(samples),
            "kept": np.array(list(self.kept), np.int64),
            "kept_lengths": np.array([len(side) for pair in pairs for side in pair], np.int64),
            "kept_scores": _joined([side for pair in pairs for side in pair]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "ScoreTotals":
        """What `as_arrays` gave."""
        made = cls(len(arrays["types"]) // 4)
        made._types_4V = arrays["types"].reshape(4, -1).copy()
        figures = arrays["figures"].reshape(-1, len(ShardFigures._fields)).tolist()
        made._figures = {str(name): ShardFigures(*row) for name, row in zip(arrays["shards"], figures, strict=True)}
        samples = _divided(arrays["sample"], arrays["sample_lengths"])
        made._sample = dict(zip(map(str, arrays["sampled_shards"]), samples, strict=True))
        sides = iter(_divided(arrays["kept_scores"], arrays["kept_lengths"]))
        made.kept = {
            int(pair_id): PairLogps(*pair)
            for pair_id, pair in zip(arrays["kept"], zip(sides, sides, strict=True), strict=True)
        }
        return made

    def _sum(self, figure: str) -> float:
        return float(sum(getattr(each, figure) for each in self._in_order(self._figures)))

    def _in_order(self, by_shard: Mapping[str, Any]) -> list[Any]:
        return [by_shard[name] for name in sorted(by_shard)]


def _in_units(scores_T: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores as whole numbers of units, and the rest as whole numbers of units of units."""
    scaled_T = scores_T.astype(np.float64) / UNIT
    units_T = np.rint(scaled_T)
    return units_T, np.rint((scaled_T - units_T) / UNIT)


def _joined(arrays: Iterable[Floats]) -> Floats:
    return np.concatenate([np.zeros(0, np.float32), *arrays])


def _divided(values: Floats, lengths: NDArray[np.int64]) -> list[Floats]:
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []
