"""How much true reward a policy gained for how much divergence, along its training, over several runs of one recipe."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_DOWN, Context
from typing import NamedTuple

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
