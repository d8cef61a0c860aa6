"""SePO's rule."""

from stages.method.selection import Evidence, Selection, ranked, signed


def oracle(
    evidence: Evidence,
    *,
    chosen_ratio: float,
    rejected_ratio: float,
    authors_rule: bool,
) -> Selection:
    """the highest scores of each chosen response, the lowest of each rejected one, arXiv 2408.13518 section 3.3"""
    keys = (signed(row.scores) for row in evidence.rows)
    return ranked(keys, chosen_ratio, rejected_ratio, authors_rule=authors_rule)
