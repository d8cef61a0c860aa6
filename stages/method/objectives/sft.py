"""Supervised fine-tuning."""

from torch import Tensor

from stages.method.rewards import weighted_sum
from stages.types import PairLoss, Weighted


def sft(logps_RW: Tensor, batch: Weighted) -> PairLoss:
    """-log pi(y_w), averaged over the tokens of a step; the rejected responses are left out

    One row a pair, R = B, and one sum a row: the loop divides by the tokens of the step.
    """
    return PairLoss(-weighted_sum(logps_RW, batch), {})
