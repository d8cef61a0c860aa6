"""Length-regularised direct preference optimization."""

import torch.nn.functional as F
from torch import Tensor

from stages.method.rewards import log_ratios, pair_loss
from stages.types import PairLoss, Weighted


def r_dpo(logps_RW: Tensor, batch: Weighted, *, beta: float, alpha: float) -> PairLoss:
    """DPO with alpha * (|y_w| - |y_l|) added inside the sigmoid, arXiv 2403.19159

    A pair whose chosen response is the longer one counts as partly explained, and pulls less. |y| is the number of
    weighted tokens.
    """
    chosen_B, rejected_B = (beta * log_ratios(logps_RW, batch)).chunk(2)
    chosen_length_B, rejected_length_B = (batch.weights_RW != 0).sum(-1).chunk(2)
    longer_B = alpha * (chosen_length_B - rejected_length_B)
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B + longer_B), chosen_B, rejected_B)
