"""Which tokens of a response supervise the policy: what the rules in `stages.method.rules` are made of.

Pure functions of one response's keys (scores, say), (n,) in, (n,) bool out, and of a whole data set.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.types import Floats, PairLogps, PairWeights, ScoredPair

Mask = NDArray[np.bool_]
Order = NDArray[np.int64]

CUT_TIES: Final = "responses whose cut lies within ties, where position decides"
_ROUNDING: Final = 1e-9
"""0.1 * 30 is 3.0000000000000004 in floating point; its ceiling is meant to be 3."""
_TOGETHER: Final = 1024
"""pairs that are selected from at once"""


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


def select_by_keys(keys: PairLogps, chosen_ratio: float, rejected_ratio: float) -> tuple[Mask, Mask]:
    """Masks (C,) and (J,) of the share of tokens with the highest keys in the chosen and in the rejected response.

    Of `signed` scores this is SePO's rule (arXiv 2408.13518 section 3.3): the best of the chosen response, the worst of
    the rejected one.
    """
    return select_highest(keys.chosen, chosen_ratio), select_highest(keys.rejected, rejected_ratio)


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
    """`select_by_keys` in every pair, weight 1; the cuts within ties are counted.

    Args:
        authors_rule: as their code has it, never a response's first token, and floor(ratio * (n - 1)) of the others. At
            least one, which their code does not see to; a response of one token gives that.
    """
    weights: list[PairWeights] = []
    ties, remaining = 0, iter(keys)
    while some := [*islice(remaining, _TOGETHER)]:
        sides = []
        for side, ratio in zip(zip(*some, strict=True), (chosen_ratio, rejected_ratio), strict=True):
            offsets = np.cumsum([0, *map(len, side)])
            mask, tied = _select_in_each(np.concatenate(side), offsets, ratio, authors_rule=authors_rule)
            sides.append(np.split(mask.astype(np.float32), offsets[1:-1]))
            ties += tied
        weights += map(PairWeights, *sides)
    return Selection(weights, tie_notes(ties))


def _select_in_each(keys: Floats, offsets: NDArray[np.int64], ratio: float, *, authors_rule: bool) -> tuple[Mask, int]:
    """`select_highest`, or the authors' way, in each of some responses.

    Args:
        keys: (T,) of all of them.
        offsets: (P + 1,): response i is ``[offsets[i]:offsets[i + 1]]``.

    Returns:
        the mask (T,), and the number of responses that `cuts_ties` is true of.
    """
    lengths, starts = np.diff(offsets), offsets[:-1]
    # The authors' code never takes the first token: it is the last choice, and nothing that was cut off.
    last = starts[lengths > 1] if authors_rule else starts[:0]
    order = order_within(keys, offsets, last)
    counts = np.array(
        [_authors_count(n, ratio) if authors_rule else selected_count(n, ratio) for n in lengths.tolist()]
    )
    mask = np.zeros(len(keys), bool)
    mask[order[np.arange(len(keys)) < np.repeat(starts + counts, lengths)]] = True
    ends = (starts + counts)[counts < lengths - authors_rule]
    return mask, int((keys[order[ends - 1]] == keys[order[ends]]).sum())


_NONE: Final[Order] = np.empty(0, np.int64)


def order_within(keys: Floats, offsets: NDArray[np.int64], last: Order = _NONE) -> Order:
    """The tokens of each of some responses from its highest key to its lowest, the earlier one of equals first.

    One sort of whole numbers, which is many times quicker than a sort of each response's floats: response, key and
    position are the bits of one number, from the highest down.

    Args:
        keys: (T,), as in `_select_in_each`.
        last: indices of tokens that come last whatever their keys.

    Returns:
        indices (T,); those of a response stand where its tokens do.
    """
    lengths = np.diff(offsets)
    rows, starts = np.repeat(np.arange(len(lengths)), lengths), np.repeat(offsets[:-1], lengths)
    # Adding 0 makes -0 equal to 0. The bits of a float's magnitude rise with it; those of positive ones are turned.
    signed_bits = (keys.astype(np.float32) + np.float32(0)).view(np.int32)
    descending = (signed_bits ^ (~(signed_bits >> 31) & 0x7FFFFFFF)).view(np.uint32)
    descending[last] = 0xFFFFFFFF
    bits = int(lengths.max()).bit_length()
    if len(lengths).bit_length() + bits > 32:
        return np.lexsort((descending, rows))
    numbers = rows.astype(np.uint64) << np.uint64(32 + bits) | descending.astype(np.uint64) << np.uint64(bits)
    numbers |= (np.arange(len(keys)) - starts).astype(np.uint64)
    numbers.sort()
    order: Order = starts + (numbers & np.uint64((1 << bits) - 1)).astype(np.int64)
    return order


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


def _authors_count(length: int, ratio: float) -> int:
    # int() of the floating product and nothing else is what their code does.
    return max(1, int(ratio * (length - 1)))


def _first(keys: Floats, count: int) -> Mask:
    mask = np.zeros(len(keys), dtype=bool)
    mask[np.argsort(-keys, kind="stable")[:count]] = True
    return mask
