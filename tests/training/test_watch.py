import math

import pytest
import torch

from stages.training.watch import collapse, linear, response_metrics


def test_log_probs_a_token_and_the_distance_from_the_reference():
    """By hand: the chosen response (-1 - 3) / 2, the rejected one -6 / 1; the third token takes no part."""
    logps_RW = torch.tensor([[-1.0, -3.0, -9.0], [-6.0, -9.0, -9.0]])
    weights_RW = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]])
    metrics = response_metrics(logps_RW, weights_RW, torch.tensor([-5.0, -4.0]), 1)
    assert metrics["chosen_logp"].tolist() == [-2.0]
    assert metrics["rejected_logp"].tolist() == [-6.0]
    # ((-1 - 3 / 2 + 5) / 1.5 + (-6 + 4) / 1) / 2
    assert metrics["log_ratio"].tolist() == pytest.approx([-1 / 6])


def test_without_rejected_responses_or_a_reference_there_is_less():
    metrics = response_metrics(torch.tensor([[-1.0], [-2.0]]), torch.ones(2, 1), None, 2)
    assert {name: values.tolist() for name, values in metrics.items()} == {"chosen_logp": [-1.0, -2.0]}


def test_several_pairs_are_kept_apart():
    logps_RW = torch.tensor([[-1.0], [-2.0], [-3.0], [-4.0]], requires_grad=True)
    metrics = response_metrics(logps_RW, torch.ones(4, 1), torch.zeros(4), 2)
    assert metrics["chosen_logp"].tolist() == [-1.0, -2.0]
    assert metrics["rejected_logp"].tolist() == [-3.0, -4.0]
    assert metrics["log_ratio"].tolist() == [-2.0, -3.0]
    assert not any(values.requires_grad for values in metrics.values())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], False),
        ([-1.0], False),
        ([-1.0, -1.9], False),
        ([-1.0, -2.1], True),
        ([-2.1, -1.0], False),
        ([-1.0] * 6 + [-9.0], True),
        ([-1.0] * 6 + [-3.0], False),  # one odd step of three
        ([-1.0] * 6 + [-2.1] * 3, True),
        ([-1.0] * 3 + [-1.9] * 3, False),
        ([-1.0, math.nan], False),
    ],
)
def test_a_fall_of_more_than_a_nat_is_a_collapse(values, said):
    assert bool(collapse(values)) is said


def test_the_warning_names_both_ends():
    assert "fell from -1.00 to -3.50" in collapse([-1.0, -3.5])


@pytest.mark.parametrize(
    ("margins", "said"),
    [([], False), ([0.1], True), ([2.0, 2.0, 0.3, 0.2, 0.2], True), ([0.0, 0.3, 0.2, 0.25], False), ([-0.5], True)],
)
def test_margins_that_leave_the_loss_linear_are_told(margins, said):
    """The mean of the last three is below a quarter."""
    assert bool(linear(margins)) == said
