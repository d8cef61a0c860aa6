"""Pooling of scores by hand, and where the truth is known."""

import numpy as np
import pytest

from stages.method.pooling import pool, shrinkage


def test_variances_and_weights_by_hand():
    """Groups 0 2 | 4 6 6 8 in one whole of mean 26 / 6. Within: (1 + 1 + 4 + 0 + 0 + 4) / (6 - 2) = 2.5. Squares of the
    means 1 and 6: 2 (10/3)^2 + 4 (5/3)^2 = 100 / 3; room 6 - (4 + 16) / 6 = 8 / 3: (100/3 - 2.5) / (8/3) = 11.5625."""
    found = shrinkage(np.array([0, 2, 4, 6, 6, 8.0]), np.array([0, 0, 1, 1, 1, 1]), np.zeros(6, int))
    assert found == pytest.approx((2, 2.5, 11.5625))
    weights = [11.5625 / (11.5625 + 1.25), 11.5625 / (11.5625 + 0.625)]
    assert found.weights(np.array([2, 4])) == pytest.approx(weights)


def test_scores_by_hand():
    """Types 5 and 7 as the groups above; a predecessor that is always the same adds nothing, whatever its id."""
    scores, types = np.array([0, 2, 4, 6, 6, 8.0]), np.array([5, 5, 7, 7, 7, 7])
    pooled = pool(scores, types, np.full(6, 2**31 - 1))
    mean, low, high = 26 / 6, 11.5625 / 12.8125, 11.5625 / 12.1875
    assert pooled.scores_N == pytest.approx([mean - low * 10 / 3] * 2 + [mean + high * 5 / 3] * 4)
    assert (pooled.contexts.groups, pooled.contexts.between) == (2, 0.0)


def test_a_predecessor_moves_its_type_by_its_own_shrunk_mean():
    """One type of mean 0: after 1 it scores 3 3 1 1 (mean 2), after 2 the negatives. Within 8 / 6, room 4, squares 32:
    between (32 - 4/3) / 4 = 23/3, weight 23/3 / (23/3 + 1/3) = 23/24."""
    scores = np.array([3, 3, 1, 1, -3, -3, -1, -1.0])
    pooled = pool(scores, np.full(8, 4), np.array([1] * 4 + [2] * 4))
    assert pooled.scores_N == pytest.approx([2 * 23 / 24] * 4 + [-2 * 23 / 24] * 4)


def test_what_only_chance_tells_apart_is_not_told_apart():
    """Means closer than their tokens' spread allows, and types that occur once."""
    assert pool(np.array([-1, 1, -1, 1.0]), np.array([1, 1, 2, 2]), np.zeros(4, int)).scores_N.tolist() == [0.0] * 4
    once = pool(np.array([-1, 3.0]), np.array([1, 2]), np.array([3, 4]))
    assert once.scores_N.tolist() == [1.0, 1.0]
    assert pool(np.array([2.0]), np.array([1]), np.array([1])).scores_N.tolist() == [2.0]


def test_planted_variances_are_found_and_the_truth_comes_nearer():
    """Types of variance 1, contexts of 0.25, noise of 4: pooled scores have a tenth of the error of the raw ones, and less
    than means without shrinkage have."""
    rng = np.random.default_rng(0)
    types, predecessors = (300 * rng.random(20_000) ** 2).astype(int), rng.integers(0, 10, 20_000)
    truth = rng.normal(0, 1, 300)[types] + rng.normal(0, 0.5, (10, 300))[predecessors, types]
    scores = truth + rng.normal(0, 2, len(truth))
    pooled = pool(scores, types, predecessors)
    assert pooled.types.between == pytest.approx(1.0, rel=0.3)
    assert pooled.contexts.between == pytest.approx(0.25, rel=0.3)
    assert pooled.contexts.within == pytest.approx(4.0, rel=0.05)
    groups = np.unique(predecessors * 300 + types, return_inverse=True)[1]
    plain = (np.bincount(groups, scores) / np.bincount(groups))[groups]
    raw, unshrunk, shrunk = (np.square(each - truth).mean() for each in (scores, plain, pooled.scores_N))
    assert shrunk < 0.1 * raw
    assert shrunk < 0.8 * unshrunk
