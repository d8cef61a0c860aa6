"""Selective preference optimization."""

import torch.nn.functional as F
from torch import Tensor

from stages.method.rewards import anchors, pair_loss, selected_rewards
from stages.types import PairLoss, Weighted


def sepo(
    logps_RW: Tensor,
    batch: Weighted,
    *,
    gamma: float,
    margin: float,
    sft_weight: float,
    kl_weight: float,
    anchor_margin: bool,
) -> PairLoss:
    """-log sigmoid(u(y_w) - u(y_l) - margin), arXiv 2408.13518 Eq. 11

    u is gamma times the mean log-prob of the selected tokens. With every weight 1 it is SimPO (arXiv 2405.14734 Eq. 6,
    its beta = gamma, its gamma = margin). The anchors are off in the paper.
    """
    rewards_R = selected_rewards(logps_RW, batch, gamma=gamma, anchor_margin=anchor_margin)
    chosen_B, rejected_B = rewards_R.chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=sft_weight, kl_weight=kl_weight)
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B - margin), chosen_B, rejected_B, **terms)
