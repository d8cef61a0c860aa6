"""Small statistics that a summary needs: intervals, and the accuracy of an implicit reward."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.types import PairLogps

Z_95: Final = 1.959964
T_95: Final = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t, by degrees of freedom from 0"""
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


def interval_text(found: Mapping[str, float | None] | None, form: str) -> str:
    """An interval as `Interval.as_json` gave it, as far as there is one."""
    value, low, high = (found[name] if found else None for name in Interval._fields)
    if value is None or low is None or high is None:
        return "" if value is None else format(value, form)
    return format(Interval(value, low, high), form)


def stands_alone(count: int) -> str:
    """What there is to say of the intervals of so many comparisons."""
    return f"; each stands alone: not corrected for {count} comparisons" if count > 1 else ""


class Ratio(NamedTuple):
    """A figure that is a sum over a sum, item by item (a pair, a response); of a mean all denominators are 1."""

    numerators: NDArray[Any]
    denominators: NDArray[Any]

    @property
    def value(self) -> float:
        return float(_quotient(self.numerators.sum(), self.denominators.sum()))

    @property
    def shares(self) -> NDArray[np.float64]:
        """Of each item (N,) alone."""
        shares: NDArray[np.float64] = _quotient(self.numerators, self.denominators)
        return shares


def wilson(successes: float, trials: int) -> Interval:
    """A proportion with Wilson's score interval (1927), which stays honest near 0, near 1 and for few trials."""
    share = successes / trials
    squared = Z_95**2 / trials
    centre = (share + squared / 2) / (1 + squared)
    half = Z_95 / (1 + squared) * math.sqrt(share * (1 - share) / trials + squared / (4 * trials))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(values: NDArray[np.floating] | Sequence[float], quantile: float = Z_95) -> Interval:
    """A mean with its normal-approximation interval; an infinite one for a single value."""
    mean = float(np.mean(values))
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


def student_interval(values: Sequence[float]) -> Interval:
    """A mean of a few values with Student's interval."""
    return mean_interval(values, student_95(len(values) - 1))


def student_95(freedom: int) -> float:
    """The 97.5% quantile of Student's t, to four digits; beyond the table by Abramowitz and Stegun, 26.7.5."""
    if freedom < len(T_95):
        return T_95[freedom]
    return Z_95 + 2.37227 / freedom + 2.8225 / freedom**2 + 2.55585 / freedom**3


def by_cluster(figures: Mapping[str, Ratio], clusters: NDArray[Any]) -> dict[str, Ratio]:
    """The same figures with the items of each cluster (N,), such as a prompt's, added up to one.

    Only what is independent may be drawn again (Davison and Hinkley 1997, section 3.8): a prompt with all its answers,
    not an answer, where prompts differ more than the answers to one of them.
    """
    _, places = np.unique(clusters, return_inverse=True)
    return {name: Ratio(*(np.bincount(places, weights=part) for part in ratio)) for name, ratio in figures.items()}


def bootstrap_intervals(figures: Mapping[str, Ratio], *, seed: int) -> dict[str, Interval]:
    """Each figure with its seeded percentile bootstrap interval; all of them are of the same n items."""
    resampled = _resampled(figures, seed)
    return {name: _interval(ratio.value, resampled[name]) for name, ratio in figures.items()}


def bootstrap_differences(ours: Mapping[str, Ratio], theirs: Mapping[str, Ratio], *, seed: int) -> dict[str, Interval]:
    """Ours minus theirs, of the same items in the same order: the same ones are drawn for both (Efron 1979)."""
    names = [name for name in ours if name in theirs]
    first, second = (_resampled({name: some[name] for name in names}, seed) for some in (ours, theirs))
    return {name: _interval(ours[name].value - theirs[name].value, first[name] - second[name]) for name in names}


def sign_test(differences: NDArray[Any]) -> float:
    """Two-sided p, exactly, of so lopsided a split of independent items (N,) above and below 0 by a fair coin."""
    ups, downs = int((differences > 0).sum()), int((differences < 0).sum())
    count = ups + downs
    ways = tail = 1
    for fewer in range(1, min(ups, downs) + 1):
        ways = ways * (count - fewer + 1) // fewer
        tail += ways
    return min(1.0, 2 * tail / (1 << count))


def _resampled(figures: Mapping[str, Ratio], seed: int) -> dict[str, NDArray[np.float64]]:
    """Every figure of each draw, (RESAMPLES,). The draws depend on the seed and the number of items alone."""
    columns_NM = np.column_stack([part for ratio in figures.values() for part in ratio]).astype(np.float64)
    rng = np.random.default_rng(seed)
    count = len(columns_NM)
    sums = np.stack(
        [np.bincount(rng.integers(0, count, count), minlength=count) @ columns_NM for _ in range(RESAMPLES)]
    )
    return {name: _quotient(sums[:, 2 * at], sums[:, 2 * at + 1]) for at, name in enumerate(figures)}


def _quotient(numerators: Any, denominators: Any) -> Any:
    """0 where there is nothing to divide by, such as the repeated words of an empty answer."""
    return numerators / np.maximum(denominators, 1e-12)


def _interval(value: float, draws: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def implicit_margin(scores: PairLogps) -> float:
    """By how much the implicit reward, the sum of a response's scores, prefers the chosen response."""
    return float(scores.chosen.sum()) - float(scores.rejected.sum())


def preference_accuracy(margins: Sequence[float]) -> Interval:
    """The share of positive margins; one of 0 counts half."""
    return wilson(preferred(margins), len(margins))


def preferred(margins: Sequence[float]) -> float:
    """How many margins are positive; one of 0 counts half."""
    return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins)
