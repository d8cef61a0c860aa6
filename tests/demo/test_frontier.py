import math

import numpy as np
import pytest

from stages.demo.frontier import Point, best_gain, budgets, envelope, reward_at

PATH = [Point(0, 0.0, 1.0, 20.0), Point(10, 0.2, 2.0, 20.0), Point(20, 0.1, 3.0, 21.0), Point(30, 0.4, 5.0, 22.0)]


@pytest.mark.parametrize(("kl", "reward"), [(0.0, 1.0), (0.05, 1.5), (0.2, 2.0), (0.225, 4.0), (0.4, 5.0)])
def test_the_reward_at_a_divergence_is_where_it_is_first_reached(kl, reward):
    assert reward_at(PATH, kl) == pytest.approx(reward)


def test_a_divergence_that_is_never_reached_has_no_reward():
    assert reward_at(PATH, 0.41) is None


def ending(kl):
    return [Point(0, 0.0, 1.0, 20.0), Point(10, kl, 2.0, 20.0)]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([[0.1253]], (0.062, 0.12)),  # 0.06265 and 0.1253, not 0.063 and 0.13
        ([[0.1299], [7.0]], (0.064, 0.12)),
        ([[5.0], [0.2, 0.3], [0.1]], (0.1, 0.2)),
        ([[12.9]], (6.4, 12.0)),
        ([[0.3]], (0.15, 0.3)),
        ([[0.0]], ()),
    ],
)
def test_budgets_are_the_furthest_that_the_recipe_in_the_middle_reaches_in_every_run(ends, expected):
    recipes = [[ending(kl) for kl in recipe] for recipe in ends]
    assert budgets(recipes) == pytest.approx(expected)
    middle = sorted(recipes, key=lambda paths: min(path[-1].kl for path in paths))[(len(recipes) - 1) // 2]
    assert all(reward_at(path, kl) is not None for path in middle for kl in budgets(recipes))


def test_a_run_that_comes_back_has_been_far():
    assert budgets([[PATH[:3]]]) == (0.1, 0.2)


def test_the_best_gain_is_that_of_the_tilted_reference():
    """Rewards 0 and 1, as often: with 0.8 of the weight on 1 the gain is 0.3, at log 2 less the entropy of (0.8, 0.2)."""
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert best_gain(np.array([0.0, 1.0] * 10), kl) == pytest.approx(0.3)
    assert best_gain(np.array([5.0, 3.0] * 10), kl) == pytest.approx(0.6)


def test_no_tilt_goes_farther_than_the_best_sample():
    with pytest.raises(ValueError, match="4 samples do not reach"):
        best_gain(np.array([0.0, 0.0, 0.0, 1.0]), 1.4)


@pytest.mark.parametrize(
    ("points", "gain"),
    [
        ([(0.16, 1.0)], 0.5),  # from (0, 0), half of the way in the square root
        ([(0.01, 0.4), (0.09, 0.8)], 0.6),
        ([(0.09, 0.8), (0.16, 0.1)], 0.8 * 2 / 3),  # a setting that lost is not gone through
        ([(0.16, 0.1), (0.0225, 0.6), (0.0625, 0.2)], 0.6 - 0.1),
        ([(0.04, 0.3)], 0.3),
        ([(0.039, 0.3)], None),
        ([], None),
    ],
)
def test_a_recipe_is_read_between_the_best_two_of_its_settings(points, gain):
    assert envelope(points, 0.04) == (None if gain is None else pytest.approx(gain))
