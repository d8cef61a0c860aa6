"""Which tokens of a response supervise the policy: what the rules in `stages.method.rules` are made of.

Pure functions of one response's keys (scores, say), (n,) in, (n,) bool out, and of a whole data set.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.method.order_statistics import rising_bits
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
    """made when they are asked for: to go through them costs no memory, to keep them does"""
    start_logps: Sequence[PairLogps] = ()
    """log-probs under the model that the policy starts from, a row each, if the rule needs them"""
    noise: float | None = None
    """99th percentile of the scorer's error, nats, if it was measured"""
    seed: int = 0


class Selection(NamedTuple):
    """What a rule decides."""

    weights: Iterable[PairWeights]
    """a row each, in order; made while they are drawn, once"""
    notes: dict[str, int] = {}  # noqa: RUF012 (never changed where there are none)
    """what happened how often, in words for the counts: known when all weights are drawn"""

    def drawn(self) -> tuple[list[PairWeights], dict[str, int]]:
        """All weights at once, and the notes."""
        return [*self.weights], self.notes


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
    notes: Counter[str] = Counter()

    def draw() -> Iterator[PairWeights]:
        remaining = iter(keys)
        while some := [*islice(remaining, _TOGETHER)]:
            sides = []
            for side, ratio in zip(zip(*some, strict=True), (chosen_ratio, rejected_ratio), strict=True):
                offsets = np.cumsum([0, *map(len, side)])
                mask, ties = _select_in_each(np.concatenate(side), offsets, ratio, authors_rule=authors_rule)
                sides.append(np.split(mask.astype(np.float32), offsets[1:-1]))
                notes.update(tie_notes(ties))
            yield from map(PairWeights, *sides)

    return Selection(draw(), notes)


Choose = Callable[[Floats], tuple[Mask, bool]]
"""makes a mask of a response's keys, perhaps an empty one, and says whether position decided between equal keys"""


def select_where(
    keys: Iterable[PairLogps], choose: tuple[Choose, Choose], where: str, *, counts_ties: bool = True
) -> Selection:
    """The tokens that are `where` they should be, weight 1; a response without any has its best one.

    Args:
        choose: finds them in a chosen, and in a rejected response; called once for each, in order.
        where: in words for the notes, such as ``beyond the noise``.
        counts_ties: whether cuts within ties are noted.
    """
    notes: Counter[str] = Counter()

    def mask_of(key: Floats, choose: Choose) -> Mask:
        mask, tied = choose(key)
        if not mask.any():
            notes[f"responses with no token {where}, whose best one was taken"] += 1
            mask = _first(key, 1)
        if counts_ties and (tied or cuts_ties(key, mask)):
            notes[CUT_TIES] += 1
        return mask

    masks = (map(mask_of, pair, choose) for pair in keys)
    return Selection((as_weights(*pair) for pair in masks), notes)


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
    descending = ~rising_bits(keys)
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


def signed_scores(rows: Sequence[ScoredPair]) -> Iterator[PairLogps]:
    """`signed` scores, row by row."""
    return (signed(row.scores) for row in rows)


def _authors_count(length: int, ratio: float) -> int:
    # int() of the floating product and nothing else is what their code does.
    return max(1, int(ratio * (length - 1)))


def _first(keys: Floats, count: int) -> Mask:
    mask = np.zeros(len(keys), dtype=bool)
    mask[np.argsort(-keys, kind="stable")[:count]] = True
    return mask
