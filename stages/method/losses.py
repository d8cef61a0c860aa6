"""The objectives as pure functions of per-token log-probs.

Shapes: ``B`` pairs; ``R = 2B`` rows, every chosen response and then every rejected one; ``T`` tokens. ``logps_RT``
holds log pi_theta(y_i | q, y_<i) at the response tokens and 0 elsewhere; ``weights_RT`` the weight of each of them, 0
outside the responses. Every loss is one value a pair; nothing here averages over pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.currency import PairLoss


def selected_reward(logps_RT: Tensor, weights_RT: Tensor, gamma: float) -> Tensor:
    """u(y) = gamma / |selected| * sum over selected of log pi_theta(y_i | q, y_<i), (R,).

    Source: arXiv 2408.13518 Eq. 11, normalised by the number of tokens really selected. With every weight 1 it is
    SimPO's length-normalised reward (arXiv 2405.14734 Eq. 4, beta = gamma).
    """
    return gamma * (logps_RT * weights_RT).sum(-1) / weights_RT.sum(-1)


def sepo(logps_RT: Tensor, weights_RT: Tensor, *, gamma: float, margin: float) -> PairLoss:
    """-log sigmoid(u(y_w) - u(y_l) - margin); arXiv 2408.13518 Eq. 11. No reference model.

    With every weight 1 it is SimPO (arXiv 2405.14734 Eq. 6, its beta = gamma, its gamma = margin).
    """
    chosen_B, rejected_B = selected_reward(logps_RT, weights_RT, gamma).chunk(2)
    margin_B = chosen_B - rejected_B
    return PairLoss(-F.logsigmoid(margin_B - margin), _pair_metrics(chosen_B, rejected_B))


def dpo(logps_RT: Tensor, weights_RT: Tensor, reference_R: Tensor, *, beta: float, sft_weight: float) -> PairLoss:
    """-log sigmoid(beta * (log-ratio of y_w - log-ratio of y_l)); arXiv 2305.18290 Eq. 7.

    Log-probs are summed over tokens. `sft_weight` adds that many times the mean negative log-prob of a chosen token
    (as RPO does, arXiv 2404.19733 Eq. 1), which holds the oracle near the data where DPO alone may drift.

    Args:
        reference_R: log pi_ref(y | q), summed over the tokens of each response.
    """
    sums_R = (logps_RT * weights_RT).sum(-1)
    chosen_B, rejected_B = (beta * (sums_R - reference_R)).chunk(2)
    loss_B = -F.logsigmoid(chosen_B - rejected_B)
    metrics = _pair_metrics(chosen_B, rejected_B)
    if sft_weight > 0:
        # With gamma 1 the reward of a response is the mean log-prob of its tokens.
        sft_B = -selected_reward(logps_RT, weights_RT, gamma=1.0).chunk(2)[0]
        loss_B = loss_B + sft_weight * sft_B
        metrics["sft_loss"] = sft_B.detach()
    return PairLoss(loss_B, metrics)


def sft(logps_RT: Tensor, weights_RT: Tensor) -> PairLoss:
    """Negative log-prob summed over the response; the loop divides by the tokens of the step. One row a pair: R = B."""
    return PairLoss(-(logps_RT * weights_RT).sum(-1), {})


def _pair_metrics(chosen_B: Tensor, rejected_B: Tensor) -> dict[str, Tensor]:
    """Rewards, their margin, and the share of pairs in which chosen wins (a tie counts half)."""
    margin_B = (chosen_B - rejected_B).detach()
    return {
        "accuracy": (torch.sign(margin_B) + 1) / 2,
        "reward_margin": margin_B,
        "chosen_reward": chosen_B.detach(),
        "rejected_reward": rejected_B.detach(),
    }
