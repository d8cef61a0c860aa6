"""Every objective by hand and against the slow obvious truth; a new one is a row in `OPTIONS`."""

import math
from functools import partial

import pytest
import torch

from stages.method.objectives import sft
from stages.method.rewards import held, with_sequence_kl
from stages.registry import OBJECTIVES
from stages.types import Batch
from tests import reference
from tests.reference import Side

dpo, sepo, sepo_hinge, tdpo, tdpo1 = (
    OBJECTIVES[name].load() for name in ("dpo", "sepo", "sepo-hinge", "tdpo", "tdpo1")
)

CHOSEN = [-1.0, -2.0, -0.5, -4.0]
REJECTED = [-3.0, -0.25, -1.5]
ANCHORED = {"gamma": 1.3, "margin": 0.7, "sft_weight": 0.4, "kl_weight": 0.9, "anchor_margin": True}
OPTIONS = {
    "sepo": ANCHORED,
    "sepo-hinge": ANCHORED,
    "simpo": ANCHORED,
    "confpo": {"gamma": 1.3, "margin": 0.7},
    "simper": {},
    "dpo": {"beta": 0.5, "sft_weight": 0.4},
    "ipo": {"beta": 0.4},
    "rrhf": {"sft_weight": 0.3, "kl_weight": 0.9},
    "tdpo1": {"beta": 0.5},
    "tdpo": {"beta": 0.5, "alpha": 0.3},
    "orpo": {"beta": 0.6, "kl_weight": 0.9},
    "cpo": {"beta": 0.5, "sft_weight": 0.4, "kl_weight": 0.9},
    "slic": {"margin": 2.0, "sft_weight": 0.4, "kl_weight": 0.9},
    "r-dpo": {"beta": 0.5, "alpha": 0.3},
    "regress": {"scale": 0.7},
}
"""pairwise objective -> a value of every option, none of them its default"""


def batch_of(chosen, rejected, every_token=False):
    """logps and batch of one pair of `Side`s, with two prompt places before and padding after the shorter response."""
    width = 2 + max(len(chosen.logps), len(rejected.logps))
    logps, weights, kl, theirs, scores = torch.zeros(5, 2, width)
    read = torch.zeros(2, width, dtype=torch.bool)
    for r, side in enumerate((chosen, rejected)):
        places = slice(2, 2 + len(side.logps))
        logps[r, places] = torch.tensor(side.logps)
        weights[r, places] = torch.tensor(side.weights)
        kl[r, places] = torch.tensor(side.kl)
        theirs[r, places] = torch.tensor(side.reference)
        scores[r, places] = torch.tensor(side.scores)
        read[r, places] = True if every_token else weights[r, places] != 0
    sums = torch.tensor([reference.total(side.reference, side.weights) for side in (chosen, rejected)])
    return logps, Batch(None, None, weights, sums, read, kl, theirs, scores)


def selected(logps, places):
    return Side(logps, weights=[float(place in places) for place in range(len(logps))])


CASES = {
    "wrong": (Side(REJECTED), Side(CHOSEN)),
    "right": (Side([-0.5, -0.25, -0.3]), Side([-2.0, -1.5, -4.0, -3.0])),
    "with a reference": (Side(CHOSEN, [-1.5, -2.5, -1.0, -3.0], kl=[0.1, 0.0, 0.4, 2.0]), Side(REJECTED, [-1.0] * 3, kl=[0.3, 0.2, 1.0])),
    "selected": (
        Side(CHOSEN, [-1.5, -2.5, -1.0, -3.0], [1.0, 0.0, 1.0, 0.0], [0.1, 0.5, 0.4, 2.0], [0.3, 0.1, -0.2, 0.9]),
        Side(REJECTED, [-1.0, -0.5, -2.0], [0.0, 1.0, 1.0], [0.3, 0.2, 1.0], [-0.4, 0.2, 0.6]),
    ),
    "weighted": (
        Side(CHOSEN, [-1.5, -2.5, -1.0, -3.0], [0.5, 0.0, 2.0, 3.0], [0.1, 0.5, 0.4, 2.0], [0.3, 0.1, -0.2, 0.9]),
        Side(REJECTED, [-1.0, -0.5, -2.0], [0.1, 1.0, 1.5], [0.3, 0.2, 1.0], [-0.4, 0.2, 0.6]),
    ),
}  # fmt: skip


