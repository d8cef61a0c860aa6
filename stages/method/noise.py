"""How far measured scores are from exact ones, and whether that moves the selection."""

from typing import Final, NamedTuple

import numpy as np

from stages.method.selection import select_by_keys, signed
from stages.types import PairLogps

RATIOS: Final = (0.1, 0.3)
LEAST_AGREEMENT: Final = 0.9


class Noise(NamedTuple):
    """The noise of a scorer, from pairs that were scored twice."""

    pairs: int
    mean: float
    """mean |measured - exact| of a token's score, nats"""
    p99: float
    """its 99th percentile, nats"""
    median_score: float
    """median |exact score|, nats: what the noise is to be compared with"""
    agreement: dict[str, float]
    """selection ratio -> share of selected tokens that agree: those selected both times / those selected either time"""

    @property
    def large(self) -> bool:
        return min(self.agreement.values()) < LEAST_AGREEMENT


def measure_noise(measured: list[PairLogps], exact: list[PairLogps]) -> Noise:
    """Compare scores of the same pairs, token by token, nats."""
    ours, theirs = (np.concatenate([side for scores in some for side in scores]) for some in (measured, exact))
    differences = np.abs(ours - theirs)
    return Noise(
        pairs=len(exact),
        mean=float(differences.mean()),
        p99=float(np.quantile(differences, 0.99)),
        median_score=float(np.median(np.abs(theirs))),
        agreement={str(ratio): _agreement(measured, exact, ratio) for ratio in RATIOS},
    )


def _agreement(measured: list[PairLogps], exact: list[PairLogps], ratio: float) -> float:
    both = either = 0
    for ours, theirs in zip(measured, exact, strict=True):
        selected = (select_by_keys(signed(scores), ratio, ratio) for scores in (ours, theirs))
        for one, other in zip(*selected, strict=True):
            both += int((one & other).sum())
            either += int((one | other).sum())
    return both / either
