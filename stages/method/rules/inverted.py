"""The control that should harm."""

from stages.method.selection import Evidence, Selection, ranked
from stages.types import PairLogps


def inverted(
    evidence: Evidence,
    *,
    chosen_ratio: float,
    rejected_ratio: float,
    authors_rule: bool,
) -> Selection:
    """the worst of each chosen response, the best of each rejected one"""
    keys = (PairLogps(-row.scores.chosen, row.scores.rejected) for row in evidence.rows)
    return ranked(keys, chosen_ratio, rejected_ratio, authors_rule=authors_rule)
