"""Drift: what DPO does to tokens that chosen and rejected responses share, which its loss cannot see.

Only the difference of two responses enters DPO's loss, so a token that both contain may move by any amount. A score
that is mostly drift ranks tokens by how common they are, not by how good they are.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from stages.types import Floats, ScoredPair

SHARED_TYPES: Final = 10
LIMIT: Final = 0.5
LIMIT_OF_ONE: Final = 2.0
MEDIAN_SAMPLE: Final = 1_000_000


class Drift(NamedTuple):
    """In nats."""

    median: float
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


class DriftMeter:
    """Adds up scored pairs in constant memory; the median is of the first million scores."""

    def __init__(self, vocabulary_size: int) -> None:
        self._counts = {side: np.zeros(vocabulary_size, dtype=np.int64) for side in ("chosen", "rejected")}
        self._totals = np.zeros(vocabulary_size)
        self._squares = 0.0
        self._sample: list[Floats] = []
        self._sampled = 0

    def add(self, row: ScoredPair) -> None:
        for side, ids, scores in zip(
            self._counts, (row.pair.chosen_ids, row.pair.rejected_ids), row.scores, strict=True
        ):
            np.add.at(self._counts[side], ids, 1)
            np.add.at(self._totals, ids, scores)
            self._squares += float(np.square(scores, dtype=np.float64).sum())
            if self._sampled < MEDIAN_SAMPLE:
                self._sample.append(scores)
                self._sampled += len(scores)

    def read(self, decode: Callable[[list[int]], str]) -> Drift:
        """The drift of what was added so far (at least one pair), its worst token decoded by the tokenizer."""
        counts = self._counts["chosen"] + self._counts["rejected"]
        tokens = int(counts.sum())
        mean = float(self._totals.sum()) / tokens
        spread = math.sqrt(max(0.0, self._squares / tokens - mean**2))
        median = float(np.median(np.concatenate(self._sample)))
        both = np.minimum(self._counts["chosen"], self._counts["rejected"])
        types = np.argsort(-both, kind="stable")[:SHARED_TYPES]
        types = types[both[types] > 0]
        if len(types) == 0:
            return Drift(median, spread, 0.0, -1, 0.0)
        means = self._totals[types] / counts[types]
        worst = int(np.argmax(np.abs(means)))
        shared = float(self._totals[types].sum() / counts[types].sum())
        worst_id = int(types[worst])
        return Drift(median, spread, shared, worst_id, float(means[worst]), decode([worst_id]))
