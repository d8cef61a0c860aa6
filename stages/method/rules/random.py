"""The control that an oracle has to beat."""

from stages.method.selection import Evidence, Selection, random_keys, ranked


def random(
    evidence: Evidence,
    *,
    chosen_ratio: float,
    rejected_ratio: float,
    authors_rule: bool,
) -> Selection:
    """as many tokens as oracle, by chance (seeded)"""
    keys = (random_keys(row.scores, seed=evidence.seed, pair_id=row.pair.pair_id) for row in evidence.rows)
    return ranked(keys, chosen_ratio, rejected_ratio, authors_rule=authors_rule)
