import math

import numpy as np
import pytest

from stages.method.score_totals import ScoreTotals
from stages.method.statistics import (
    implicit_margin,
    mean_interval,
    preference_accuracy,
    stands_alone,
    student_95,
    student_interval,
    wilson,
)
from stages.report.scores import drift_warnings
from stages.types import PairLogps, ScoredPair
from tests.conftest import token_pair


def pair_logps(chosen, rejected):
    return PairLogps(np.array(chosen, np.float32), np.array(rejected, np.float32))


def test_wilson_by_the_book():
    """8 of 10: the score interval is (0.490, 0.943)."""
    interval = wilson(8, 10)
    assert interval.value == 0.8
    assert (interval.low, interval.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_stays_inside_zero_and_one():
    assert wilson(0, 5).low == pytest.approx(0.0, abs=1e-12)
    assert wilson(5, 5).high == 1.0
    assert wilson(5, 5).low < 1.0


def test_of_one_comparison_there_is_nothing_to_say():
    assert stands_alone(1) == ""
    assert stands_alone(2).endswith("not corrected for 2 comparisons")


def test_mean_interval_by_hand():
    """1, 2, 3: mean 2, standard deviation 1, standard error 1/sqrt(3)."""
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert interval.value == 2.0
    assert interval.high - 2.0 == pytest.approx(1.959964 / 3**0.5)
    assert f"{interval:.2f}" == "2.00 [0.87, 3.13]"


def test_the_interval_over_runs_is_students():
    """1, 2, 3: standard deviation 1, standard error 1 / sqrt(3), t with 2 degrees of freedom 4.303."""
    interval = student_interval([1.0, 2.0, 3.0])
    assert interval.value == 2.0
    assert interval.high - 2.0 == pytest.approx(4.303 / math.sqrt(3))
    assert interval.low == pytest.approx(4.0 - interval.high)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (9, 2.262), (10, 2.2281), (11, 2.2010), (15, 2.1314), (20, 2.0860), (60, 2.0003), (1000, 1.9623)],
)
def test_students_quantile_is_that_of_the_printed_tables(freedom, quantile):
    assert student_95(freedom) == pytest.approx(quantile, abs=2e-4)


def test_one_run_tells_nothing_of_chance():
    assert student_interval([1.0]) == (1.0, -math.inf, math.inf)


def test_accuracy_compares_sums_and_counts_a_tie_half():
    pairs = [pair_logps([1, 1], [1.5]), pair_logps([0], [3, -1]), pair_logps([1], [0.5, 0.5])]
    assert preference_accuracy([implicit_margin(pair) for pair in pairs]).value == pytest.approx(1.5 / 3)


def drift_of(*rows):
    pairs = [
        ScoredPair(token_pair(0, [1], chosen_ids, rejected_ids), pair_logps(chosen, rejected), None)
        for chosen_ids, rejected_ids, chosen, rejected in rows
    ]
    totals = ScoreTotals(10)
    totals.add("shard", pairs)
    return totals.drift(str)


def test_drift_sees_what_both_sides_share():
    """Token 3 stands in both responses at -8; tokens 4 and 5 on one side only."""
    drift = drift_of(([4, 3], [5, 3], [1.0, -8.0], [-1.0, -8.0]))
    assert drift.shared == pytest.approx(-8.0)
    assert (drift.worst_id, drift.worst) == (3, pytest.approx(-8.0))
    assert drift.median == pytest.approx(-4.5)
    assert drift.spread == pytest.approx(np.std([1, -8, -1, -8]))
    assert drift.large
    assert "drifted" in drift_warnings(drift)[0]


def test_no_drift_where_shared_tokens_stay():
    drift = drift_of(([4, 3], [5, 3], [1.0, 0.01], [-1.0, -0.01]))
    assert drift.shared == pytest.approx(0.0)
    assert not drift.large


def test_one_drifting_type_among_many_is_enough():
    """Nine shared types at 0 and an end of turn at -1 on both sides, beside a key token at +1."""
    shared = list(range(9))
    scores = [0.0] * 8 + [-1.0]
    for end, large in [(-1.0, True), (-0.1, False)]:
        scores[-1] = end
        drift = drift_of(([*shared, 9], shared, [*scores, 1.0], scores))
        assert (drift.worst_id, drift.worst) == (8, pytest.approx(end))
        assert abs(drift.shared) < 0.5 * drift.spread
        assert drift.large is large


def test_drift_without_a_shared_token():
    drift = drift_of(([4], [5], [1.0], [-1.0]))
    assert (drift.worst_id, drift.shared) == (-1, 0.0)
