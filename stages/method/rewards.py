"""What objectives are made of: pure functions of per-token log-probs.

Shapes: ``B`` pairs; ``R = 2B`` rows, every chosen response and then every rejected one (``R = B`` where there are only
chosen ones); ``W`` places. ``logps_RW`` holds log pi_theta(y_i | q, y_<i) at the tokens of a response and 0 elsewhere;
the weight of a token that takes no part is 0. Sums and means run over the weighted tokens: with every weight 1, over
the response.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stages.types import PairLoss, Weighted


def weighted_sum(values_RW: Tensor, batch: Weighted) -> Tensor:
    """sum over tokens of weight * value, (R,)."""
    return (values_RW * batch.weights_RW).sum(-1)


def weighted_mean(values_RW: Tensor, batch: Weighted) -> Tensor:
    """The same, divided by the sum of the weights, (R,)."""
    return weighted_sum(values_RW, batch) / batch.weights_RW.sum(-1)


def log_ratios(logps_RW: Tensor, batch: Weighted) -> Tensor:
    """log pi_theta(y | q) - log pi_ref(y | q), summed over the weighted tokens, (R,)."""
    if batch.reference_R is None:
        raise ValueError("this objective needs log-probs of a reference")
    return weighted_sum(logps_RW, batch) - batch.reference_R


def selected_rewards(logps_RW: Tensor, batch: Weighted, *, gamma: float, anchor_margin: bool) -> Tensor:
    """u(y) = gamma / |selected| * sum over selected of log pi_theta(y_i | q, y_<i), (R,).

    Source: arXiv 2408.13518 Eq. 11, normalised by the number of tokens really selected. With every weight 1 it is
    SimPO's length-normalised reward (arXiv 2405.14734 Eq. 4, beta = gamma). With `anchor_margin` log-probs are counted
    from the reference's, log pi_theta - log pi_ref.
    """
    sums_R = log_ratios(logps_RW, batch) if anchor_margin else weighted_sum(logps_RW, batch)
    return gamma * sums_R / batch.weights_RW.sum(-1)


def token_log_ratios(logps_RW: Tensor, batch: Weighted) -> Tensor:
    """log pi_theta(y_i) - log pi_ref(y_i) at every token of a response, selected or not, (R, W), 0 elsewhere."""
    if batch.reference_RW is None:
        raise ValueError("this loss needs the reference's log-prob of every token")
    return logps_RW - batch.reference_RW


def sequence_kl(batch: Weighted) -> Tensor:
    """KL from the reference, summed over the weighted tokens, (R,)."""
    return weighted_sum(_kl(batch), batch)


def pair_loss(loss_B: Tensor, chosen_B: Tensor, rejected_B: Tensor, **terms: tuple[float, Tensor]) -> PairLoss:
    """A loss, metrics of the responses' rewards (B,), and terms (weight, values (B,)) that are added and logged."""
    margin_B = (chosen_B - rejected_B).detach()
    metrics = {
        # A tie counts half.
        "accuracy": (torch.sign(margin_B) + 1) / 2,
        "reward_margin": margin_B,
        "chosen_reward": chosen_B.detach(),
        "rejected_reward": rejected_B.detach(),
    }
    for name, (weight, values_B) in terms.items():
        loss_B = loss_B + weight * values_B
        metrics[name] = values_B.detach()
    return PairLoss(loss_B, metrics)


def anchors(
    logps_RW: Tensor, batch: Weighted, *, sft_weight: float, kl_weight: float
) -> dict[str, tuple[float, Tensor]]:
    """The terms that hold a loss near the data and near the reference, for `pair_loss`; weight 0 leaves one out.

    The SFT term is the mean negative log-prob of the chosen response (as in RPO, arXiv 2404.19733 Eq. 1), of its
    *weighted* tokens: weight 0, as of what a tool said, keeps a token out of every term but KL, which is the mean over
    all tokens of a response, and of the two responses.
    """
    terms = {}
    if sft_weight:
        terms["sft_loss"] = (sft_weight, -weighted_mean(logps_RW, batch).chunk(2)[0])
    if kl_weight:
        chosen_B, rejected_B = (_kl(batch).sum(-1) / batch.needed_RW.sum(-1)).chunk(2)
        terms["kl"] = (kl_weight, (chosen_B + rejected_B) / 2)
    return terms


def held(
    objective: Callable[[Tensor, Weighted], PairLoss],
    logps_RW: Tensor,
    batch: Weighted,
    *,
    kl_selected: float,
    kl_unselected: float,
) -> PairLoss:
    """A pairwise objective, and what holds the policy at the reference: weights of terms, 0 leaves one out.

    A term is half the squared log-ratio of each token, summed over the (un)selected tokens of both responses: to second
    order, and on average over tokens that the reference draws, KL from the reference; it needs no second model.
    """
    loss = objective(logps_RW, batch)
    halves_RW = token_log_ratios(logps_RW, batch).square() / 2
    selected_RW = batch.weights_RW != 0
    loss_B, metrics = loss.loss_B, dict(loss.metrics)
    for name, weight, of_RW in (
        ("kl_selected", kl_selected, selected_RW),
        ("kl_unselected", kl_unselected, ~selected_RW),
    ):
        if weight:
            chosen_B, rejected_B = (halves_RW * of_RW).sum(-1).chunk(2)
            metrics[name] = (chosen_B + rejected_B).detach()
            loss_B = loss_B + weight * (chosen_B + rejected_B)
    return PairLoss(loss_B, metrics)


def with_sequence_kl(
    objective: Callable[[Tensor, Weighted], PairLoss], logps_RW: Tensor, batch: Weighted, *, kl_weight: float
) -> PairLoss:
    """A pairwise objective + kl_weight * KL from the reference, summed over all tokens of both responses."""
    loss = objective(logps_RW, batch)
    chosen_B, rejected_B = _kl(batch).sum(-1).chunk(2)
    kl_B = chosen_B + rejected_B
    return PairLoss(loss.loss_B + kl_weight * kl_B, loss.metrics | {"sequence_kl": kl_B.detach()})


def _kl(batch: Weighted) -> Tensor:
    if batch.kl_RW is None:
        raise ValueError("no KL was computed: the loop needs a reference for that")
    return batch.kl_RW
