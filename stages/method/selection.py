"""Which tokens of a response supervise the policy: what the rules in `stages.method.rules` are made of.

Pure functions of one response's keys (scores, say), (n,) in, (n,) bool out, and of a whole data set.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.types import Floats, PairLogps, PairWeights, ScoredPair

Mask = NDArray[np.bool_]

CUT_TIES: Final = "responses whose cut lies within ties, where position decides"
_ROUNDING: Final = 1e-9
"""0.1 * 30 is 3.0000000000000004 in floating point; its ceiling is meant to be 3."""


class RuleInputs(NamedTuple):
    """What a rule may look at."""

    rows: Sequence[ScoredPair]
    start_logps: Sequence[PairLogps] = ()
    """log-probs under the model that the policy starts from, a row each, if the rule needs them"""
    noise: float | None = None
    """99th percentile of the scorer's error, nats, if it was measured"""
    seed: int = 0


class Selection(NamedTuple):
    """What a rule decided."""

    weights: list[PairWeights]
    """a row each"""
    notes: dict[str, int] = {}  # noqa: RUF012 (never changed)
    """what happened how often, in words for the counts"""


def selected_count(length: int, ratio: float) -> int:
    """ceil(ratio * length), at least one token."""
    return max(1, math.ceil(ratio * length - _ROUNDING))


def select_highest(keys: Floats, ratio: float) -> Mask:
    """The share `ratio` of tokens with the highest keys; ties go to the earlier token."""
    return _first(keys, selected_count(len(keys), ratio))


def select_highest_as_authors(keys: Floats, ratio: float) -> Mask:
    """The same as the authors' code has it: never a response's first token, and floor(ratio * (n - 1)) of the others.

    At least one, which their code does not see to; a response of one token gives that.
    """
    if len(keys) == 1:
        return np.ones(1, bool)
    # int() of the floating product and nothing else is what their code does.
    others = _first(keys[1:], max(1, int(ratio * (len(keys) - 1))))
    return np.concatenate([[False], others])


def select_by_keys(
    keys: PairLogps, chosen_ratio: float, rejected_ratio: float, *, authors_rule: bool = False
) -> tuple[Mask, Mask]:
    """Masks (C,) and (J,) of the share of tokens with the highest keys in the chosen and in the rejected response.

    Of `signed` scores this is SePO's rule (arXiv 2408.13518 section 3.3): the best of the chosen response, the worst of
    the rejected one.
    """
    pick = select_highest_as_authors if authors_rule else select_highest
    return pick(keys.chosen, chosen_ratio), pick(keys.rejected, rejected_ratio)


def signed(scores: PairLogps) -> PairLogps:
    """Scores as keys of what SePO wants: high in the chosen response, low in the rejected one."""
    return PairLogps(scores.chosen, -scores.rejected)


def random_keys(scores: PairLogps, *, seed: int, pair_id: int) -> PairLogps:
    """A random order of each response's tokens: the control that an oracle has to beat.

    It depends on the seed and the pair alone, not on the order in which pairs are read.
    """
    rng = np.random.default_rng([seed, pair_id])
    chosen, rejected = (rng.permutation(len(side)).astype(np.float32) for side in scores)
    return PairLogps(chosen, -rejected)


def ranked(
    keys: Iterable[PairLogps], chosen_ratio: float, rejected_ratio: float, *, authors_rule: bool = False
) -> Selection:
    """`select_by_keys` in every pair, weight 1; the cuts within ties are counted."""
    weights, ties = [], 0
    for pair in keys:
        masks = select_by_keys(pair, chosen_ratio, rejected_ratio, authors_rule=authors_rule)
        weights.append(as_weights(*masks))
        # The authors' code never takes the first token: it is nothing that was cut off.
        ties += sum(cuts_ties(key[authors_rule:], mask[authors_rule:]) for key, mask in zip(pair, masks, strict=True))
    return Selection(weights, tie_notes(ties))


def cuts_ties(keys: Floats, mask: Mask) -> bool:
    """Whether the last token that was selected has the key of the first that was not: then its position decided."""
    return bool(mask.any() and not mask.all() and keys[mask].min() == keys[~mask].max())


def as_weights(chosen: NDArray[Any], rejected: NDArray[Any]) -> PairWeights:
    """Masks, or weights in another precision, as weights."""
    return PairWeights(chosen.astype(np.float32), rejected.astype(np.float32))


def tie_notes(count: int) -> dict[str, int]:
    return {CUT_TIES: count} if count else {}


def by_response(rows: Sequence[ScoredPair]) -> list[Floats]:
    """`signed` scores of every chosen response, then of every rejected one."""
    keys = [signed(row.scores) for row in rows]
    return [key.chosen for key in keys] + [key.rejected for key in keys]


def by_pair(masks: Sequence[Mask]) -> list[PairWeights]:
    """Masks in the order of `by_response` as weights a row."""
    count = len(masks) // 2
    return list(map(as_weights, masks[:count], masks[count:]))


def never_empty(masks: Sequence[Mask], keys: Sequence[Floats], where: str) -> tuple[list[Mask], dict[str, int]]:
    """Masks in which a response with no token `where` it should be has its best one, and the note of how many."""
    found = [mask if mask.any() else _first(key, 1) for mask, key in zip(masks, keys, strict=True)]
    empty = sum(not mask.any() for mask in masks)
    return found, {f"responses with no token {where}, whose best one was taken": empty} if empty else {}


def _first(keys: Floats, count: int) -> Mask:
    mask = np.zeros(len(keys), dtype=bool)
    mask[np.argsort(-keys, kind="stable")[:count]] = True
    return mask
