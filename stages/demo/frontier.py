"""How much true reward a policy gained for how much divergence, along its training, over several runs of one recipe."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_DOWN, Context
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Value = float | None


class Point(NamedTuple):
    """One model of a run: after how many steps, and what its samples are worth."""

    step: int
    kl: float
    """from the reference, nats a response, on its own samples"""
    reward: float
    """true reward of a response"""
    tokens: float
    """of a response"""


def budgets(recipes: Iterable[Iterable[Sequence[Point]]]) -> tuple[float, ...]:
    """Two divergences at which to compare recipes by their runs: the furthest that all runs of the middle one reach,
    and half of it; none where it never moved.

    Both are cut to two digits, never rounded up, so that the recipe they are taken from reaches them.
    """
    furthest = sorted(min(max(point.kl for point in path) for path in paths) for paths in recipes)
    middle = furthest[(len(furthest) - 1) // 2]
    two_digits = Context(prec=2, rounding=ROUND_DOWN)
    return tuple(float(two_digits.create_decimal(repr(kl))) for kl in (middle / 2, middle) if kl > 0)


def reward_at(path: Sequence[Point], kl: float) -> float | None:
    """The reward where a run, from its reference on, first reaches a divergence; None if it never does.

    Lines are straight in the square root of KL, in which gains are nearly linear at first (arXiv 2210.10760 section 3).
    """
    for before, after in itertools.pairwise(path):
        if before.kl <= kl <= after.kl:
            start, end = math.sqrt(before.kl), math.sqrt(after.kl)
            share = (math.sqrt(kl) - start) / (end - start) if end > start else 1.0
            return before.reward + share * (after.reward - before.reward)
    return None


def paired(
    ours: Mapping[int, Sequence[Point]],
    theirs: Mapping[int, Sequence[Point]],
    value: Callable[[Sequence[Point]], Value],
) -> dict[int, Value]:
    """By every seed of which both recipes have a run: ours minus theirs; None where a run has no such value."""
    both = {seed: (value(ours[seed]), value(theirs[seed])) for seed in ours if seed in theirs}
    return {seed: None if a is None or b is None else a - b for seed, (a, b) in both.items()}


def envelope(points: Iterable[tuple[float, float]], kl: float) -> float | None:
    """The gain at a divergence of a recipe with several settings, by the KL and gain of each; None beyond the farthest.

    The most that any two of the settings (or one of them and the reference, which has gained 0) say by a straight line
    in the square root of KL.
    """
    ends = [(0.0, 0.0), *((math.sqrt(max(there, 0.0)), gain) for there, gain in points)]
    at = math.sqrt(kl)
    read = [
        y0 + (at - x0) / (x1 - x0) * (y1 - y0)
        for (x0, y0), (x1, y1) in itertools.permutations(ends, 2)
        if x0 < at <= x1
    ]
    return max(read, default=None)


def best_gain(rewards_S: NDArray[np.float64], kl: float) -> float:
    """The most that a policy so far from the reference can gain: that of reference x exp(reward / b), as b has it.

    Of all policies with this mean reward it is the nearest one. By the samples (S,) of the reference, self-normalised.
    """
    low, high = 0.0, 1.0
    while _tilted(rewards_S, high)[0] < kl:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(f"{len(rewards_S):,} samples do not reach {kl} nats")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tilted(rewards_S, middle)[0] < kl else (low, middle)
    return _tilted(rewards_S, high)[1]


def _tilted(rewards_S: NDArray[np.float64], slope: float) -> tuple[float, float]:
    """KL and gain of the samples when each counts exp(slope x reward)."""
    logits_S = slope * (rewards_S - rewards_S.max())
    shares_S = np.exp(logits_S) / np.exp(logits_S).sum()
    logs_S = logits_S - np.log(np.exp(logits_S).sum())
    return float(shares_S @ (logs_S + np.log(len(rewards_S)))), float(shares_S @ rewards_S - rewards_S.mean())
