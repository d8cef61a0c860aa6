"""Figures of an evaluation by hand, and their intervals against plain loops."""

import numpy as np
import pytest

from stages.evaluation.figures import (
    Comparison,
    Figures,
    compare,
    describe,
    mean,
    pair_ratios,
    sample_ratios,
    sums_of,
    verdict,
    win_rate,
)
from stages.method.statistics import RESAMPLES, Interval, Ratio, bootstrap_differences, bootstrap_intervals, sign_test
from stages.report.evaluation import build_report, sentence, summarise
from stages.types import PairLogps
from tests import reference


def pairs(chosen, rejected, chosen_tokens, rejected_tokens, reference=None):
    columns = {"chosen_logp": chosen, "rejected_logp": rejected}
    columns |= {"chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens}
    if reference:
        columns |= dict(zip(("chosen_reference_logp", "rejected_reference_logp"), reference, strict=True))
    return {name: np.array(values) for name, values in columns.items()}


def values(figures):
    return {name: ratio.value for name, ratio in figures.items()}


def draws_of(count, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, count, count).tolist() for _ in range(RESAMPLES)]


def test_preferences_by_hand():
    """Three pairs.

    ============  ==========  ========  =======  =========  =========
    pair          log-probs   tokens    by sum   by mean    implicit
    ============  ==========  ========  =======  =========  =========
    0             -2 vs -3    1, 3      +1       -2 + 1     1 - 2
    1             -6 vs -2    6, 1      -4       -1 + 2     -4 + 5
    2             -4 vs -4    2, 2      0        0          0 + 0
    ============  ==========  ========  =======  =========  =========
    """
    model = ([-2.0, -6.0, -4.0], [-3.0, -2.0, -4.0], [1, 6, 2], [3, 1, 2])
    base = ([-1.0, -7.0, -1.0], [-3.0, -2.0, -1.0])
    assert values(pair_ratios(pairs(*model, base))) == pytest.approx(
        {
            "accuracy_sum": (1 + 0 + 0.5) / 3,
            "accuracy_mean": (0 + 1 + 0.5) / 3,
            "accuracy_implicit": (0 + 1 + 0.5) / 3,
            "margin_mean": 0.0,
            "margin_implicit": 0.0,
        }
    )
    assert set(pair_ratios(pairs(*model))) == {"accuracy_sum", "accuracy_mean", "margin_mean"}


def test_the_margins_have_their_sign_and_size():
    found = values(pair_ratios(pairs([-2.0], [-9.0], [2], [3], ([-4.0], [-6.0]))))
    assert found["margin_mean"] == -1 + 3
    assert found["margin_implicit"] == (-2 + 4) - (-9 + 6)
    assert found["accuracy_implicit"] == found["accuracy_sum"] == 1


def test_sums_are_of_each_response():
    found = sums_of([PairLogps(np.float32([-1.5, -0.5]), np.float32([-0.25, -0.25, -0.5]))])
    assert found == {"chosen_logp": -2.0, "rejected_logp": -1.0, "chosen_tokens": 2, "rejected_tokens": 3}


def test_divergence_is_counted_per_token_and_per_response():
    kl = {"chosen_kl": np.array([2.0, 1.0]), "rejected_kl": np.array([1.0, 0.0])}
    found = values(pair_ratios(pairs([-1.0, -1.0], [-1.0, -1.0], [4, 1], [2, 1]) | kl))
    assert (found["kl_per_token"], found["kl_per_response"]) == (0.5, 1.0)
    answers = describe([np.array([1, 9]), np.array([2, 2, 2, 2, 2, 9])], end_of_turn=9) | {"kl": np.array([3.0, 1.0])}
    found = values(sample_ratios(answers))
    assert (found["sample_kl_per_token"], found["sample_kl_per_response"]) == (0.5, 2.0)


def test_samples_by_hand():
    """9 ends a turn. 1 2 3 4 1 2 3 4: five runs of four, of which the last, 1 2 3 4, had been there."""
    answers = [np.array(ids) for ids in ([1, 2, 3, 4, 1, 2, 3, 4, 9], [5, 5, 5, 5, 5, 5], [9])]
    found = describe(answers, end_of_turn=9)
    assert found["tokens"].tolist() == [8, 6, 0]
    assert found["ended"].tolist() == [1, 0, 1]
    assert found["repeated"].tolist() == [1, 2, 0]
    assert found["grams"].tolist() == [5, 3, 0]
    assert values(sample_ratios(found)) == pytest.approx(
        {"sample_tokens": 14 / 3, "sample_ended": 2 / 3, "sample_repetition": 3 / 8}
    )


def test_answers_without_an_end_of_turn_never_end():
    assert describe([np.array([1, 2])], end_of_turn=None)["ended"].tolist() == [0]


def test_short_answers_repeat_nothing():
    found = sample_ratios(describe([np.array([1, 9]), np.array([2, 9])], end_of_turn=9))
    assert bootstrap_intervals(found, seed=0)["sample_repetition"] == Interval(0, 0, 0)


