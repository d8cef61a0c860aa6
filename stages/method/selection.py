"""Which tokens of a response supervise the policy. Pure functions of one response's scores; (n,) in, (n,) bool out."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.currency import Floats, PairLogps

Mask = NDArray[np.bool_]

_ROUNDING: Final = 1e-9
"""0.1 * 30 is 3.0000000000000004 in floating point; its ceiling is meant to be 3."""


def selected_count(length: int, ratio: float) -> int:
    """ceil(ratio * length), at least one token."""
    return max(1, math.ceil(ratio * length - _ROUNDING))


def select_highest(scores: Floats, ratio: float) -> Mask:
    """The share `ratio` of tokens with the highest scores; ties go to the earlier token."""
    mask = np.zeros(len(scores), dtype=bool)
    mask[np.argsort(-scores, kind="stable")[: selected_count(len(scores), ratio)]] = True
    return mask


def select_lowest(scores: Floats, ratio: float) -> Mask:
    """The share `ratio` of tokens with the lowest scores; ties go to the earlier token."""
    return select_highest(-scores, ratio)


def select_key_tokens(scores: PairLogps, chosen_ratio: float, rejected_ratio: float) -> tuple[Mask, Mask]:
    """SePO's rule: the best of the chosen response, the worst of the rejected one (arXiv 2408.13518 section 3.3).

    Returns:
        masks over the chosen tokens (C,) and over the rejected ones (J,).
    """
    return select_highest(scores.chosen, chosen_ratio), select_lowest(scores.rejected, rejected_ratio)


def select_random(
    scores: PairLogps, chosen_ratio: float, rejected_ratio: float, *, seed: int, pair_id: int
) -> tuple[Mask, Mask]:
    """As many tokens as SePO's rule would take, drawn by chance: the control that an oracle has to beat.

    The draw depends on the seed and the pair alone, not on the order in which pairs are read.
    """
    rng = np.random.default_rng([seed, pair_id])
    chosen = rng.permutation(len(scores.chosen)).astype(np.float32)
    rejected = rng.permutation(len(scores.rejected)).astype(np.float32)
    return select_key_tokens(PairLogps(chosen, rejected), chosen_ratio, rejected_ratio)
