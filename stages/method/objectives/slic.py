"""Sequence likelihood calibration."""

from torch import Tensor

from stages.method.rewards import anchors, pair_loss, weighted_sum
from stages.types import PairLoss, Weighted


def slic(logps_RW: Tensor, batch: Weighted, *, margin: float, sft_weight: float, kl_weight: float) -> PairLoss:
    """max(0, margin - log pi(y_w) + log pi(y_l)) - sft_weight * log pi(y_w), arXiv 2305.10425

    margin is its delta, sft_weight its lambda; its regularising target is the chosen response here. Both terms are
    summed over the weighted tokens, as there over all.
    """
    sums_R = weighted_sum(logps_RW, batch)
    chosen_B, rejected_B = sums_R.chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=0.0, kl_weight=kl_weight)
    terms["sft_loss"] = (sft_weight, -chosen_B)
    return pair_loss((margin - chosen_B + rejected_B).relu(), chosen_B, rejected_B, **terms)