def test_rewards_by_hand():
    """Against the reference: won, tied, and a prompt that it was not asked."""
    rewards = np.array([3.0, 1.0, -1.0])
    answers = describe([np.ones(4), np.ones(2), np.array([])], None) | {"true_reward": rewards}
    found = values(sample_ratios(answers))
    assert (found["true_reward"], found["true_reward_per_token"]) == (1.0, 0.5)
    assert win_rate(rewards, np.array([2.0, 1.0, np.nan])).value == 0.75


def test_two_items_are_drawn_in_three_ways():
    """0 and 1: both the same item or one of each, so the mean is 0, 0.5 or 1, a quarter, a half and a quarter."""
    assert bootstrap_intervals({"x": mean(np.array([0.0, 1.0]))}, seed=1)["x"] == Interval(0.5, 0.0, 1.0)


def test_equal_items_leave_nothing_open():
    assert bootstrap_intervals({"x": mean(np.full(9, 0.25))}, seed=1)["x"] == Interval(0.25, 0.25, 0.25)


@pytest.mark.parametrize("seed", [0, 7])
def test_intervals_are_those_of_plain_loops(seed):
    rng = np.random.default_rng(3)
    kl, tokens, other = rng.random(23), rng.integers(1, 40, 23), rng.random(23)
    found = bootstrap_intervals({"first": mean(other), "ratio": Ratio(kl, tokens)}, seed=seed)

    def ratio(draw):
        return sum(kl[i] for i in draw) / sum(tokens[i] for i in draw)

    assert found["ratio"][1:] == pytest.approx(reference.bootstrap(ratio, draws_of(23, seed)), rel=1e-9)
    assert found["ratio"].value == pytest.approx(kl.sum() / tokens.sum())
    assert found["ratio"] != bootstrap_intervals({"ratio": Ratio(kl, tokens)}, seed=seed + 1)["ratio"]


def test_differences_are_those_of_plain_loops():
    rng = np.random.default_rng(4)
    ours, theirs = (Ratio(rng.random(19), rng.integers(1, 9, 19)) for _ in range(2))
    found = bootstrap_differences({"kl": ours}, {"kl": theirs}, seed=5)["kl"]

    def difference(draw):
        first, second = (
            sum(each.numerators[i] for i in draw) / sum(each.denominators[i] for i in draw) for each in (ours, theirs)
        )
        return first - second

    assert found[1:] == pytest.approx(reference.bootstrap(difference, draws_of(19, 5)), rel=1e-9)
    assert found.value == pytest.approx(ours.value - theirs.value)


def test_pairing_takes_out_what_both_models_share():
    """Margins that vary by hundreds, and one model that is better by 1 on each of them."""
    shared = np.random.default_rng(0).normal(0, 100, 50)
    ours, theirs = {"margin": mean(shared + 1)}, {"margin": mean(shared)}
    found = bootstrap_differences(ours, theirs, seed=0)["margin"]
    assert tuple(found) == pytest.approx((1, 1, 1))
    apart = [bootstrap_intervals(each, seed=0)["margin"] for each in (ours, theirs)]
    assert apart[0].low < apart[1].high


NONE = Figures(np.array([]), np.array([]), {})


def figures(ids, margins):
    """An item of each of some prompts."""
    return Figures(np.array(ids), np.array(ids), {"m": mean(np.array(margins)), "only": mean(np.ones(len(ids)))})


def test_models_are_compared_on_the_items_that_both_have():
    """Items 2, 5 and 7 in one order, 7, 2 and 9 in the other: 2 is better by 1, 7 by 3."""
    a, b = figures([2, 5, 7], [1.0, 50.0, 2.0]), figures([7, 2, 9], [5.0, 2.0, -50.0])
    found = compare(b, a, seed=0)
    assert found.items == 2
    assert found.differences["m"] == Interval(2.0, 1.0, 3.0)
    assert compare(b, figures([7], [1.0]), seed=0) == (1, {}, {})


def test_every_two_models_are_compared():
    each = {"pairs": figures([1, 2], [0.0, 1.0]), "samples": figures([], [])}
    report = build_report(dict.fromkeys("abc", each), {key: {} for key in "abc"}, seed=0)
    assert [found["models"] for found in report["comparisons"]] == [["b", "a"], ["c", "a"], ["c", "b"]]


@pytest.mark.parametrize(
    ("interval", "said"),
    [((0.2, 0.1, 0.3), "better"), ((-0.2, -0.3, -0.1), "worse"), ((0.2, -0.1, 0.3), "not told apart"),
     ((0.2, 0.0, 0.3), "not told apart"), ((-0.1, -0.2, 0.0), "not told apart")],
)  # fmt: skip
def test_what_an_interval_says(interval, said):
    assert verdict(Interval(*interval)) == said


