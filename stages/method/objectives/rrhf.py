"""Rank responses to align with human feedback."""

from torch import Tensor

from stages.method.rewards import anchors, pair_loss, weighted_mean, weighted_sum
from stages.types import PairLoss, Weighted


def rrhf(logps_RW: Tensor, batch: Weighted, *, sft_weight: float, kl_weight: float) -> PairLoss:
    """max(0, p_l - p_w) - sft_weight * log pi(y_w), p mean log-probs, arXiv 2304.05302

    The SFT term is summed over the chosen response's weighted tokens, as there over all; its weight is 1 there.
    """
    chosen_B, rejected_B = weighted_mean(logps_RW, batch).chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=0.0, kl_weight=kl_weight)
    terms["sft_loss"] = (sft_weight, -weighted_sum(logps_RW, batch).chunk(2)[0])
    return pair_loss((rejected_B - chosen_B).relu(), chosen_B, rejected_B, **terms)
