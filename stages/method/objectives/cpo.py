"""Contrastive preference optimization."""

import torch.nn.functional as F
from torch import Tensor

from stages.method.rewards import anchors, pair_loss, weighted_sum
from stages.types import PairLoss, Weighted


def cpo(logps_RW: Tensor, batch: Weighted, *, beta: float, sft_weight: float, kl_weight: float) -> PairLoss:
    """-log sigmoid(beta * (log pi(y_w) - log pi(y_l))) + sft_weight * SFT loss of y_w, arXiv 2401.08417 Eq. 3

    DPO with a uniform reference. The SFT loss is a mean over the chosen response's weighted tokens, as in its code over
    all; its weight is 1 there.
    """
    chosen_B, rejected_B = (beta * weighted_sum(logps_RW, batch)).chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=sft_weight, kl_weight=kl_weight)
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B), chosen_B, rejected_B, **terms)