def test_every_pairwise_objective_has_a_case_with_every_option():
    pairwise = {name: set(entry.options) for name, entry in OBJECTIVES.items() if name != "sft"}
    assert {name: set(options) for name, options in OPTIONS.items()} == pairwise


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_objective_equals_its_slow_self(name, case):
    sides = CASES[case]
    logps, batch = batch_of(*sides, every_token=True)
    loss = OBJECTIVES[name].load()(logps, batch, **OPTIONS[name])
    expected = getattr(reference, name.replace("-", "_"))(*sides, **OPTIONS[name])
    assert loss.loss_B.item() == pytest.approx(expected, rel=2e-6, abs=1e-6)


OFF = {"sft_weight": 0.0, "kl_weight": 0.0}
DEFAULTS = {
    "sepo": {"gamma": 2.1, "margin": 0.5, **OFF, "anchor_margin": False},
    "sepo-hinge": {"gamma": 1.0, "margin": 0.0, **OFF, "anchor_margin": False},
    "simpo": {"gamma": 2.1, "margin": 0.5, **OFF, "anchor_margin": False},
    "confpo": {"gamma": 2.1, "margin": 0.5},
    "simper": {},
    "dpo": {"beta": 0.1, "sft_weight": 0.0},
    "ipo": {"beta": 0.1},
    "rrhf": {"sft_weight": 1.0, "kl_weight": 0.0},
    "tdpo1": {"beta": 0.1},
    "tdpo": {"beta": 0.1, "alpha": 0.5},
    "orpo": {"beta": 0.1, "kl_weight": 0.0},
    "cpo": {"beta": 0.1, "sft_weight": 1.0, "kl_weight": 0.0},
    "slic": {"margin": 1.0, "sft_weight": 1.0, "kl_weight": 0.0},
    "r-dpo": {"beta": 0.1, "alpha": 0.01},
    "regress": {"scale": 1.0},
    "sft": {},
}


def test_the_defaults_are_those_of_the_papers():
    assert {name: entry.options for name, entry in OBJECTIVES.items()} == DEFAULTS


