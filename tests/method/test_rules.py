"""Every selection rule by hand, and what holds of all of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import SepoError
from stages.method.examples import ExampleCounts, chosen_only, end_warnings, join
from stages.method.selection import RuleInputs, Selection, random_keys, ranked, select_by_keys
from stages.registry import RULES
from stages.types import Example, PairLogps, PairWeights, ScoredPair
from tests.conftest import token_pair


def floats(values):
    return np.array(values, np.float32)


def row(chosen, rejected, weights=None, pair_id=0):
    pair = token_pair(pair_id, [1], range(len(chosen)), range(len(rejected)))
    return ScoredPair(pair, PairLogps(floats(chosen), floats(rejected)), None, weights)


def chosen(rule, *rows, start_logps=(), noise=None, seed=0, **options):
    """The weights of each row, as lists."""
    weights, _ = RULES[rule].load()(RuleInputs(rows, start_logps, noise, seed), **options).drawn()
    assert all(side.dtype == np.float32 for pair in weights for side in pair)
    return [[side.tolist() for side in pair] for pair in weights]


CHOSEN, REJECTED = [0.1, 3.0, -2.0, 1.0], [0.1, 3.0, -2.0, -5.0]
HALF = {"chosen_ratio": 0.5, "rejected_ratio": 0.25}


@pytest.mark.parametrize(
    ("rule", "options", "expected"),
    [
        ("oracle", HALF, [[0, 1, 0, 1], [0, 0, 0, 1]]),
        ("inverted", HALF, [[1, 0, 1, 0], [0, 1, 0, 0]]),
        ("all", {}, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        ("earliest", HALF, [[1, 1, 0, 0], [1, 0, 0, 0]]),
        ("latest", HALF, [[0, 0, 1, 1], [0, 0, 0, 1]]),
        # The median of all eight is 0.1: distances 0 2.9 2.1 0.9 and 0 2.9 2.1 5.1.
        ("symmetric", {"chosen_ratio": 0.5, "rejected_ratio": 0.5}, [[0, 1, 1, 0], [0, 1, 0, 1]]),
        ("threshold", {}, [[1, 1, 0, 1], [0, 0, 1, 1]]),
        ("threshold", {"threshold": 1.0}, [[0, 1, 0, 1], [0, 0, 1, 1]]),
        ("threshold", {"threshold": -0.1}, [[1, 1, 0, 1], [1, 0, 1, 1]]),
        ("threshold", {"threshold": 9.0}, [[0, 1, 0, 0], [0, 0, 0, 1]]),
        # Beyond nothing: rewards 0.1 3 1, sum 4.1; 0.8 of it is 3.28, which 3 + 1 hold. Rejected: 2 and 5 of 7, 5.6.
        ("auto", {}, [[0, 1, 0, 1], [0, 0, 1, 1]]),
        ("auto", {"auto_share": 0.7}, [[0, 1, 0, 0], [0, 0, 0, 1]]),
        ("auto", {"auto_share": 1.0}, [[1, 1, 0, 1], [0, 0, 1, 1]]),
        # The first token never, and int(0.5 * 3) = 1 and int(0.25 * 3) = 0 but at least 1 of the others.
        ("oracle", {**HALF, "authors_rule": True}, [[0, 1, 0, 0], [0, 0, 0, 1]]),
        ("inverted", {**HALF, "authors_rule": True}, [[0, 0, 1, 0], [0, 1, 0, 0]]),
    ],
)  # fmt: skip
def test_by_hand(rule, options, expected):
    assert chosen(rule, row(CHOSEN, REJECTED), **options) == [expected]


def test_confidence_takes_what_the_policy_is_least_sure_of():
    """In both responses; the scores say the opposite, and nobody asks them."""
    logps = PairLogps(floats([-0.1, -3.0, -0.2, -2.0]), floats([-5.0, -0.1, -0.2, -0.3]))
    assert chosen("confidence", row(CHOSEN, REJECTED), start_logps=[logps], **HALF) == [[[0, 1, 0, 1], [1, 0, 0, 0]]]


def test_the_share_of_a_data_set_is_taken_over_all_responses():
    """Half of six chosen tokens: 9 8 7, all in the first pair; the second keeps its best one. Rejected: half of four."""
    rows = [row([9, 8, 7, 1], [-1, -9]), row([0, 2], [-3, 5])]
    found = chosen("dataset-share", *rows, chosen_ratio=0.5, rejected_ratio=0.5)
    assert found == [[[1, 1, 1, 0], [0, 1]], [[0, 1], [1, 0]]]
    _, notes = RULES["dataset-share"].load()(RuleInputs(rows), chosen_ratio=0.5, rejected_ratio=0.5).drawn()
    assert notes == {"responses with no token in the share, whose best one was taken": 1}


def test_each_side_has_its_own_share_of_the_data_set():
    """All of the four chosen tokens; a quarter of the four rejected ones is the lowest alone, and each pair keeps one."""
    rows = row([1, 2], [-9, -8, 3]), row([3, 4], [5])
    found = chosen("dataset-share", *rows, chosen_ratio=1.0, rejected_ratio=0.25)
    assert found == [[[1, 1], [1, 0, 0]], [[1, 1], [1]]]
    found = chosen("dataset-share", *rows, chosen_ratio=0.25, rejected_ratio=1.0)
    assert found == [[[0, 1], [1, 1, 1]], [[0, 1], [1]]]


def test_the_share_of_a_data_set_may_be_of_what_is_farthest_from_its_median():
    """Scores -9 -1 0 1 8 chosen, 0 0 7 -2 rejected: the median of the nine is 0. Two fifths of the chosen ones: -9, 8;
    a quarter of the rejected ones: 7, and the other response keeps -2."""
    rows = [row([-9, -1, 8], [0, 0, 7]), row([0, 1], [-2])]
    found = chosen("dataset-symmetric", *rows, chosen_ratio=0.4, rejected_ratio=0.25)
    assert found == [[[1, 0, 1], [0, 0, 1]], [[0, 1], [1]]]
    # All scores moved by 8: so has the median.
    rows = [row([-1, 7, 16], [8, 8, 15]), row([8, 9], [6])]
    assert chosen("dataset-symmetric", *rows, chosen_ratio=0.4, rejected_ratio=0.25) == found


def test_soft_weights_by_hand():
    """k = 2, mu = 1, clamp to [-0.5, 1.5]: chosen 2 exp(s), rejected 2 exp(-s)."""
    found = chosen("soft", row([0.0, 1.0, 9.0, -9.0], [0.0, 1.0, 9.0, -9.0]), soft_k=2.0)
    assert found[0][0] == pytest.approx([2, 2 * math.e, 2 * math.exp(1.5), 2 * math.exp(-0.5)])
    assert found[0][1] == pytest.approx([2, 2 / math.e, 2 * math.exp(-1.5), 2 * math.exp(0.5)])
    steeper = chosen("soft", row([1.0], [1.0]), soft_mu=2.0, soft_low=0.0, soft_high=0.5)
    assert [side[0] for side in steeper[0]] == pytest.approx([math.e, 1 / math.e])


def test_the_symmetric_median_is_that_of_the_data_set():
    """Alone, the first response has the median 2; beside the second pair's it is 10, and 0 is farthest from it."""
    assert chosen("symmetric", row([0, 2, 3], [2]), chosen_ratio=0.3)[0][0] == [1, 0, 0]
    assert chosen("symmetric", row([0, 2, 19], [10]), row([10] * 3, [10] * 3), chosen_ratio=0.3)[0][0] == [1, 0, 0]
    assert chosen("symmetric", row([0, 2, 21], [10]), row([10] * 3, [10] * 3), chosen_ratio=0.3)[0][0] == [0, 0, 1]


