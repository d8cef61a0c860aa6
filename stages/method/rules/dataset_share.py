"""A share of the data set's tokens instead of each response's."""

from collections.abc import Sequence

import numpy as np

from stages.method.selection import (
    CUT_TIES,
    Evidence,
    Mask,
    Selection,
    by_side,
    cuts_ties,
    never_empty,
    select_highest,
    signed,
)
from stages.types import Floats


def dataset_share(evidence: Evidence, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """the highest scores of all chosen responses taken together, the lowest of all rejected ones

    A response without such a token keeps its best one (its worst, if rejected): a pair is a comparison of two.
    """
    keys = [signed(row.scores) for row in evidence.rows]
    chosen, few, some = _best_of_all([key.chosen for key in keys], chosen_ratio)
    rejected, more, others = _best_of_all([key.rejected for key in keys], rejected_ratio)
    empty, ties = few + more, some + others
    notes = {"responses with no token in the share, whose best one was taken": empty} if empty else {}
    return Selection(by_side(chosen, rejected), notes | ({CUT_TIES: ties} if ties else {}))


def _best_of_all(keys: Sequence[Floats], ratio: float) -> tuple[list[Mask], int, int]:
    """Masks a response, how many had no token in the share, and in how many position decided between equal keys."""
    together = np.concatenate(keys)
    mask = select_highest(together, ratio)
    # The one cut is in all responses that have its key, also where all of their tokens are on one side of it.
    cut = together[mask].min() if cuts_ties(together, mask) else np.nan
    ends = np.cumsum([len(key) for key in keys])[:-1]
    masks, empty = never_empty(np.split(mask, ends), keys)
    ties = sum(bool((key == cut).any()) or cuts_ties(key, mask) for key, mask in zip(keys, masks, strict=True))
    return masks, empty, ties
