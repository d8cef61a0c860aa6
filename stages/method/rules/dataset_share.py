"""A share of the data set's tokens instead of each response's."""

from collections.abc import Sequence

import numpy as np

from stages.method.selection import Evidence, Mask, Selection, by_side, never_empty, select_highest, signed
from stages.types import Floats


def dataset_share(evidence: Evidence, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """the highest scores of all chosen responses taken together, the lowest of all rejected ones

    A response without such a token keeps its best one (its worst, if rejected): a pair is a comparison of two.
    """
    keys = [signed(row.scores) for row in evidence.rows]
    chosen, few = _best_of_all([key.chosen for key in keys], chosen_ratio)
    rejected, more = _best_of_all([key.rejected for key in keys], rejected_ratio)
    empty = few + more
    notes = {"responses with no token in the share, whose best one was taken": empty} if empty else {}
    return Selection(by_side(chosen, rejected), notes)


def _best_of_all(keys: Sequence[Floats], ratio: float) -> tuple[list[Mask], int]:
    mask = select_highest(np.concatenate(keys), ratio)
    ends = np.cumsum([len(key) for key in keys])[:-1]
    return never_empty(np.split(mask, ends), keys)