def test_auto_takes_nothing_within_the_noise():
    """Noise 1: 3 is beyond by 2, 1 by 0. Rejected by 1 and 4 of 5: 0.8 is one token exactly."""
    assert chosen("auto", row(CHOSEN, REJECTED), noise=1.0) == [[[0, 1, 0, 0], [0, 0, 0, 1]]]
    assert chosen("auto", row(CHOSEN, REJECTED), noise=1.0, auto_share=1.0) == [[[0, 1, 0, 0], [0, 0, 1, 1]]]
    [weights], notes = RULES["auto"].load()(RuleInputs([row(CHOSEN, REJECTED)], noise=100.0)).drawn()
    assert [side.tolist() for side in weights] == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert notes == {"responses with no token beyond the noise, whose best one was taken": 2}
    _, unknown = RULES["auto"].load()(RuleInputs([row(CHOSEN, REJECTED)])).drawn()
    assert unknown == {"pairs whose scorer did not measure its noise, which was taken to be 0": 1}


def test_auto_selects_few_tokens_where_few_matter():
    flat, peaked = chosen("auto", row([1.0] * 10, [-1.0]), row([9.0, *[0.1] * 9], [-1.0]))
    assert [sum(flat[0]), sum(peaked[0])] == [8, 1]


def test_a_threshold_counts_the_responses_that_fell_short():
    rows = [row(CHOSEN, REJECTED), row([9.0], [9.0])]
    weights, notes = RULES["threshold"].load()(RuleInputs(rows), threshold=4.0).drawn()
    assert notes == {"responses with no token beyond the threshold, whose best one was taken": 2}
    assert [[side.tolist() for side in pair] for pair in weights] == [[[0, 1, 0, 0], [0, 0, 0, 1]], [[1], [1]]]


