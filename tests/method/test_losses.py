import math

import pytest
import torch

from stages.method.losses import dpo, selected_reward, sepo, sft
from tests import reference

CHOSEN = [-1.0, -2.0, -0.5, -4.0]
REJECTED = [-3.0, -0.25, -1.5]


def rows(chosen=CHOSEN, rejected=REJECTED, chosen_selected=None, rejected_selected=None):
    """logps_RT and weights_RT of one pair, with two prompt tokens before and padding after the shorter response."""
    width = 2 + max(len(chosen), len(rejected))
    logps, weights = torch.zeros(2, width), torch.zeros(2, width)
    for r, (values, selected) in enumerate([(chosen, chosen_selected), (rejected, rejected_selected)]):
        logps[r, 2 : 2 + len(values)] = torch.tensor(values)
        for place in range(len(values)) if selected is None else selected:
            weights[r, 2 + place] = 1
    return logps, weights


def test_sepo_by_hand():
    """Selected chosen -1 and -0.5, mean -0.75; rejected -3; gamma 2: u = -1.5 and -6; margin 0.5: sigmoid(4)."""
    logps, weights = rows(chosen_selected=[0, 2], rejected_selected=[0])
    loss = sepo(logps, weights, gamma=2.0, margin=0.5)
    assert loss.loss_B.item() == pytest.approx(math.log1p(math.exp(-4.0)))
    assert loss.metrics["chosen_reward"].item() == pytest.approx(-1.5)
    assert loss.metrics["rejected_reward"].item() == pytest.approx(-6.0)
    assert loss.metrics["reward_margin"].item() == pytest.approx(4.5)
    assert loss.metrics["accuracy"].item() == 1.0


@pytest.mark.parametrize(("gamma", "margin"), [(2.1, 0.5), (1.0, 0.0), (2.1, 1.3), (0.3, 0.5)])
def test_sepo_equals_the_reference(gamma, margin):
    logps, weights = rows(chosen_selected=[1, 3], rejected_selected=[1, 2])
    expected = reference.sepo_loss(CHOSEN, REJECTED, [1, 3], [1, 2], gamma, margin)
    assert sepo(logps, weights, gamma=gamma, margin=margin).loss_B.item() == pytest.approx(expected, rel=1e-6)


def test_sepo_on_all_tokens_is_simpo():
    logps, weights = rows()
    expected = reference.simpo_loss(CHOSEN, REJECTED, 2.1, 0.5)
    assert sepo(logps, weights, gamma=2.1, margin=0.5).loss_B.item() == pytest.approx(expected, rel=1e-6)


def test_sepo_gradient_is_minus_gamma_d_times_the_difference_of_means():
    """Paper's Eq. 31-32: dL/dlogp = -gamma d / |selected| on chosen, + on rejected, 0 elsewhere; d = sigmoid(u_l - u_w + margin)."""
    logps, weights = rows(chosen_selected=[0, 2], rejected_selected=[0])
    logps.requires_grad_()
    sepo(logps, weights, gamma=2.0, margin=5.0).loss_B.sum().backward()
    d = 1 / (1 + math.exp(-(-6.0 + 1.5 + 5.0)))
    expected = torch.zeros_like(logps)
    expected[0, 2] = expected[0, 4] = -2.0 * d / 2
    expected[1, 2] = 2.0 * d
    torch.testing.assert_close(logps.grad, expected)


def test_soft_weights_are_normalised_by_their_sum():
    """Weights 1 and 3 on -1 and -2: (-1 - 6) / 4, times gamma 2."""
    reward = selected_reward(torch.tensor([[-1.0, -2.0]]), torch.tensor([[1.0, 3.0]]), 2.0)
    assert reward.item() == pytest.approx(-3.5)


def test_each_pair_has_its_own_loss():
    logps, weights = rows()
    other_logps, other_weights = rows(chosen_selected=[3], rejected_selected=[1])
    stacked = [torch.stack([a[0], b[0], a[1], b[1]]) for a, b in [(logps, other_logps), (weights, other_weights)]]
    both = sepo(*stacked, gamma=2.1, margin=0.5).loss_B
    alone = [sepo(*pair, gamma=2.1, margin=0.5).loss_B for pair in [(logps, weights), (other_logps, other_weights)]]
    torch.testing.assert_close(both, torch.cat(alone))


def test_dpo_is_ln_2_where_policy_and_reference_agree():
    logps, weights = rows()
    loss = dpo(logps, weights, logps.sum(-1), beta=0.1, sft_weight=0.0)
    assert loss.loss_B.item() == pytest.approx(math.log(2))
    assert loss.metrics["accuracy"].item() == 0.5


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_equals_the_reference(beta):
    chosen_reference, rejected_reference = [-1.5, -2.0, -1.0, -3.0], [-1.0, -1.0, -1.0]
    logps, weights = rows()
    references = torch.tensor([sum(chosen_reference), sum(rejected_reference)])
    expected = reference.dpo_loss(CHOSEN, REJECTED, chosen_reference, rejected_reference, beta)
    loss = dpo(logps, weights, references, beta=beta, sft_weight=0.0)
    assert loss.loss_B.item() == pytest.approx(expected, rel=1e-6)
    assert loss.metrics["chosen_reward"].item() == pytest.approx(beta * (-7.5 + 7.5))
    assert loss.metrics["rejected_reward"].item() == pytest.approx(beta * (-4.75 + 3.0))


def test_sft_weight_adds_the_mean_negative_logp_of_chosen():
    """Chosen -1 -2 -0.5 -4: mean 1.875; twice that beside ln 2."""
    logps, weights = rows()
    loss = dpo(logps, weights, logps.sum(-1), beta=0.1, sft_weight=2.0)
    assert loss.loss_B.item() == pytest.approx(math.log(2) + 2 * 1.875)
    assert loss.metrics["sft_loss"].item() == pytest.approx(1.875)


def test_sft_sums_over_weighted_tokens():
    logps, weights = rows(chosen_selected=[0, 1])
    assert sft(logps[:1], weights[:1]).loss_B.tolist() == [3.0]


def test_no_gradient_flows_into_metrics():
    logps, weights = rows()
    loss = sepo(logps.requires_grad_(), weights, gamma=1.0, margin=0.0)
    assert not any(value.requires_grad for value in loss.metrics.values())
