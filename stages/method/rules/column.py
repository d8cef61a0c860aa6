"""Weights from elsewhere."""

from stages.errors import SepoError
from stages.method.selection import Evidence, Selection, as_weights


def column(evidence: Evidence) -> Selection:
    """the weights in the shards' columns chosen_weights and rejected_weights

    Raises:
        SepoError: a row has none.
    """
    weights = []
    for row in evidence.rows:
        if row.weights is None:
            raise SepoError(
                f"pair {row.pair.pair_id} comes without weights, and select column takes nothing else",
                hint="add the columns chosen_weights and rejected_weights (list<float32>) to the shards",
            )
        weights.append(as_weights(*row.weights))
    return Selection(weights)
