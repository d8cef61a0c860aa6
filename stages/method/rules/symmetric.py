"""Tokens that stand out, whichever way."""

import numpy as np

from stages.method.selection import Evidence, Selection, ranked
from stages.types import PairLogps


def symmetric(evidence: Evidence, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """in both responses the tokens whose score is farthest from the data set's median, whatever the sign

    The median is that of all response tokens of all pairs.
    """
    median = np.median(np.concatenate([side for row in evidence.rows for side in row.scores]))
    keys = (PairLogps(*(np.abs(side - median) for side in row.scores)) for row in evidence.rows)
    return ranked(keys, chosen_ratio, rejected_ratio, authors_rule=False)
