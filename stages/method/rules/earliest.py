"""A control that looks at positions alone."""

import numpy as np

from stages.method.selection import Evidence, Selection, ranked
from stages.types import PairLogps


def earliest(evidence: Evidence, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """the first tokens of each response"""
    keys = (PairLogps(*(-np.arange(len(side), dtype=np.float32) for side in row.scores)) for row in evidence.rows)
    return ranked(keys, chosen_ratio, rejected_ratio, authors_rule=False)
