"""Counts: what each token's type is worth by the labels alone, without any language model.

A Bradley-Terry model (1952) whose rewards are sums over a response's tokens of a weight of the token's type: a ridge
regression, logistic, of the label on the pairs' differences of counts. It is what the scores of an oracle have to beat,
and a part of calibrated scores where it tells more than they do.

Shapes: ``N`` tokens of ``P`` pairs, in either of two responses; ``G`` types; ``E`` of a type in a pair.
"""

from collections.abc import Callable, Sequence
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


class _Differences(NamedTuple):
    """How much more often a pair's chosen response has a type than its rejected one, wherever that is not 0, (E,)."""

    types_E: Labels
    pairs_E: Labels
    counts_E: Values

    def of(self, mask_E: NDArray[np.bool_]) -> "_Differences":
        return _Differences(self.types_E[mask_E], self.pairs_E[mask_E], self.counts_E[mask_E])

    def margins(self, weights_G: Values) -> Values:
        """Of the pairs, (P,)."""
        return _sums(self.pairs_E, self.counts_E * weights_G[self.types_E])


def fits(folds_P: Labels) -> int:
    """How many regressions `count` fits."""
    return len(RIDGES) * len(np.unique(folds_P)) + 1


def count(
    types_N: NDArray[np.integer],
    signs_N: Values,
    pairs_N: Labels,
    folds_P: Labels,
    fitted: Callable[[], object] = lambda: None,
) -> Counted:
    """Weights of the tokens' types, in nats of Bradley-Terry; 0 for a type that only the token's own fold has.

    Args:
        signs_N: 1 in chosen responses, -1 in rejected ones.
        pairs_N: the number of each token's pair.
        folds_P: of the pairs; pairs of one prompt are of one.
        fitted: called behind each of the fits.
    """
    types_N = numbered(types_N)
    types = int(types_N.max()) + 1
    counts = _differences(types_N, signs_N, pairs_N, types)

    def fit(counts: _Differences, ridge: float) -> Values:
        weights_G = _fitted(counts, types, ridge)
        fitted()
        return weights_G

    folds = [(folds_P == fold, folds_P[counts.pairs_E] == fold) for fold in np.unique(folds_P)]

    def loss(weights: Sequence[Values]) -> float:
        """Of each fold's labels, by the weights that the others gave; and log 2 of some pairs, always the same."""
        margins = [counts.of(mine_E).margins(each) for (_, mine_E), each in zip(folds, weights, strict=True)]
        return sum(float(log_losses(each).sum()) for each in margins)

    found = {ridge: [fit(counts.of(~mine_E), ridge) for _, mine_E in folds] for ridge in RIDGES}
    ridge = min(RIDGES, key=lambda ridge: loss(found[ridge]))
    unseen_N = np.empty(len(types_N))
    for (mine_P, _), weights_G in zip(folds, found[ridge], strict=True):
        mine_N = mine_P[pairs_N]
        unseen_N[mine_N] = weights_G[types_N[mine_N]]
    return Counted(unseen_N, fit(counts, ridge)[types_N], ridge)


def _differences(types_N: Labels, signs_N: Values, pairs_N: Labels, types: int) -> _Differences:
    keys_E, entry_N = np.unique(pairs_N * types + types_N, return_inverse=True)
    counts_E = _sums(entry_N, signs_N)
    return _Differences(keys_E % types, keys_E // types, counts_E).of(counts_E != 0)


def _fitted(counts: _Differences, types: int, ridge: float) -> Values:
    """The most likely weights of all types, (G,)."""
    weights_G = torch.zeros(types, dtype=torch.float64)
    search = torch.optim.LBFGS([weights_G], max_iter=_MOST_STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        # By hand: sums in one order, so that the same counts give the same weights to the last bit.
        now_G = weights_G.numpy()
        margins_P = counts.margins(now_G)
        wrong_P = np.exp(-np.logaddexp(0.0, margins_P))
        gradient_G = ridge * now_G - np.bincount(counts.types_E, counts.counts_E * wrong_P[counts.pairs_E], types)
        weights_G.grad = torch.from_numpy(gradient_G)
        return torch.tensor(log_losses(margins_P).sum() + ridge / 2 * np.square(now_G).sum())

    search.step(closure)  # type: ignore[no-untyped-call]
    return np.asarray(weights_G.numpy())


def _sums(groups_N: Labels, values_N: Values) -> Values:
    """Of each group's values, (number of groups,)."""
    return np.asarray(np.bincount(groups_N, values_N), np.float64)
