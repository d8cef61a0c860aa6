"""How much of each part of a score is real, by hand, against the slow truth and where it is planted."""

import math

import numpy as np
import pytest

from stages.method.calibration import calibrate, cross_fitted_margins
from tests import reference


def test_one_part_by_hand():
    """3,000 pairs say +1 and 1,000 say -1: sigmoid(c) = 3/4, c = ln 3; its error 1 / sqrt(4000 x 3/4 x 1/4)."""
    differences = np.array([[1.0]] * 3000 + [[-1.0]] * 1000)
    found = calibrate(differences)
    assert found.coefficients_K == pytest.approx([math.log(3)], abs=2e-3)
    assert found.errors_K == pytest.approx([1 / math.sqrt(750)], rel=2e-3)
    thousandth = calibrate(differences / 1000)
    assert thousandth.coefficients_K == pytest.approx(1000 * found.coefficients_K)
    assert thousandth.errors_K == pytest.approx(1000 * found.errors_K)


def test_it_is_the_maximum_with_the_curvature_that_it_says():
    differences = np.random.default_rng(0).normal(0.3, [1.0, 5.0, 0.2], (200, 3))
    found = calibrate(differences)
    first, second = reference.logistic_slopes(differences.tolist(), found.coefficients_K.tolist())
    # At the maximum nothing is left but the ridge: the mean square of the whole, for every part.
    whole = np.square(differences.sum(1)).mean()
    assert first == pytest.approx(whole * found.coefficients_K, abs=1e-6)
    curvature = whole * np.eye(3) - np.array(second)
    assert found.errors_K == pytest.approx(np.sqrt(np.diag(np.linalg.inv(curvature))), rel=1e-3)


def test_a_part_that_shrinkage_all_but_removed_has_no_enormous_coefficient():
    """It follows the labels by chance; in other pairs, where it is as large as the rest, its coefficient is used."""
    rng = np.random.default_rng(3)
    left, real = 1e-4 * np.abs(rng.normal(size=50)), rng.normal(0.5, size=50)
    found = calibrate(np.stack([real, left], axis=1))
    assert abs(found.coefficients_K[1]) < 0.1
    assert found.errors_K[1] < 2


def test_what_is_planted_is_found():
    rng = np.random.default_rng(1)
    truth, differences = np.array([2.0, 0.0, -1.0]), rng.normal(size=(2000, 3))
    chosen_first = rng.random(2000) < 1 / (1 + np.exp(-differences @ truth))
    differences[~chosen_first] *= -1
    found = calibrate(differences)
    assert (np.abs(found.coefficients_K - truth) < 3 * found.errors_K).all()
    assert (found.errors_K < 0.15).all()


def test_parts_that_say_nothing_or_all():
    """One that is always 0 has no coefficient; one that tells every label has a finite one."""
    found = calibrate(np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 0.5]]))
    assert found.coefficients_K[0] == 0
    assert 0.3 < found.coefficients_K[1] < 100
    assert found.as_json(["context", "type"])["context"] == {"coefficient": 0.0, "standard_error": None}


def test_margins_are_by_the_coefficients_of_the_other_folds():
    """Fold 0 says +1 in 3 of 4 pairs, fold 1 in 1 of 4: each is judged by the other's sign."""
    differences = np.array([[1.0], [1.0], [1.0], [-1.0], [-1.0], [-1.0], [-1.0], [1.0]] * 500)
    margins = cross_fitted_margins(differences, np.array(([0] * 4 + [1] * 4) * 500))
    assert np.sign(margins[:8]).tolist() == [-1, -1, -1, 1, -1, -1, -1, 1]
    assert np.abs(margins) == pytest.approx(math.log(3), abs=4e-3)
