"""Weights instead of a selection."""

import numpy as np

from stages.method.selection import Evidence, Selection, as_weights
from stages.types import Floats


def soft(evidence: Evidence, *, soft_k: float, soft_mu: float, soft_low: float, soft_high: float) -> Selection:
    """all tokens, weighted by k exp(mu clamp(score, L, U)), mu negative in rejected responses, arXiv 2410.04350

    (TIS-DPO.) k matters to objectives that sum over tokens; those that average divide it out.
    """

    def weight(scores: Floats, mu: float) -> Floats:
        weights: Floats = soft_k * np.exp(mu * np.clip(scores, soft_low, soft_high))
        return weights

    rows = [row.scores for row in evidence.rows]
    return Selection([as_weights(weight(row.chosen, soft_mu), weight(row.rejected, -soft_mu)) for row in rows])
