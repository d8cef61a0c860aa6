"""Exact order statistics of more numbers than memory holds: two passes, and counts of bits in between.

The bits of a float32, its sign turned, are a whole number that rises with it. The first pass counts the upper half of
these, which tells where a rank lies; the second one counts the lower half there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.types import Floats

_HALF: Final = 16
_TOGETHER: Final = 1024
"""arrays that are counted at once"""
Bits = NDArray[np.uint32]


class OrderStatistic(NamedTuple):
    """The value of a rank."""

    value: np.float32
    from_top: int
    """how many there are from this rank to the highest"""
    equal: int
    """values that equal it"""
    above: int
    """values that are larger"""


def rising_bits(values: Floats) -> Bits:
    """Whole numbers that rise as finite values do; those of -0 and 0 are one."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def order_statistics(
    values: Callable[[], Iterable[Floats]], ranks: Callable[[int], Sequence[int]]
) -> list[OrderStatistic]:
    """The values that stand at some ranks when all of them are sorted, exactly.

    Args:
        values: begins a pass over finite values, at least one of them.
        ranks: from 0, given the number of values.
    """
    upper = np.zeros(1 << _HALF, np.int64)
    for bits in _in_blocks(values()):
        upper += _counts(bits >> _HALF)
    ends = np.cumsum(upper)
    wanted = ranks(int(ends[-1]))
    halves = [int(np.searchsorted(ends, rank, side="right")) for rank in wanted]
    lower = {half: np.zeros(1 << _HALF, np.int64) for half in halves}
    for bits in _in_blocks(values()):
        for half, counts in lower.items():
            counts += _counts(bits[bits >> _HALF == half] & ((1 << _HALF) - 1))
    found = []
    for rank, half in zip(wanted, halves, strict=True):
        ends_inside = np.cumsum(lower[half]) + ends[half] - upper[half]
        rest = int(np.searchsorted(ends_inside, rank, side="right"))
        value = _value(half << _HALF | rest)
        total = int(ends[-1])
        found.append(OrderStatistic(value, total - rank, int(lower[half][rest]), total - int(ends_inside[rest])))
    return found


def median(values: Callable[[], Iterable[Floats]]) -> np.float32:
    """As `numpy.median`, a float32; `values` as in `order_statistics`."""
    low, high = order_statistics(values, lambda count: [(count - 1) // 2, count // 2])
    return np.float32((low.value + high.value) / 2)


def _in_blocks(arrays: Iterable[Floats]) -> Iterator[Bits]:
    remaining = iter(arrays)
    while some := [*islice(remaining, _TOGETHER)]:
        yield rising_bits(np.concatenate(some))


def _counts(bits: NDArray[Any]) -> NDArray[np.int64]:
    return np.bincount(bits, minlength=1 << _HALF)


def _value(rising: int) -> np.float32:
    bits = rising & 0x7FFFFFFF if rising >> 31 else ~rising & 0xFFFFFFFF
    return np.uint32(bits).view(np.float32)
