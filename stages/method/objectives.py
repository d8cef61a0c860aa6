"""The objectives of `sepo train-policy`: losses on the log-probs of weighted tokens, one function each.

Shapes and terms are those of `stages.method.rewards`; names, options and needs stand in `stages.registry`. The first
line of a docstring is the formula and its source.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.method.rewards import (
    anchors,
    log_ratios,
    pair_loss,
    selected_rewards,
    sequence_kl,
    token_log_ratios,
    weighted_mean,
    weighted_sum,
)
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


simpo = sepo
"""arXiv 2405.14734 Eq. 6 is the same loss on all tokens: its beta is gamma here, its gamma the margin."""


def confpo(logps_RW: Tensor, batch: Weighted, *, gamma: float, margin: float) -> PairLoss:
    """SimPO on the tokens whose probability is below the mean over their response, arXiv 2506.08712

    The threshold moves with the policy, which is asked anew in every step. As in its authors' code, the mean is one of
    probabilities, and a pair with a response that has no token below it (a single one, say) counts nothing.
    """
    probabilities_RW = logps_RW.detach().exp()
    below_RW = batch.weights_RW * (probabilities_RW < weighted_mean(probabilities_RW, batch)[:, None])
    counts_R = below_RW.sum(-1)
    means_R = (logps_RW * below_RW).sum(-1) / counts_R.where(counts_R > 0, 1.0)
    chosen_B, rejected_B = (gamma * means_R).chunk(2)
    counted_B = (counts_R > 0).view(2, -1).all(0)
    loss = pair_loss(-F.logsigmoid(chosen_B - rejected_B - margin) * counted_B, chosen_B, rejected_B)
    share_R = counts_R / batch.weights_RW.sum(-1)
    return PairLoss(loss.loss_B, loss.metrics | {"below_mean": share_R.view(2, -1).mean(0)})


def simper(logps_RW: Tensor, batch: Weighted) -> PairLoss:
    """p_l - p_w, p = exp of the mean log-prob of a response, its inverse perplexity, arXiv 2502.00883

    No reference and nothing to tune; p is the reward that is logged.
    """
    chosen_B, rejected_B = weighted_mean(logps_RW, batch).exp().chunk(2)
    return pair_loss(rejected_B - chosen_B, chosen_B, rejected_B)


def dpo(logps_RW: Tensor, batch: Weighted, *, beta: float, sft_weight: float) -> PairLoss:
    """-log sigmoid(beta * (log-ratio of y_w - log-ratio of y_l)), arXiv 2305.18290 Eq. 7

    Log-ratios are summed over tokens. The SFT term is RPO's (arXiv 2404.19733 Eq. 1); it holds the model near the data
    where DPO alone may drift.
    """
    chosen_B, rejected_B = (beta * log_ratios(logps_RW, batch)).chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=sft_weight, kl_weight=0.0)
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B), chosen_B, rejected_B, **terms)


def ipo(logps_RW: Tensor, batch: Weighted, *, beta: float) -> PairLoss:
    """(log-ratio of y_w - log-ratio of y_l - 1 / (2 beta))^2, arXiv 2310.12036 Eq. 17

    beta is its tau. Log-ratios are means over the tokens, as its authors advised after publication and TRL has it; the
    equation itself has whole responses, that is sums.
    """
    chosen_B, rejected_B = (log_ratios(logps_RW, batch) / batch.weights_RW.sum(-1)).chunk(2)
    return pair_loss((chosen_B - rejected_B - 1 / (2 * beta)) ** 2, beta * chosen_B, beta * rejected_B)


def r_dpo(logps_RW: Tensor, batch: Weighted, *, beta: float, alpha: float) -> PairLoss:
    """DPO with alpha * (|y_w| - |y_l|) added inside the sigmoid, arXiv 2403.19159

    A pair whose chosen response is the longer one counts as partly explained, and pulls less. |y| is the number of
    weighted tokens.
    """
    chosen_B, rejected_B = (beta * log_ratios(logps_RW, batch)).chunk(2)
    chosen_length_B, rejected_length_B = (batch.weights_RW != 0).sum(-1).chunk(2)
    longer_B = alpha * (chosen_length_B - rejected_length_B)
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B + longer_B), chosen_B, rejected_B)


def tdpo1(logps_RW: Tensor, batch: Weighted, *, beta: float) -> PairLoss:
    """-log sigmoid(u - delta), u DPO's margin, delta = beta * (KL of y_l - KL of y_w), TDPO1 of arXiv 2404.11999

    KL is the sequential KL(pi_ref || pi_theta): over the whole vocabulary at each position, summed over the *weighted*
    tokens, which are all of the response unless a selection was asked for.
    """
    # delta(y_l) - delta(y_w) is taken apart: each response has the reward beta * (log-ratio + KL).
    chosen_B, rejected_B = (beta * (log_ratios(logps_RW, batch) + sequence_kl(batch))).chunk(2)
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B), chosen_B, rejected_B)


def tdpo(logps_RW: Tensor, batch: Weighted, *, beta: float, alpha: float) -> PairLoss:
    """-log sigmoid(u - alpha * delta), delta with a fixed KL of y_w: TDPO2 of arXiv 2404.11999

    u is DPO's margin, delta = beta * (KL of y_l - stopgrad(KL of y_w)), KL as in TDPO1.
    """
    chosen_B, rejected_B = (beta * log_ratios(logps_RW, batch)).chunk(2)
    chosen_kl_B, rejected_kl_B = sequence_kl(batch).chunk(2)
    delta_B = beta * (rejected_kl_B - chosen_kl_B.detach())
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B - alpha * delta_B), chosen_B, rejected_B)


def cpo(logps_RW: Tensor, batch: Weighted, *, beta: float, sft_weight: float, kl_weight: float) -> PairLoss:
    """-log sigmoid(beta * (log pi(y_w) - log pi(y_l))) + sft_weight * SFT loss of y_w, arXiv 2401.08417 Eq. 3

    DPO with a uniform reference. The SFT loss is a mean over the chosen response's weighted tokens, as in its code over
    all; its weight is 1 there.
    """
    chosen_B, rejected_B = (beta * weighted_sum(logps_RW, batch)).chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=sft_weight, kl_weight=kl_weight)
    return pair_loss(-F.logsigmoid(chosen_B - rejected_B), chosen_B, rejected_B, **terms)


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


def rrhf(logps_RW: Tensor, batch: Weighted, *, sft_weight: float, kl_weight: float) -> PairLoss:
    """max(0, p_l - p_w) - sft_weight * log pi(y_w), p mean log-probs, arXiv 2304.05302

    The SFT term is summed over the chosen response's weighted tokens, as there over all; its weight is 1 there.
    """
    chosen_B, rejected_B = weighted_mean(logps_RW, batch).chunk(2)
    terms = anchors(logps_RW, batch, sft_weight=0.0, kl_weight=kl_weight)
    terms["sft_loss"] = (sft_weight, -weighted_sum(logps_RW, batch).chunk(2)[0])
    return pair_loss((rejected_B - chosen_B).relu(), chosen_B, rejected_B, **terms)


def regress(logps_RW: Tensor, batch: Weighted, *, scale: float) -> PairLoss:
    """sum over all tokens of both responses of (log pi - log pi_ref - scale * score)^2, score 0 where not selected

    What the policy is to become, pi_ref * exp(scale * score), is said token by token: nothing is compared, and what is
    not selected is held where it was. A token's weight multiplies its score. The rewards are log-ratios of responses.
    """
    if batch.scores_RW is None:
        raise ValueError("this objective needs the score of every token")
    ratios_RW = token_log_ratios(logps_RW, batch)
    errors_RW = ratios_RW - scale * batch.weights_RW * batch.scores_RW
    chosen_loss_B, rejected_loss_B = errors_RW.square().sum(-1).chunk(2)
    return pair_loss(chosen_loss_B + rejected_loss_B, *ratios_RW.sum(-1).chunk(2))


def sft(logps_RW: Tensor, batch: Weighted) -> PairLoss:
    """-log pi(y_w), averaged over the tokens of a step; the rejected responses are left out

    One row a pair, R = B, and one sum a row: the loop divides by the tokens of the step.
    """
    return PairLoss(-weighted_sum(logps_RW, batch), {})
