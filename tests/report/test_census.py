"""Lengths, repeats and leaks, on numbers that can be checked by eye."""

import numpy as np
import pytest

from stages.method.statistics import Interval
from stages.report.census import PARTS, bars, chosen_longer, leaks, overlong, repeats, spreads, whole_lengths

#                     prompt chosen rejected
LENGTHS = np.array([[10, 5, 3], [10, 2, 9], [30, 1, 1], [19, 1, 2], [4, 40, 50]], np.int32)


def test_a_pair_is_as_long_as_its_prompt_with_the_longer_response():
    assert whole_lengths(LENGTHS).tolist() == [15, 19, 31, 21, 54]


def sizes(found, part):
    return tuple(found[part][name] for name in ("median", "p95", "max"))


def test_spreads_are_lengths_that_occur():
    found = spreads(LENGTHS)
    assert {part: sizes(found, part) for part in PARTS} == {
        "prompt": (10, 30, 30),
        "chosen": (2, 40, 40),
        "rejected": (3, 50, 50),
        "whole row": (21, 54, 54),
    }
    assert (found["histogram_edges"][0], found["histogram_edges"][-1]) == (1, 54)
    assert all(sum(found[part]["histogram"]) == 5 for part in PARTS)


def test_the_95th_percentile_is_not_the_longest():
    lengths = np.stack([np.arange(1, 101)] * 3, axis=1).astype(np.int32)
    assert sizes(spreads(lengths), "chosen") == (50, 95, 100)


def test_bins_in_common_can_be_compared():
    found = spreads(np.array([[1, 8, 64]] * 3, np.int32))
    places = [found[part]["histogram"].index(3) for part in PARTS]
    assert places[0] == 0
    assert places[0] < places[1] < places[2] == 15


@pytest.mark.parametrize("one", [[1, 1, 1], [0, 1, 1], [7, 0, 7]])
def test_a_single_pair_has_a_spread(one):
    found = spreads(np.array([one], np.int32))
    assert all(sum(found[part]["histogram"]) == 1 for part in PARTS)


def test_what_a_limit_does():
    """20: the pair of 31 has no room, that of 21 loses one token, that of 54 loses 24 and 34."""
    assert list(overlong(LENGTHS, 20).values()) == [3, 32 + 22 + 94, 1, 1 + 24 + 34]
    assert list(overlong(LENGTHS, 54).values()) == [0, 0, 0, 0]
    assert list(overlong(LENGTHS, 30).values()) == [2, 32 + 94, 1, 14 + 24]


def test_many_tokens_do_not_overflow():
    huge = np.full((3, 3), 2**30, np.int32)
    assert overlong(huge - 2**29, 10)["tokens"] == 9 * 2**29


def test_repeats():
    contents = np.array([1, 2, 1, 3, 1], np.uint64)
    prompts = np.array([7, 7, 7, 8, 7], np.uint64)
    assert repeats(contents, prompts) == {"pairs": 2, "prompts": 2, "most": 4}
    assert repeats(contents[:1], prompts[:1]) == {"pairs": 0, "prompts": 1, "most": 1}


def test_equal_lengths_say_nothing_about_which_is_longer():
    assert chosen_longer(LENGTHS).value == 0.25
    assert chosen_longer(LENGTHS[2:3]) == Interval(0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("share", "far"),
    [
        (Interval(0.7, 0.65, 0.75), True),
        (Interval(0.2, 0.15, 0.25), True),
        (Interval(0.55, 0.54, 0.56), False),
        (Interval(0.75, 0.4, 0.9), False),
    ],
)
def test_a_leak_is_far_from_a_half_and_not_by_chance(share, far):
    assert leaks(share) is far


def test_bars():
    assert bars([0, 1, 100, 50]) == " ▁█▄"
    assert bars([0, 0]) == "  "
