"""Identity preference optimization."""

from torch import Tensor

from stages.method.rewards import log_ratios, pair_loss
from stages.types import PairLoss, Weighted


def ipo(logps_RW: Tensor, batch: Weighted, *, beta: float) -> PairLoss:
    """(log-ratio of y_w - log-ratio of y_l - 1 / (2 beta))^2, arXiv 2310.12036 Eq. 17

    beta is its tau. Log-ratios are means over the tokens, as its authors advised after publication and TRL has it; the
    equation itself has whole responses, that is sums.
    """
    chosen_B, rejected_B = (log_ratios(logps_RW, batch) / batch.weights_RW.sum(-1)).chunk(2)
    return pair_loss((chosen_B - rejected_B - 1 / (2 * beta)) ** 2, beta * chosen_B, beta * rejected_B)
