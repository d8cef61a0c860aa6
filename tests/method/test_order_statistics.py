"""Ranks among more numbers than memory holds, against a sort of them all; and what rules make of those."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.method import order_statistics as module
from stages.method.order_statistics import OrderStatistic, median, order_statistics
from stages.method.selection import CUT_TIES, RuleInputs, cuts_ties, select_highest
from stages.registry import RULES
from stages.types import PairLogps, ScoredPair
from tests.conftest import token_pair

VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1.0, 1e-40, -1e-40, 3.4e38, -3.4e38, 0.3]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)
ARRAYS = st.lists(
    st.lists(VALUES, min_size=1, max_size=5).map(lambda each: np.array(each, np.float32)), min_size=1, max_size=7
)


@pytest.fixture(autouse=True)
def three_arrays_at_once(monkeypatch):
    monkeypatch.setattr(module, "_TOGETHER", 3)


@given(ARRAYS)
@settings(max_examples=25, deadline=None)
def test_every_rank_is_that_of_the_sorted_values(arrays):
    ordered = np.sort(np.concatenate(arrays))
    ranks = [0, len(ordered) // 3, len(ordered) - 1]
    for rank, each in zip(ranks, order_statistics(lambda: arrays, lambda count: ranks), strict=True):
        value = ordered[rank]
        equal, above = (ordered == value).sum(), (ordered > value).sum()
        assert each == OrderStatistic(value, len(ordered) - rank, equal, above)
    half = ordered / 2
    assert median(lambda: [half]) == np.median(half)


def at_once(keys, ratio):
    """What is taken of one side's responses, and in which of them position decided, with all keys in one array."""
    together = np.concatenate(keys)
    mask = select_highest(together, ratio)
    cut = together[mask].min() if cuts_ties(together, mask) else np.nan
    found = [each if each.any() else select_highest(key, 1e-9)
             for each, key in zip(np.split(mask, np.cumsum([*map(len, keys)])[:-1]), keys, strict=True)]  # fmt: skip
    ties = [(key == cut).any() or cuts_ties(key, each) for key, each in zip(keys, found, strict=True)]
    return [each.tolist() for each in found], sum(ties)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", ["dataset-share", "dataset-symmetric"])
def test_a_share_of_the_data_set_row_by_row_is_that_of_all_at_once(rule, seed):
    """Scores of few values: ties reach over many responses."""
    rng = np.random.default_rng(seed)
    sides = [[rng.integers(-2, 3, rng.integers(1, 6)).astype(np.float32) / 4 for _ in range(11)] for _ in range(2)]
    rows = [
        ScoredPair(token_pair(number, [1], *map(range, map(len, pair))), PairLogps(*pair), None)
        for number, pair in enumerate(zip(*sides, strict=True))
    ]
    keys = [sides[0], [-side for side in sides[1]]]
    if rule == "dataset-symmetric":
        middle = np.median(np.concatenate([*sides[0], *sides[1]]))
        keys = [[np.abs(each - middle) for each in side] for side in sides]
    expected, ties = zip(*(at_once(side, ratio) for side, ratio in zip(keys, (0.3, 0.2), strict=True)), strict=True)
    weights, notes = RULES[rule].load()(RuleInputs(rows), chosen_ratio=0.3, rejected_ratio=0.2).drawn()
    assert [[(side > 0).tolist() for side in each] for each in zip(*weights, strict=True)] == [*expected]
    assert notes[CUT_TIES] == sum(ties) > 0
