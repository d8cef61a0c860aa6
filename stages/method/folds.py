"""Cross-fitting: which of several oracles has not seen a pair (Chernozhukov et al. 2018, definition 3.1)."""

import numpy as np

from stages.types import Ids, TokenPair, hash_ids


def fold_of(prompt_ids: Ids, folds: int) -> int:
    """The fold of a pair, from 0, told by its prompt's ids alone.

    Pairs of one prompt may share a response, and stay together. It does not matter from which data set, or in which
    order, pairs come; those that no oracle saw have a fold as well.
    """
    return hash_ids(np.ascontiguousarray(prompt_ids, "<i4")) % folds


def trains(pair: TokenPair, fold: int, folds: int) -> bool:
    """Whether the oracle of a fold is trained on a pair: on all of the other folds, or, alone, on every one."""
    return folds == 1 or fold_of(pair.prompt_ids, folds) != fold
