"""A histogram of float32 values in constant memory, fine enough for quantiles: a bin is 0.1% of its value wide."""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.types import Floats

_SHIFT: Final = 13
"""bits of a float32 that are left out: 10 of its mantissa's 23 remain"""
_BINS: Final = 1 << (32 - _SHIFT)


class FineHistogram:
    """Counts values by the first bits of their floats, which rise with the value."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._total = self._squares = 0.0
        self.low = math.inf
        self.high = -math.inf

    def add(self, values: Floats) -> None:
        """Count finite values (at least one)."""
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rising = np.where(bits >> 31, ~bits, bits | 0x80000000)
        self._counts += np.bincount(rising >> _SHIFT, minlength=_BINS)
        self._total += float(np.sum(values, dtype=np.float64))
        self._squares += float(np.square(values, dtype=np.float64).sum())
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def __add__(self, other: "FineHistogram") -> "FineHistogram":
        both = FineHistogram()
        both._counts = self._counts + other._counts
        both._total, both._squares = self._total + other._total, self._squares + other._squares
        both.low, both.high = min(self.low, other.low), max(self.high, other.high)
        return both

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        return self._total / self.count

    @property
    def spread(self) -> float:
        """Standard deviation."""
        return math.sqrt(max(0.0, self._squares / self.count - self.mean**2))

    @property
    def median(self) -> float:
        return self.quantile(0.5)

    def quantile(self, share: float) -> float:
        values, counts = self._filled()
        return _quantile(values, counts, share)

    def distance(self, centre: float, share: float) -> float:
        """The quantile of |value - centre|."""
        values, counts = self._filled()
        distances = np.abs(values - centre)
        order = np.argsort(distances, kind="stable")
        return _quantile(distances[order], counts[order], share)

    def within(self, centre: float, distance: float) -> float:
        """The share of values nearer to a centre than a distance."""
        values, counts = self._filled()
        return float(counts[np.abs(values - centre) < distance].sum() / counts.sum())

    def binned(self, edges: NDArray[Any]) -> NDArray[np.int64]:
        """Counts over coarser bins; what lies outside is counted in the first or the last."""
        values, counts = self._filled()
        inside = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        return np.bincount(inside, weights=counts, minlength=len(edges) - 1).astype(np.int64)

    def _filled(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The middles of the bins that hold something, rising, and how much they hold."""
        filled = np.flatnonzero(self._counts)
        rising = (filled.astype(np.uint32) << _SHIFT) | (1 << (_SHIFT - 1))
        bits = np.where(rising >> 31, rising & 0x7FFFFFFF, ~rising)
        middles = np.clip(bits.astype(np.uint32).view(np.float32).astype(np.float64), self.low, self.high)
        return middles, self._counts[filled]


def _quantile(values: NDArray[Any], counts: NDArray[Any], share: float) -> float:
    """As `numpy.quantile` of rising values that are there so many times."""
    ends = np.cumsum(counts)
    at = share * (int(ends[-1]) - 1)
    low, high = (float(values[np.searchsorted(ends, rank, side="right")]) for rank in (math.floor(at), math.ceil(at)))
    return low + (at - math.floor(at)) * (high - low)