@pytest.mark.parametrize("name", OPTIONS)
def test_without_options_the_defaults_are_taken(name):
    logps, batch = batch_of(*CASES["weighted"], every_token=True)
    function = OBJECTIVES[name].load()
    expected = getattr(reference, name.replace("-", "_"))(*CASES["weighted"], **DEFAULTS[name])
    assert function(logps, batch).loss_B.item() == pytest.approx(expected, rel=2e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # Means -1.875 and -1.583: u = gamma x mean.
        ("sepo", {"gamma": 1.0, "margin": 0.0}, math.log1p(math.exp(1.875 - 19 / 12))),
        ("simpo", {"gamma": 2.0, "margin": 0.5}, math.log1p(math.exp(2 * (1.875 - 19 / 12) + 0.5))),
        # Probabilities 0.37 0.14 0.61 0.02, mean 0.28: -2 and -4; 0.05 0.78 0.22, mean 0.35: -3 and -1.5. u -6 and -4.5.
        ("confpo", {"gamma": 2.0, "margin": 0.5}, math.log1p(math.exp(2.0))),
        ("simper", {}, math.exp(-19 / 12) - math.exp(-1.875)),
        ("sepo-hinge", {}, 1.875 - 19 / 12),
        # Sums -7.5 and -4.75; the reference's are 0.
        ("dpo", {"beta": 0.1}, math.log1p(math.exp(0.275))),
        ("ipo", {"beta": 0.5}, (-1.875 + 19 / 12 - 1) ** 2),
        ("rrhf", {"sft_weight": 1.0}, 1.875 - 19 / 12 + 7.5),
        ("cpo", {"beta": 0.1, "sft_weight": 1.0}, math.log1p(math.exp(0.275)) + 1.875),
        ("slic", {"margin": 1.0, "sft_weight": 1.0}, 1 + 7.5 - 4.75 + 7.5),
        # One token more on the chosen side.
        ("r-dpo", {"beta": 0.1, "alpha": 0.2}, math.log1p(math.exp(0.275 - 0.2))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_by_hand(name, options, expected):
    logps, batch = batch_of(Side(CHOSEN), Side(REJECTED))
    assert OBJECTIVES[name].load()(logps, batch, **options).loss_B.item() == pytest.approx(expected, rel=1e-6)


def test_orpo_by_hand():
    """Mean log-probs ln 0.5 and ln 0.2: odds 1 and 0.25, their ratio 4; sigmoid(ln 4) = 0.8."""
    logps, batch = batch_of(Side([math.log(0.5)] * 3), Side([math.log(0.2)] * 2))
    loss = OBJECTIVES["orpo"].load()(logps, batch, beta=0.5)
    assert loss.loss_B.item() == pytest.approx(math.log(2) - 0.5 * math.log(0.8), rel=1e-6)


def test_regress_by_hand():
    """Log-ratios 0.5 and -1, scores 1 and 2, scale 0.5, the second token not selected: (0.5 - 0.5)^2 + (-1 - 0)^2; of
    the rejected one 0.25 and score -0.5: (0.25 + 0.25)^2. It is 0 where the policy is what the scores say."""
    chosen = Side([-1.0, -3.0], [-1.5, -2.0], [1.0, 0.0], scores=[1.0, 2.0])
    logps, batch = batch_of(chosen, Side([-2.0], [-2.25], scores=[-0.5]), every_token=True)
    loss = OBJECTIVES["regress"].load()(logps, batch, scale=0.5)
    assert loss.loss_B.item() == pytest.approx(1.25)
    assert loss.metrics["chosen_reward"].item() == pytest.approx(-0.5)
    reached = batch.reference_RW + 0.5 * batch.weights_RW * batch.scores_RW
    assert OBJECTIVES["regress"].load()(reached, batch, scale=0.5).loss_B.item() == 0.0


def test_what_holds_the_policy_by_hand():
    """Log-ratios 0.5, 0.5, 0.5, -1 (selected: the first and the third) and -2, 0.25, 0.5 (the last two): halves of the
    squares are 0.125 + 0.125 and 0.03125 + 0.125 where selected, 0.125 + 0.5 and 2 elsewhere; padding counts nothing."""
    logps, batch = batch_of(*CASES["selected"], every_token=True)
    alone = dpo(logps, batch, beta=0.5)
    for weights, more in (((2.0, 0.0), 0.8125), ((0.0, 3.0), 7.875), ((2.0, 3.0), 8.6875)):
        loss = held(partial(dpo, beta=0.5), logps, batch, kl_selected=weights[0], kl_unselected=weights[1])
        assert loss.loss_B.item() == pytest.approx(alone.loss_B.item() + more, rel=1e-6)
        assert loss.metrics["reward_margin"] == alone.metrics["reward_margin"]
    assert [loss.metrics[name].item() for name in ("kl_selected", "kl_unselected")] == pytest.approx([0.40625, 2.625])


def test_a_sequence_kl_is_added_up_over_all_tokens_of_both_responses():
    """0.1 + 0.5 + 0.4 + 2 and 0.3 + 0.2 + 1, selected or not."""
    logps, batch = batch_of(*CASES["selected"], every_token=True)
    loss = with_sequence_kl(partial(dpo, beta=0.5), logps, batch, kl_weight=0.5)
    assert loss.metrics["sequence_kl"].item() == pytest.approx(4.5)
    assert loss.loss_B.item() == pytest.approx(dpo(logps, batch, beta=0.5).loss_B.item() + 2.25)


def test_tdpo_by_hand():
    """Log-ratios 0; KL 3 of chosen, 1 of rejected; beta 0.5: delta = -1, so sigmoid(1), and with alpha 0.5 sigmoid(0.5)."""
    logps, batch = batch_of(Side([-1.0, -1.0], [-1.0, -1.0], kl=[1.0, 2.0]), Side([-2.0], [-2.0], kl=[1.0]))
    assert tdpo1(logps, batch, beta=0.5).loss_B.item() == pytest.approx(math.log1p(math.exp(-1.0)))
    assert tdpo(logps, batch, beta=0.5, alpha=0.5).loss_B.item() == pytest.approx(math.log1p(math.exp(-0.5)))


@pytest.mark.parametrize(("objective", "options", "chosen"), [(tdpo1, {}, -1), (tdpo, {"alpha": 0.5}, 0)])
def test_tdpo2_stops_the_gradient_of_the_chosen_kl(objective, options, chosen):
    """dL/dKL = -+ beta (alpha) sigmoid(-argument): falls with the chosen KL (TDPO1), rises with the rejected one."""
    logps, batch = batch_of(*CASES["with a reference"])
    batch.kl_RW.requires_grad_()
    objective(logps, batch, beta=0.5, **options).loss_B.sum().backward()
    found = torch.sign(torch.zeros(2, 6) if batch.kl_RW.grad is None else batch.kl_RW.grad)
    assert found.tolist() == [[0, 0, *[chosen] * 4], [0, 0, 1, 1, 1, 0]]


def test_a_kl_that_was_not_computed_is_a_bug_of_the_caller():
    logps, batch = batch_of(Side(CHOSEN), Side(REJECTED))
    with pytest.raises(ValueError, match="no KL was computed"):
        tdpo(logps, batch._replace(kl_RW=None))


def test_sepo_reports_its_rewards():
    """Selected chosen -1 and -0.5, mean -0.75; rejected -3; gamma 2: u = -1.5 and -6; margin 0.5: sigmoid(4)."""
    logps, batch = batch_of(selected(CHOSEN, [0, 2]), selected(REJECTED, [0]))
    loss = sepo(logps, batch, gamma=2.0, margin=0.5)
    assert loss.loss_B.item() == pytest.approx(math.log1p(math.exp(-4.0)))
    assert loss.metrics["chosen_reward"].item() == pytest.approx(-1.5)
    assert loss.metrics["rejected_reward"].item() == pytest.approx(-6.0)
    assert loss.metrics["reward_margin"].item() == pytest.approx(4.5)
    assert loss.metrics["accuracy"].item() == 1.0


REWARDS = {
    "sepo": (-2.1 * 1.875, -2.1 * 19 / 12), "simpo": (-2.1 * 1.875, -2.1 * 19 / 12), "sepo-hinge": (-1.875, -19 / 12),
    "dpo": (0.1 * -6.5, 0.1 * -4.25), "ipo": (0.1 * -1.625, 0.1 * -4.25 / 3), "r-dpo": (0.1 * -6.5, 0.1 * -4.25),
    "tdpo": (0.1 * -6.5, 0.1 * -4.25), "tdpo1": (0.1 * (-6.5 + 2), 0.1 * (-4.25 + 1.5)), "rrhf": (-1.875, -19 / 12),
    "confpo": (-6.3, -4.725), "simper": (math.exp(-1.875), math.exp(-19 / 12)), "orpo": (-0.1875, -0.1 * 19 / 12), "cpo": (-0.75, -0.475), "slic": (-7.5, -4.75),
    "regress": (-6.5, -4.25),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_the_rewards_that_are_logged(name):
    sides = Side(CHOSEN, [-1.0, 0, 0, 0], kl=[0.5] * 4), Side(REJECTED, [-0.5, 0, 0], kl=[0.5] * 3)
    logps, batch = batch_of(*sides)
    metrics = OBJECTIVES[name].load()(logps, batch).metrics
    found = (metrics["chosen_reward"].item(), metrics["rejected_reward"].item())
    assert found == pytest.approx(REWARDS[name])
    assert metrics["reward_margin"].item() == pytest.approx(found[0] - found[1], abs=1e-6)


def test_confpo_counts_nothing_of_a_pair_without_a_token_below_the_mean():
    """A single token is its own mean. Where there is one, only it has a gradient, and the threshold none."""
    logps, batch = batch_of(Side(CHOSEN), Side([-1.0]))
    logps.requires_grad_()
    loss = OBJECTIVES["confpo"].load()(logps, batch)
    loss.loss_B.sum().backward()
    assert loss.loss_B.item() == 0
    assert not logps.grad.any()
    logps, batch = batch_of(Side(CHOSEN), Side([-1.0, -2.0, -2.0]))
    logps.requires_grad_()
    loss = OBJECTIVES["confpo"].load()(logps, batch)
    loss.loss_B.sum().backward()
    assert torch.sign(logps.grad[:, 2:6]).tolist() == [[0, -1, 0, -1], [0, 1, 1, 0]]
    assert loss.metrics["below_mean"].item() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_sepo_on_all_tokens_is_simpo():
    logps, batch = batch_of(Side(CHOSEN), Side(REJECTED))
    expected = reference.simpo_loss(CHOSEN, REJECTED, 2.1, 0.5)
    assert sepo(logps, batch, gamma=2.1, margin=0.5).loss_B.item() == pytest.approx(expected, rel=1e-6)


def test_sepo_gradient_is_minus_gamma_d_times_the_difference_of_means():
    """Paper's Eq. 31-32: dL/dlogp = -gamma d / |selected| on chosen, + on rejected, 0 elsewhere; d = sigmoid(u_l - u_w + margin)."""
    logps, batch = batch_of(selected(CHOSEN, [0, 2]), selected(REJECTED, [0]))
    logps.requires_grad_()
    sepo(logps, batch, gamma=2.0, margin=5.0).loss_B.sum().backward()
    d = 1 / (1 + math.exp(-(-6.0 + 1.5 + 5.0)))
    expected = torch.zeros_like(logps)
    expected[0, 2] = expected[0, 4] = -2.0 * d / 2
    expected[1, 2] = 2.0 * d
    torch.testing.assert_close(logps.grad, expected)


def test_a_pair_that_is_ranked_well_has_no_gradient_in_the_hinge():
    logps, batch = batch_of(*CASES["right"])
    logps.requires_grad_()
    sepo_hinge(logps, batch).loss_B.sum().backward()
    assert not logps.grad.any()


def test_an_anchored_margin_starts_at_zero():
    """Where policy and reference agree, u is 0 on both sides: -log sigmoid(-margin)."""
    logps, batch = batch_of(Side(CHOSEN, CHOSEN), Side(REJECTED, REJECTED))
    loss = sepo(logps, batch, gamma=2.1, margin=0.5, anchor_margin=True)
    assert loss.loss_B.item() == pytest.approx(math.log1p(math.exp(0.5)))


def test_the_kl_term_counts_unselected_tokens_too():
    """KL 0.1 0.5 0.4 2.0 and 0.3 0.2 1.0: means 0.75 and 0.5, whatever is selected."""
    logps, batch = batch_of(*CASES["selected"], every_token=True)
    assert sepo(logps, batch, kl_weight=1.0).metrics["kl"].item() == pytest.approx(0.625)
    difference = sepo(logps, batch, kl_weight=2.0).loss_B - sepo(logps, batch).loss_B
    assert difference.item() == pytest.approx(1.25, rel=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_pair_has_its_own_loss(name):
    """Of two pairs in one batch, the losses are those of each alone."""
    (one, first), (other, second) = (batch_of(*CASES[case], every_token=True) for case in ("selected", "weighted"))

    def stacked(a, b):
        return torch.stack([a[0], b[0], a[1], b[1]])

    both = Batch(None, None, *(stacked(a, b) for a, b in zip(first[2:], second[2:], strict=True)))
    function = OBJECTIVES[name].load()
    together = function(stacked(one, other), both, **OPTIONS[name]).loss_B
    alone = [function(logps, batch, **OPTIONS[name]).loss_B for logps, batch in ((one, first), (other, second))]
    torch.testing.assert_close(together, torch.cat(alone))


def test_dpo_is_ln_2_where_policy_and_reference_agree():
    logps, batch = batch_of(Side(CHOSEN, CHOSEN), Side(REJECTED, REJECTED))
    loss = dpo(logps, batch, beta=0.1)
    assert loss.loss_B.item() == pytest.approx(math.log(2))
    assert loss.metrics["accuracy"].item() == 0.5
    assert "sft_loss" not in loss.metrics


@pytest.mark.parametrize("name", OPTIONS)
def test_the_scale_of_weights_is_void_where_it_cancels(name):
    """All weights three times as large, of policy and reference: only sums see it, and their objectives take soft_k."""
    one, other = (
        batch_of(
            *(
                Side(s.logps, s.reference, [k * weight for weight in s.weights], s.kl, s.scores)
                for s in CASES["weighted"]
            ),
            True,
        )
        for k in (1.0, 3.0)
    )
    losses = [OBJECTIVES[name].load()(logps, batch).loss_B.item() for logps, batch in (one, other)]
    void = "soft_k" in OBJECTIVES[name].void
    assert (losses[0] == pytest.approx(losses[1], rel=1e-5)) == void


@pytest.mark.parametrize(
    ("name", "anchor"), [("sepo", 0.75), ("dpo", 0.75), ("cpo", 0.75), ("slic", 1.5), ("rrhf", 1.5)]
)
def test_the_sft_term_is_of_the_selected_tokens(name, anchor):
    """Selected chosen -1 and -0.5: mean 0.75, sum 1.5, whatever the others are."""
    logps, batch = batch_of(selected(CHOSEN, [0, 2]), selected(REJECTED, [0]), every_token=True)
    assert OBJECTIVES[name].load()(logps, batch, sft_weight=0.3).metrics["sft_loss"].item() == pytest.approx(anchor)


def test_sft_sums_over_weighted_tokens():
    logps, batch = batch_of(selected(CHOSEN, [0, 1]), Side(REJECTED))
    rows = Batch(*(None if each is None else each[:1] for each in batch))
    assert sft(logps[:1], rows).loss_B.tolist() == [3.0]


@pytest.mark.parametrize("name", OPTIONS)
def test_no_gradient_flows_into_metrics(name):
    logps, batch = batch_of(*CASES["with a reference"])
    loss = OBJECTIVES[name].load()(logps.requires_grad_(), batch, **OPTIONS[name])
    assert loss.loss_B.requires_grad
    assert not any(value.requires_grad for value in loss.metrics.values())
