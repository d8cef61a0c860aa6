"""Token-level direct preference optimization, first variant."""

import torch.nn.functional as F
from torch import Tensor

from stages.method.rewards import log_ratios, pair_loss, sequence_kl
from stages.types import PairLoss, Weighted


def tdpo1(logps_RW: Tensor, batch: Weighted, *, beta: float) -> PairLoss:
    """-log sigmoid(u - delta), u DPO's margin, delta = beta * (KL of y_l - KL of y_w), TDPO1 of arXiv 2404.11999

    KL is the sequential KL(pi_ref || pi_theta): over the whole vocabulary at each position, summed over the *weighted*
    tokens, which are all of the response unless a selection was asked for.
    """
    # delta(y_l) - delta(y_w) is taken apart: each response has the reward beta * (log-ratio + KL).
    chosen_B, rejected_B = (beta * (log_ratios(logps_RW, batch) + sequence_kl(batch))).chunk(2)
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B), chosen_B, rejected_B)
