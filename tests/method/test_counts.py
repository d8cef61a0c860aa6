"""What types are worth by the labels alone, against conditions of the optimum that are derivable by hand."""

import numpy as np
import pytest

from stages.method.counts import RIDGES, count, fits


def pairs_of(chosen, rejected):
    """Types, signs and pair numbers of the tokens of all chosen responses, then of all rejected ones."""
    types = np.array([token for ids in (*chosen, *rejected) for token in ids])
    lengths = [len(ids) for ids in (*chosen, *rejected)]
    numbers = np.repeat(np.tile(np.arange(len(chosen)), 2), lengths)
    signs = np.repeat([1.0, -1.0], [sum(map(len, side)) for side in (chosen, rejected)])
    return types, signs, numbers


def test_two_types_that_always_stand_against_each_other():
    """40 pairs, 7 chosen against 9 rejected, each twice: 9's weight is -w, 7's is w, and w solves

    2 * 40 * sigmoid(-4 w) = ridge * w, as 7 stands twice in every chosen response.
    """
    tokens = pairs_of([[7, 7]] * 40, [[9, 9]] * 40)
    folds, done = np.arange(40) % 4, []
    found = count(*tokens, folds, lambda: done.append(1))
    assert len(done) == fits(folds) == 13
    assert found.ridge == min(RIDGES), "the labels are all alike, so that the least doubt tells those of others best"
    weight = found.all_N[0]
    assert 2 * 40 / (1 + np.exp(4 * weight)) == pytest.approx(found.ridge * weight, rel=1e-5)
    np.testing.assert_allclose(found.all_N, weight * tokens[1])
    # By the 30 pairs of the other folds.
    unseen = found.unseen_N[0]
    assert 2 * 30 / (1 + np.exp(4 * unseen)) == pytest.approx(found.ridge * unseen, rel=1e-5)


def test_what_both_responses_have_says_nothing():
    """A pair tells of the differences of its counts alone."""
    folds = np.arange(40) % 4
    bare = count(*pairs_of([[7]] * 40, [[9]] * 40), folds)
    both = count(*pairs_of([[5, 7, 5]] * 40, [[5, 9, 5]] * 40), folds)
    np.testing.assert_allclose(both.all_N[[0, 1, 2]], [0, bare.all_N[0], 0], atol=1e-9)


def test_no_token_is_told_by_its_own_pair():
    rng = np.random.default_rng(0)
    types, signs, numbers = pairs_of(rng.integers(0, 8, (30, 5)), rng.integers(0, 8, (30, 5)))
    folds = np.arange(30) % 5
    before = count(types, signs, numbers, folds)
    flipped = np.where(folds[numbers] == 2, -signs, signs)
    after = count(types, flipped, numbers, folds)
    mine = folds[numbers] == 2
    assert before.ridge == after.ridge
    np.testing.assert_array_equal(before.unseen_N[mine], after.unseen_N[mine])
    assert np.abs(before.unseen_N[~mine] - after.unseen_N[~mine]).max() > 1e-3
    assert np.abs(before.all_N - after.all_N).max() > 1e-3


def test_a_type_that_only_its_own_fold_has_is_worth_nothing_unseen():
    types, signs, numbers = pairs_of([[1], [1], [2]], [[3], [3], [3]])
    found = count(types, signs, numbers, np.array([0, 0, 1]))
    assert found.unseen_N[types == 2] == 0
    assert found.all_N[types == 2] > 0
    assert not found.unseen_N[types == 1].any()


def test_labels_by_chance_are_doubted():
    """Of the ridges the largest, whose weights are nearly 0, is the least wrong of other labels."""
    rng = np.random.default_rng(1)
    tokens = pairs_of(rng.integers(0, 50, (60, 6)), rng.integers(0, 50, (60, 6)))
    found = count(*tokens, folds_P=np.arange(60) % 5)
    assert found.ridge == max(RIDGES)
    assert np.abs(found.all_N).max() < 0.05
    assert np.abs(found.unseen_N).max() < 0.05
