"""Calibration: how much of each part of a score is real, told by the labels of pairs that the scores have not seen.

A Bradley-Terry model (1952) whose rewards are sums over tokens of coefficient * part, so a logistic regression, without
an intercept, of the label on each pair's differences of sums. A coefficient near 0 says that the part is memory.

Shapes: ``P`` pairs, ``K`` parts.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RIDGE: Final = 1.0
"""on the squares of the coefficients, where the sum of the parts has differences of mean square 1: about a pair's
worth. On the scale of each part alone, one that shrinkage left next to nothing of might have any coefficient, and be
enormous in other pairs, where it is larger."""
_MOST_STEPS: Final = 100
_EXACT: Final = 1e-10


class Calibration(NamedTuple):
    """Coefficients of the parts; with them, a sum of parts is a reward in nats of Bradley-Terry."""

    coefficients_K: Values
    """0 for a part that is the same in both responses of every pair"""
    errors_K: Values
    """their standard errors, given the parts; infinite for such a part"""

    def as_json(self, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """For a manifest, by the parts' names; a standard error that is not finite becomes null."""
        return {
            name: {"coefficient": float(value), "standard_error": float(error) if np.isfinite(error) else None}
            for name, value, error in zip(names, *self, strict=True)
        }


def calibrate(differences_PK: Values) -> Calibration:
    """The most likely coefficients: of the chosen responses' sums minus those of the rejected ones, (P, K).

    Newton's method on the log-likelihood, which is concave; the ridge holds it finite where the parts tell all labels.
    """
    coefficients_K, errors_K = np.zeros(differences_PK.shape[1]), np.full(differences_PK.shape[1], np.inf)
    used_K = differences_PK.any(0)
    size = np.sqrt(np.square(differences_PK.sum(1)).mean()) or 1.0
    scaled_PU = differences_PK[:, used_K] / size
    weights_U, penalty_UU = np.zeros(scaled_PU.shape[1]), RIDGE * np.eye(scaled_PU.shape[1])
    hessian_UU = penalty_UU
    for _ in range(_MOST_STEPS):
        wrong_P = np.exp(-np.logaddexp(0.0, scaled_PU @ weights_U))
        gradient_U = scaled_PU.T @ wrong_P - RIDGE * weights_U
        hessian_UU = (scaled_PU.T * (wrong_P * (1 - wrong_P))) @ scaled_PU + penalty_UU
        step_U = np.linalg.solve(hessian_UU, gradient_U)
        before = _loss(scaled_PU, weights_U)
        while _loss(scaled_PU, weights_U + step_U) > before and np.abs(step_U).max() > _EXACT:
            step_U = step_U / 2
        weights_U = weights_U + step_U
        if np.abs(step_U).max(initial=0.0) <= _EXACT:
            break
    coefficients_K[used_K] = weights_U / size
    errors_K[used_K] = np.sqrt(np.diag(np.linalg.inv(hessian_UU))) / size
    return Calibration(coefficients_K, errors_K)


def cross_fitted_margins(differences_PK: Values, folds_P: NDArray[np.int64]) -> Values:
    """Each pair's reward difference by the coefficients of the other folds' pairs, (P,) nats."""
    margins_P = np.empty(len(folds_P))
    for fold in np.unique(folds_P):
        mine_P = folds_P == fold
        margins_P[mine_P] = differences_PK[mine_P] @ calibrate(differences_PK[~mine_P]).coefficients_K
    return margins_P


def log_losses(margins_P: Values) -> Values:
    """How surprising each label is where the chosen reward is greater by so many nats, (P,) nats; log 2 at 0."""
    return np.logaddexp(0.0, -margins_P)


def _loss(differences_PU: Values, weights_U: Values) -> float:
    return float(log_losses(differences_PU @ weights_U).sum() + RIDGE / 2 * np.square(weights_U).sum())