def test_random_is_seeded_and_of_the_same_size():
    rows = [row(range(40), range(30), pair_id=number) for number in (5, 6)]
    draws = [chosen("random", *rows, seed=seed, chosen_ratio=0.3, rejected_ratio=0.1) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0] != draws[0][1]
    assert [[sum(side) for side in pair] for pair in draws[0]] == [[12, 3], [12, 3]]
    masks = select_by_keys(random_keys(rows[0].scores, seed=0, pair_id=5), 0.3, 0.1)
    assert draws[0][0] == [mask.tolist() for mask in masks]
    assert [side[0] for side in chosen("random", *rows, authors_rule=True)[0]] == [0, 0]


def test_sampo_takes_as_many_tokens_of_both_responses():
    """All of the shorter one, as many of the longer one by a seeded chance."""
    rows = row(range(40), range(10), pair_id=5), row(range(3), range(40), pair_id=6), row([1], [2], pair_id=7)
    draws = [chosen("sampo", *rows, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert [[sum(side) for side in pair] for pair in draws[0]] == [[10, 10], [3, 3], [1, 1]]
    assert draws[0][0][0] != draws[2][0][0]


def test_column_takes_the_weights_as_they_come():
    weights = PairWeights(np.array([0.5, 0, 2, 0]), floats([0, 0, 0, 1]))
    assert chosen("column", row(CHOSEN, REJECTED, weights)) == [[[0.5, 0, 2, 0], [0, 0, 0, 1]]]
    with pytest.raises(SepoError, match="pair 7 comes without weights"):
        chosen("column", row(CHOSEN, REJECTED, weights), row(CHOSEN, REJECTED, pair_id=7))


def authors(advantages, ratio):
    """As their code: places of repeated argmax over all tokens but the first, int(ratio * N) of them (at least one here)."""
    left, found = list(advantages[1:]), []
    for _ in range(max(1, int(ratio * (len(advantages) - 1)))):
        best = left.index(max(left))
        left[best] = -math.inf
        found.append(best + 1)
    return sorted(found)


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=60),
    st.sampled_from([0.1, 0.3, 0.5, 0.29, 1.0]),
)
def test_the_authors_rule_is_theirs(values, ratio):
    [weights] = ranked([PairLogps(*[floats(values)] * 2)], ratio, ratio, authors_rule=True).weights
    assert [np.flatnonzero(side).tolist() for side in weights] == [authors(values, ratio)] * 2


def test_the_authors_rule_on_a_single_token():
    [weights] = ranked([PairLogps(floats([1.0]), floats([2.0]))], 0.3, 0.3, authors_rule=True).weights
    assert [side.tolist() for side in weights] == [[1.0], [1.0]]


ROWS = st.lists(st.tuples(*[st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=9)] * 2), min_size=1, max_size=4)
RATIOS = st.sampled_from([0.01, 0.3, 0.5, 1.0])


@given(ROWS, RATIOS, RATIOS, st.sampled_from(sorted(RULES)))
@settings(max_examples=100, deadline=None)
def test_no_rule_leaves_a_response_empty_or_forgets_one(values, chosen_ratio, rejected_ratio, name):
    """And weights are finite, not negative, one a token; where a rule has ratios, each governs its own side."""
    weights = [PairWeights(np.ones(len(c), np.float32), np.ones(len(r), np.float32)) for c, r in values]
    rows = [row(*pair, weight) for pair, weight in zip(values, weights, strict=True)]
    entry = RULES[name]
    given_ratios = {"chosen_ratio": chosen_ratio, "rejected_ratio": rejected_ratio}
    options = {option: value for option, value in given_ratios.items() if option in entry.options}
    found, _ = entry.load()(RuleInputs(rows, [each.scores for each in rows]), **options).drawn()
    assert len(found) == len(rows)
    for pair, each in zip(found, rows, strict=True):
        for mine, scores, ratio in zip(pair, each.scores, (chosen_ratio, rejected_ratio), strict=True):
            assert len(mine) == len(scores)
            assert np.isfinite(mine).all()
            assert (mine >= 0).all()
            assert mine.any()
            if options and not name.startswith("dataset-"):
                assert np.count_nonzero(mine) == max(1, math.ceil(ratio * len(mine) - 1e-9))