def test_sentences():
    def say(*interval):
        return sentence("a", "b", "pairs", Comparison(1234, {"m": Interval(*interval)}, {}), "m", "accuracy")

    assert say(0.2, 0.1, 0.3) == "a is better than b, by 1,234 pairs: accuracy +0.200 [+0.100, +0.300]"
    assert say(-0.2, -0.3, -0.1) == "a is worse than b, by 1,234 pairs: accuracy -0.200 [-0.300, -0.100]"
    assert say(0.1, -0.1, 0.3) == "a and b are not told apart by 1,234 pairs: accuracy +0.100 [-0.100, +0.300]"
    none = sentence("a", "b", "pairs", Comparison(1, {}, {}), "m", "accuracy")
    assert none == "a and b are not told apart by 1 pair: too few that both have"


@pytest.mark.parametrize(
    ("ups", "downs", "p"),
    [(4, 0, 1 / 8), (0, 6, 1 / 32), (5, 1, 2 * (1 + 6) / 64), (2, 2, 1.0), (0, 0, 1.0), (3, 4, 1.0)],
)
def test_signs_are_counted_like_coins(ups, downs, p):
    assert sign_test(np.array([0.5] * ups + [-2.0] * downs + [0.0] * 7)) == p


def test_more_samples_of_a_prompt_are_no_more_wins():
    """Both follow every instruction of every prompt, one of them in eight samples each."""
    keys = np.arange(12)
    eight, one = (
        Figures(keys, keys, {"accuracy_prompt_strict": Ratio(np.full(12, 100.0 * count), np.full(12, count))})
        for count in (8, 1)
    )
    assert compare(eight, one, 0).sign_tests == {"accuracy_prompt_strict": 1.0}


def test_a_long_row_of_coins_is_like_a_bell():
    """Half of 10,000 plus one standard deviation: beyond it, on both sides, lies what lies there of the bell."""
    assert sign_test(np.repeat([1.0, -1.0], [5050, 4950])) == pytest.approx(0.3222, abs=1e-3)


def accuracies(wins, prompts):
    """An accuracy on pairs of some prompts, and a margin that differs as much."""
    wins, prompts = np.array(wins, float), np.array(prompts)
    return Figures(np.arange(len(wins)), prompts, {"accuracy_mean": mean(wins), "margin_mean": mean(wins)})


@pytest.mark.parametrize(("differ", "said"), [(4, "not told apart"), (5, "not told apart"), (6, "better")])
def test_a_handful_of_prompts_tells_no_two_models_apart(differ, said):
    """All that differ speak for one model, which the bootstrap of 300 takes for sure: p is 1/8, 1/16 and 1/32."""
    ours, theirs = (accuracies([wins] * differ + [1] * (300 - differ), range(300)) for wins in (1, 0))
    models = {"b": theirs, "a": ours}
    report = build_report(
        {name: {"pairs": each, "samples": NONE} for name, each in models.items()}, {"a": {}, "b": {}}, seed=0
    )
    [found] = report["comparisons"]
    assert found["differences"]["accuracy_mean"]["low"] > 0
    assert found["sign_tests"] == {"accuracy_mean": 2 / 2**differ}
    assert found["verdicts"] == {"accuracy_mean": said}
    [words] = found["sentences"]
    assert (f", but p = {2 / 2**differ:.3f} by a sign test over prompts" in words) == (said != "better")
    assert words.startswith("a and b are not told apart" if said != "better" else "a is better than b")


def test_pairs_of_one_prompt_are_one_coin():
    """Twelve pairs that differ, of four prompts."""
    ours, theirs = (accuracies([wins] * 12 + [1] * 88, np.arange(100) // 3) for wins in (1, 0))
    assert compare(ours, theirs, seed=0).sign_tests == {"accuracy_mean": 1 / 8}


def of(count, *names):
    return Figures(np.arange(count), np.arange(count), {name: mean(np.ones(count)) for name in names})


def shown(counts, samples=0):
    """The tables of models that have so many of the pairs."""
    found = {
        name: {
            "pairs": of(count, "accuracy_mean", "kl_per_token"),
            "samples": of(samples, "sample_tokens") if samples else NONE,
        }
        for name, count in counts.items()
    }
    report = build_report(found, {name: {} for name in found}, seed=0)
    return summarise(report | {"warnings": []}, output=None)


def test_models_that_keep_other_pairs_say_how_many():
    summary = shown({"a": 1200, "b": 1198}, samples=3)
    preferred, distances, answers, _ = summary.tables
    assert preferred.title.startswith("Chosen response preferred: share of 1,198 to 1,200 held-out pairs")
    for table in (preferred, distances):
        assert table.columns[:2] == ["model", "pairs"]
        assert [row[:2] for row in table.rows] == [["a", "1,200"], ["b", "1,198"]]
    assert answers.title == "3 samples of each model, at temperature 1"
    assert answers.columns == ["model", "tokens"]
    assert dict(summary.rows)["pairs"] == "1,198 to 1,200"


def test_models_of_the_same_pairs_say_it_once():
    summary = shown({"a": 1200, "b": 1200})
    assert "share of 1,200 held-out pairs" in summary.tables[0].title
    assert summary.tables[0].columns == ["model", "mean log-prob"]
    assert [summary.rows[0], summary.rows[1]] == [("pairs", "1,200"), ("samples of each model", "none")]
