"""Odds ratio preference optimization."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.method.rewards import anchors, pair_loss, weighted_mean
from stages.types import PairLoss, Weighted


def orpo(logps_RW: Tensor, batch: Weighted, *, beta: float, kl_weight: float) -> PairLoss:
    """SFT loss of y_w - beta * log sigmoid(log-odds of y_w - log-odds of y_l), arXiv 2403.07691

    odds = p / (1 - p), where log p is the mean log-prob of a response's tokens; beta is its lambda. The SFT loss is
    the mean negative log-prob of the chosen response's weighted tokens.
    """
    means_R = weighted_mean(logps_RW, batch)
    # log(1 - p) without cancellation; a mean log-prob of 0 has no finite odds.
    odds_R = means_R - torch.log(-torch.expm1(means_R.clamp(max=-1e-6)))
    chosen_odds_B, rejected_odds_B = odds_R.chunk(2)
    chosen_B, rejected_B = (beta * means_R).chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=1.0, kl_weight=kl_weight)
    return pair_loss(-beta * F.logsigmoid(chosen_odds_B - rejected_odds_B), chosen_B, rejected_B, **terms)
