"""Pooling: a token's score replaced by what tokens like it score, shrunk by how well that is known.

What a single score says beyond its token and its context is in part memory of the pair's label. The mean over all
tokens of a type, and over those that follow the same token, holds less of that.

Shapes: ``N`` tokens of a data set, ``G`` groups of them.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Labels = NDArray[np.int64]

PARTS: Final = ("type", "context", "residual")
"""of a score"""


class Shrinkage(NamedTuple):
    """How much the means of groups tell, in variances (nats squared) of a one-way random-effects model."""

    groups: int
    within: float
    """of tokens around the mean of their group"""
    between: float
    """of the groups' true means around that of what they are part of; 0 where chance alone would make them differ so"""

    def weights(self, counts_G: Labels) -> Values:
        """Of the mean of groups of so many tokens against that of the whole: between / (between + within / n)."""
        total_G = self.between + self.within / counts_G
        weights_G: Values = np.divide(self.between, total_G, out=np.zeros(len(counts_G)), where=total_G > 0)
        return weights_G


class Pooled(NamedTuple):
    """Scores in three parts that add up to them, and what the parts were made by."""

    type_N: Values
    """what a token's type scores"""
    context_N: Values
    """what the type scores beyond that after this predecessor"""
    residual_N: Values
    """what this token alone scores beyond both"""
    types: Shrinkage
    contexts: Shrinkage

    @property
    def scores_N(self) -> Values:
        """Pooled scores: without what one token alone says."""
        return self.type_N + self.context_N

    @property
    def parts_KN(self) -> Values:
        """The parts named in `PARTS`, (3, N)."""
        return np.stack([self.type_N, self.context_N, self.residual_N])


def pool(scores_N: Values, types_N: Labels, predecessors_N: Labels) -> Pooled:
    """Scores as mean of their type + what the type scores beyond that after this predecessor, both shrunk, + the rest.

    A type's mean is shrunk towards that of all tokens; the mean of a (predecessor, type) towards the type's.

    Args:
        types_N: each token's id.
        predecessors_N: the id before it; of a response's first token the prompt's last one.
    """
    overall = scores_N.mean()
    types_N, everything_N = numbered(types_N), np.zeros(len(scores_N), np.int64)
    # Two ids of 32 bits in one number.
    contexts_N = numbered(predecessors_N.astype(np.int64) << 32 | types_N)
    of_type_N, types = _effects(scores_N, types_N, everything_N)
    of_context_N, contexts = _effects(scores_N, contexts_N, types_N)
    residual_N = scores_N - overall - of_type_N - of_context_N
    return Pooled(overall + of_type_N, of_context_N, residual_N, types, contexts)


def shrinkage(values_N: Values, groups_N: Labels, wholes_N: Labels) -> Shrinkage:
    """The variance components of groups that are parts of wholes, by the analysis of variance (Henderson's method 1).

    Searle, Casella & McCulloch, Variance Components (1992), section 3.6, for several wholes at once: the squares of
    groups around wholes have the expectation within * (G - wholes) + between * (N - sum of n_g^2 / n_whole).
    """
    counts_G, means_G = _means(values_N, groups_N)
    sizes_W, centres_W = _means(values_N, wholes_N)
    whole_G = np.zeros(len(counts_G), np.int64)
    whole_G[groups_N] = wholes_N
    tokens, groups, wholes = len(values_N), len(counts_G), len(sizes_W)
    within = float(np.square(values_N - means_G[groups_N]).sum()) / max(1, tokens - groups)
    squares = float((counts_G * np.square(means_G - centres_W[whole_G])).sum())
    room = tokens - float((counts_G**2 / sizes_W[whole_G]).sum())
    if tokens == groups or room <= 0:
        # A token a group, or a group a whole: nothing tells a group from its tokens' chance, or from its whole.
        return Shrinkage(groups, within, 0.0)
    return Shrinkage(groups, within, max(0.0, (squares - within * (groups - wholes)) / room))


def _effects(values_N: Values, groups_N: Labels, wholes_N: Labels) -> tuple[Values, Shrinkage]:
    """What each token's group scores beyond its whole, shrunk, (N,)."""
    found = shrinkage(values_N, groups_N, wholes_N)
    counts_G, means_G = _means(values_N, groups_N)
    _, centres_W = _means(values_N, wholes_N)
    return found.weights(counts_G)[groups_N] * (means_G[groups_N] - centres_W[wholes_N]), found


def _means(values_N: Values, groups_N: Labels) -> tuple[Labels, Values]:
    counts_G = np.bincount(groups_N)
    return counts_G, np.bincount(groups_N, values_N) / counts_G


def numbered(labels_N: NDArray[Any]) -> Labels:
    """Labels as numbers from 0, without gaps."""
    numbers_N: Labels = np.unique(labels_N, return_inverse=True)[1].astype(np.int64)
    return numbers_N
