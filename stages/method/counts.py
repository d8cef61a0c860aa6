"""Counts: what each token's type is worth by the labels alone, without any language model.

A Bradley-Terry model (1952) whose rewards are sums over a response's tokens of a weight of the token's type: a ridge
regression, logistic, of the label on the pairs' differences of counts. It is what the scores of an oracle have to beat,
and a part of calibrated scores where it tells more than they do.

Shapes: ``N`` tokens of ``P`` pairs, in either of two responses; ``G`` types.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stages.method.calibration import Values, log_losses
from stages.method.pooling import Labels, numbered

COUNT_FOLDS: Final = 5
"""Parts of the pairs; what is said of one is learnt of the others."""
RIDGES: Final = (3.0, 30.0, 300.0)
"""on the squares of the weights, in nats: the one is taken whose weights tell labels of other folds best"""
_MOST_STEPS: Final = 200


class Counted(NamedTuple):
    """What the labels say that types are worth."""

    unseen_N: Values
    """by the pairs of other folds than the token's own"""
    all_N: Values
    """by all pairs"""
    ridge: float


def count(types_N: NDArray[np.integer], signs_N: Values, pairs_N: Labels, folds_P: Labels) -> Counted:
    """Weights of the tokens' types, in nats of Bradley-Terry; 0 for a type that only the token's own fold has.

    Args:
        signs_N: 1 in chosen responses, -1 in rejected ones.
        pairs_N: the number of each token's pair.
        folds_P: of the pairs; pairs of one prompt are of one.
    """
    types_N = numbered(types_N)
    folds_N = folds_P[pairs_N]

    def unseen(ridge: float) -> Values:
        found_N = np.empty(len(types_N))
        for fold in np.unique(folds_P):
            theirs_N = folds_N != fold
            weights_G = _fitted(types_N, np.where(theirs_N, signs_N, 0.0), pairs_N, ridge)
            found_N[~theirs_N] = weights_G[types_N[~theirs_N]]
        return found_N

    def loss(found_N: Values) -> float:
        return float(log_losses(_sums(pairs_N, signs_N * found_N)).sum())

    found = {ridge: unseen(ridge) for ridge in RIDGES}
    ridge = min(RIDGES, key=lambda ridge: loss(found[ridge]))
    return Counted(found[ridge], _fitted(types_N, signs_N, pairs_N, ridge)[types_N], ridge)


def _fitted(types_N: Labels, signs_N: Values, pairs_N: Labels, ridge: float) -> Values:
    """The most likely weights of types, (G,); a token of sign 0 is not looked at."""
    weights_G = torch.zeros(int(types_N.max()) + 1, dtype=torch.float64)
    search = torch.optim.LBFGS([weights_G], max_iter=_MOST_STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        # By hand: sums in one order, so that the same tokens give the same weights to the last bit.
        now_G = weights_G.numpy()
        margins_P = _sums(pairs_N, signs_N * now_G[types_N])
        wrong_P = np.exp(-np.logaddexp(0.0, margins_P))
        gradient_G = ridge * now_G - _sums(types_N, signs_N * wrong_P[pairs_N])
        weights_G.grad = torch.from_numpy(gradient_G)
        return torch.tensor(log_losses(margins_P).sum() + ridge / 2 * np.square(now_G).sum())

    search.step(closure)  # type: ignore[no-untyped-call]
    return np.asarray(weights_G.numpy())


def _sums(groups_N: Labels, values_N: Values) -> Values:
    """Of each group's values, (number of groups,)."""
    return np.asarray(np.bincount(groups_N, values_N), np.float64)
