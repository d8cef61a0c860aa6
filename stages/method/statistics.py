"""Small statistics that a summary needs: intervals, and the accuracy of an implicit reward."""

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.currency import PairLogps

Z_95: Final = 1.959964
RESAMPLES: Final = 1000


class Interval(NamedTuple):
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """For a manifest; a bound that is not finite (of a single value) becomes null."""
        return {name: bound if math.isfinite(bound) else None for name, bound in self._asdict().items()}

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def wilson(successes: float, trials: int) -> Interval:
    """A proportion with Wilson's score interval (1927), which stays honest near 0, near 1 and for few trials."""
    share = successes / trials
    squared = Z_95**2 / trials
    centre = (share + squared / 2) / (1 + squared)
    half = Z_95 / (1 + squared) * math.sqrt(share * (1 - share) / trials + squared / (4 * trials))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(values: NDArray[np.floating]) -> Interval:
    """A mean with its normal-approximation interval; an infinite one for a single value."""
    mean = float(np.mean(values))
    half = Z_95 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


def bootstrap_ratio(
    numerators: NDArray[np.floating] | NDArray[np.integer],
    denominators: NDArray[np.floating] | NDArray[np.integer],
    *,
    seed: int,
) -> Interval:
    """Sum over sum, such as tokens found / tokens planted, with a seeded percentile bootstrap over the n items.

    The items (pairs, responses) are drawn, not the tokens in them, which are not independent.
    """
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(numerators), len(numerators)) for _ in range(RESAMPLES))
    ratios = [numerators[draw].sum() / max(denominators[draw].sum(), 1e-12) for draw in draws]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(numerators.sum() / denominators.sum()), float(low), float(high))


def preference_accuracy(scores: Iterable[PairLogps]) -> Interval:
    """How often the implicit reward (the sum of a response's scores) prefers the chosen response; a tie counts half."""
    margins = np.array([float(pair.chosen.sum()) - float(pair.rejected.sum()) for pair in scores])
    return wilson(float((margins > 0).sum() + 0.5 * (margins == 0).sum()), len(margins))
