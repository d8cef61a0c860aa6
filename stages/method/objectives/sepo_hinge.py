"""The ranking variant of selective preference optimization."""

from torch import Tensor

from stages.method.rewards import anchors, pair_loss, selected_rewards
from stages.types import PairLoss, Weighted


def sepo_hinge(
    logps_RW: Tensor,
    batch: Weighted,
    *,
    gamma: float,
    margin: float,
    sft_weight: float,
    kl_weight: float,
    anchor_margin: bool,
) -> PairLoss:
    """max(0, u(y_l) - u(y_w) + margin), the ranking variant in the authors' code of arXiv 2408.13518

    That code has it, and its SFT term, beside the loss of Eq. 11 (`RRHF()` of its `SelectiveRRHFLoss`), without gamma
    and margin; the paper does not mention it. u is that of Eq. 11. A pair that is ranked well has no gradient.
    """
    rewards_R = selected_rewards(logps_RW, batch, gamma=gamma, anchor_margin=anchor_margin)
    chosen_B, rejected_B = rewards_R.chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=sft_weight, kl_weight=kl_weight)
    return pair_loss((rejected_B - chosen_B + margin).relu(), chosen_B, rejected_B, **terms)
