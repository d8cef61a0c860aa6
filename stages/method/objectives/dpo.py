"""Direct preference optimization."""

import torch.nn.functional as F
from torch import Tensor

from stages.method.rewards import anchors, log_ratios, pair_loss
from stages.types import PairLoss, Weighted


def dpo(logps_RW: Tensor, batch: Weighted, *, beta: float, sft_weight: float) -> PairLoss:
    """-log sigmoid(beta * (log-ratio of y_w - log-ratio of y_l)), arXiv 2305.18290 Eq. 7

    Log-ratios are summed over tokens. The SFT term is RPO's (arXiv 2404.19733 Eq. 1); it holds the model near the data
    where DPO alone may drift.
    """
    chosen_B, rejected_B = (beta * log_ratios(logps_RW, batch)).chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=sft_weight, kl_weight=0.0)
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B), chosen_B, rejected_B, **terms)
