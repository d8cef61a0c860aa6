"""Token-level direct preference optimization, second variant."""

import torch.nn.functional as F
from torch import Tensor

from stages.method.rewards import log_ratios, pair_loss, sequence_kl
from stages.types import PairLoss, Weighted


def tdpo(logps_RW: Tensor, batch: Weighted, *, beta: float, alpha: float) -> PairLoss:
    """-log sigmoid(u - alpha * delta), delta with a fixed KL of y_w: TDPO2 of arXiv 2404.11999

    u is DPO's margin, delta = beta * (KL of y_l - stopgrad(KL of y_w)). KL is the sequential KL(pi_ref || pi_theta):
    over the whole vocabulary at each position, summed over the *weighted* tokens, which are all of the response unless
    a selection was asked for.
    """
    chosen_B, rejected_B = (beta * log_ratios(logps_RW, batch)).chunk(2)
    chosen_kl_B, rejected_kl_B = sequence_kl(batch).chunk(2)
    delta_B = beta * (rejected_kl_B - chosen_kl_B.detach())
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B - alpha * delta_B), chosen_B, rejected_B)
