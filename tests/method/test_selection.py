import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.method.selection import (
    cuts_ties,
    order_within,
    random_keys,
    ranked,
    select_by_keys,
    select_highest,
    selected_count,
    signed,
    tie_notes,
)
from stages.types import PairLogps
from tests import reference


def floats(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("length", "ratio", "count"),
    [
        (10, 0.3, 3),
        (30, 0.1, 3),
        (11, 0.3, 4),
        (1, 0.3, 1),
        (7, 1.0, 7),
        (100, 0.001, 1),
        (1000, 0.003, 3),
        (3, 0.5, 2),
    ],
)
def test_selected_count_is_the_ceiling_and_at_least_one(length, ratio, count):
    assert selected_count(length, ratio) == count


def test_chosen_takes_the_highest_and_rejected_the_lowest():
    scores = PairLogps(floats(0.1, 3.0, -2.0, 1.0), floats(0.1, 3.0, -2.0, -5.0))
    chosen, rejected = select_by_keys(signed(scores), 0.5, 0.25)
    assert chosen.tolist() == [False, True, False, True]
    assert rejected.tolist() == [False, False, False, True]


def test_ties_go_to_the_earlier_token():
    assert select_highest(floats(1, 2, 2, 2), 0.5).tolist() == [False, True, True, False]
    keys = signed(PairLogps(floats(1), floats(5, 1, 1, 1)))
    assert select_highest(keys.rejected, 0.5).tolist() == [False, True, True, False]
    assert select_highest(floats(0.0, -0.0, 0.0), 0.3).tolist() == [True, False, False]


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=40), st.floats(0.001, 1.0))
def test_selection_equals_the_reference(values, ratio):
    ratio = round(ratio, 3)
    masks = select_by_keys(signed(PairLogps(floats(*values), floats(*values))), ratio, ratio)
    expected = [reference.select(values, ratio, highest=highest) for highest in (True, False)]
    assert [np.flatnonzero(mask).tolist() for mask in masks] == expected


def test_random_selection_does_not_look_at_the_scores():
    rising = PairLogps(np.arange(40, dtype=np.float32), np.arange(40, dtype=np.float32))
    falling = PairLogps(-rising.chosen, -rising.rejected)
    for ours, theirs in zip(
        select_by_keys(random_keys(rising, seed=0, pair_id=1), 0.3, 0.3),
        select_by_keys(random_keys(falling, seed=0, pair_id=1), 0.3, 0.3),
        strict=True,
    ):
        assert (ours == theirs).all()


KEYS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3.4e38, -3.4e38, float("inf"), -float("inf")])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.lists(KEYS, min_size=1, max_size=9)] * 2), min_size=1, max_size=4),
       st.sampled_from([0.1, 0.3, 0.5, 1.0]), st.booleans())  # fmt: skip
def test_many_responses_together_are_selected_from_as_one_alone_is(pairs, ratio, authors_rule):
    keys = [PairLogps(*(np.array(side, np.float32) for side in pair)) for pair in pairs]
    found, notes = ranked(keys, ratio, 0.4, authors_rule=authors_rule).drawn()
    alone = [select_by_keys(key, ratio, 0.4) for key in keys]
    if authors_rule:
        alone = [ranked([key], ratio, 0.4, authors_rule=True).drawn()[0][0] for key in keys]
    assert [[*map(list, pair)] for pair in found] == [[*map(list, masks)] for masks in alone]
    ties = [cuts_ties(side[authors_rule:], mask[authors_rule:] > 0)
            for key, masks in zip(keys, alone, strict=True) for side, mask in zip(key, masks, strict=True)]  # fmt: skip
    assert notes == tie_notes(sum(ties))


def test_what_does_not_fit_into_one_number_is_sorted_in_another_way():
    """A million responses, empty but for the last, whose 4,096 tokens would need 13 bits more."""
    keys = np.random.default_rng(0).integers(0, 50, 1 << 12).astype(np.float32)
    offsets = np.array([0, len(keys)])
    many = np.r_[np.zeros(1 << 20, np.int64), len(keys)]
    np.testing.assert_array_equal(order_within(keys, many), order_within(keys, offsets))
    np.testing.assert_array_equal(order_within(keys, offsets), np.argsort(-keys, kind="stable"))