def test_pairs_with_an_empty_response_are_dropped_and_counted():
    rows = [row([1, 2], [3]), row([1, 2], [3, 4]), row([1], [3])]
    weights = [
        PairWeights(floats([0, 0]), floats([1])),
        PairWeights(floats([0, 3]), floats([1, 1])),
        PairWeights(floats([1]), floats([0])),
    ]
    references = [PairLogps(floats([-1, -2]), floats([-3])), PairLogps(floats([-1, -2]), floats([-3, -5])), None]
    counts = ExampleCounts(alone=False)
    selection = Selection(weights)
    [example] = join(rows, selection, references, counts)
    assert (example.row, example.reference, example.token_reference) == (1, (-6.0, -8.0), None)
    assert example.weights is weights[1]
    assert counts.as_json({"longer than 9 tokens": 4}, {"surprises": 2}) == {
        "read": 7, "kept": 1, "dropped": {"longer than 9 tokens": 4, "a response without a weighted token": 2},
        "tokens": {"chosen": 2, "rejected": 2}, "selected": {"chosen": 1, "rejected": 2},
        "selected_ends": {"chosen": 1, "rejected": 1}, "selection": {"surprises": 2},
    }  # fmt: skip
    nothing = ExampleCounts(alone=False)
    assert [*join(rows[:1], Selection(weights[:1]), None, nothing)] == []
    with pytest.raises(SepoError, match="in each of the 1 pairs a response has no weighted token"):
        nothing.as_json({}, {})


def test_weights_for_other_tokens_than_the_responses_have_are_refused():
    selection = Selection([PairWeights(floats([1, 0, 1]), floats([1]))])
    with pytest.raises(SepoError, match=r"3 and 1 weights for responses of 2 and 1 tokens"):
        list(join([row([1, 2], [3])], selection, None, ExampleCounts(alone=False)))


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (
            {"chosen": 1, "rejected": 4},
            "25.0% of the chosen and 100.0% of the rejected responses: the policy learns not",
        ),
        (
            {"chosen": 3, "rejected": 0},
            "75.0% of the chosen and 0.0% of the rejected responses: the policy learns to end",
        ),
        ({"chosen": 1, "rejected": 3}, None),
        ({"chosen": 4}, None),
    ],
)
def test_ends_that_one_side_alone_is_trained_on_are_warned_of(ends, said):
    weights = PairWeights(floats([0, 3]), floats([1, 0]))
    counts = ExampleCounts(alone=False)
    list(join([row([1, 2], [3, 4])], Selection([weights]), None, counts))
    assert counts.ends == {"chosen": 1, "rejected": 0}
    warnings = end_warnings({"kept": 4, "selected_ends": ends})
    assert [said in warning for warning in warnings] == ([] if said is None else [True])


def test_chosen_responses_alone_are_joined_and_counted_without_the_rejected_ones():
    """A rejected response without a weight drops nothing, a chosen one does."""
    rows = [row([1, 2], [3]), row([1, 2], [3, 4])]
    weights = [PairWeights(floats([1, 2]), floats([0])), PairWeights(floats([0, 0]), floats([1, 1]))]
    counts = ExampleCounts(alone=True)
    [joined] = join(rows, Selection(weights), None, counts)
    alone = chosen_only(Example(rows[joined.row].pair, joined.weights))
    assert (len(alone.pair.rejected_ids), len(alone.weights.rejected), alone.weights.chosen.tolist()) == (0, 0, [1, 2])
    assert counts.as_json({}, {}) == {
        "read": 2, "kept": 1, "dropped": {"a response without a weighted token": 1},
        "tokens": {"chosen": 2}, "selected": {"chosen": 2}, "selected_ends": {"chosen": 1}, "selection": {},
    }  # fmt: skip
