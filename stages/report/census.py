"""What the lengths and hashes of a data set's pairs say of it, in a few passes over arrays, whatever their number.

Shapes: ``N`` pairs; the three columns of ``lengths_N3`` are the tokens of prompt, chosen and rejected response.
"""

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.method.statistics import Interval, wilson
from stages.reporting import Table

Lengths = NDArray[np.int32]
Hashes = NDArray[np.uint64]

BINS: Final = 16
FAR_FROM_HALF: Final = 0.1
_RESPONSES: Final = [1, 2]
"""the columns of chosen and rejected"""
_BARS: Final = " ▁▂▃▄▅▆▇█"


class Spread(NamedTuple):
    """Lengths of one kind, in tokens."""

    median: int
    p95: int
    max: int
    histogram: list[int]
    """how many lie in each bin of `Spreads.edges`"""


class Spreads(NamedTuple):
    """The lengths of prompts, responses and whole pairs, with bins in common."""

    edges: list[float]
    """of the bins, evenly spaced on a logarithmic scale; one more than there are bins"""
    of: dict[str, Spread]

    def table(self) -> Table:
        low, high = round(self.edges[0]), round(self.edges[-1])
        rows = [
            [name, f"{spread.median:,}", f"{spread.p95:,}", f"{spread.max:,}", bars(spread.histogram)]
            for name, spread in self.of.items()
        ]
        title = (
            f"Tokens before any limit (whole row: prompt and longer response; bars: {low:,} to {high:,}, logarithmic)"
        )
        return Table(title, ["part", "median", "95%", "longest", "how many"], rows)

    def as_json(self) -> dict[str, Any]:
        edges = [round(edge, 1) for edge in self.edges]
        return {"histogram_edges": edges, **{name: spread._asdict() for name, spread in self.of.items()}}


class Overlong(NamedTuple):
    """What a limit on prompt and longer response does to pairs, by what becomes of the longer ones."""

    pairs: int
    """pairs that are longer"""
    tokens: int
    """all tokens of these pairs, which dropping them loses"""
    without_room: int
    """pairs among them whose prompt alone fills the limit: truncating drops them too"""
    cut_tokens: int
    """tokens that truncating the others cuts from their responses"""


class Repeats(NamedTuple):
    """How often the same thing comes again."""

    pairs: int
    """pairs whose prompt and answers an earlier pair has too"""
    prompts: int
    """different prompts"""
    most: int
    """pairs of the prompt that has most of them"""


def whole_lengths(lengths_N3: Lengths) -> Lengths:
    """Tokens of a pair's longer row, prompt included, (N,)."""
    whole_N: Lengths = lengths_N3[:, 0] + np.maximum(lengths_N3[:, 1], lengths_N3[:, 2])
    return whole_N


def spreads(lengths_N3: Lengths) -> Spreads:
    """Median, 95th percentile, maximum and histogram of the lengths of at least one pair."""
    kinds = {name: lengths_N3[:, column] for column, name in enumerate(("prompt", "chosen", "rejected"))}
    kinds["whole row"] = whole_lengths(lengths_N3)
    low = max(1, min(int(values_N.min()) for values_N in kinds.values()))
    high = max(low + 1, *(int(values_N.max()) for values_N in kinds.values()))
    edges = np.geomspace(low, high, BINS + 1)
    # An empty prompt has no place on the scale; it counts as the shortest.
    edges[0], edges[-1] = low, high
    return Spreads(
        [float(edge) for edge in edges], {name: _spread(values_N, edges) for name, values_N in kinds.items()}
    )


def overlong(lengths_N3: Lengths, max_length: int) -> Overlong:
    """What becomes of pairs longer than `max_length` tokens."""
    long_M3 = lengths_N3[whole_lengths(lengths_N3) > max_length]
    room_M = max_length - long_M3[:, 0]
    excess_M = np.maximum(long_M3[:, _RESPONSES] - room_M[:, None], 0).sum(axis=1, dtype=np.int64)
    fits_M = room_M > 0
    return Overlong(len(long_M3), int(long_M3.sum(dtype=np.int64)), int((~fits_M).sum()), int(excess_M[fits_M].sum()))


def cut_to(lengths_N3: Lengths, max_length: int) -> Lengths:
    """The lengths of pairs whose responses are cut to what their prompts leave of `max_length`."""
    room_N1 = max_length - lengths_N3[:, :1]
    cut_N3: Lengths = np.concatenate([lengths_N3[:, :1], np.minimum(lengths_N3[:, _RESPONSES], room_N1)], axis=1)
    return cut_N3


def repeats(content_N: Hashes, prompts_N: Hashes) -> Repeats:
    """Pairs and prompts that come again, of at least one pair, by their hashes."""
    _, counts = np.unique(prompts_N, return_counts=True)
    return Repeats(len(content_N) - len(np.unique(content_N)), len(counts), int(counts.max()))


def chosen_longer(lengths_N3: Lengths) -> Interval:
    """Share of pairs whose chosen response is the longer one, among those of two lengths; (0, 1) if there are none."""
    longer = int((lengths_N3[:, 1] > lengths_N3[:, 2]).sum())
    different = int((lengths_N3[:, 1] != lengths_N3[:, 2]).sum())
    return wilson(longer, different) if different else Interval(0.5, 0.0, 1.0)


def leaks(share: Interval) -> bool:
    """Whether a share that should be about a half is far from it, and not by chance."""
    return abs(share.value - 0.5) > FAR_FROM_HALF and not share.low <= 0.5 <= share.high


def bars(counts: list[int]) -> str:
    """Counts as a row of bars, ``▁▂▅█▃``; what is there at all has a bar."""
    most = max(counts, default=0)
    return "".join(_BARS[math.ceil(count / most * (len(_BARS) - 1)) if count else 0] for count in counts)


def _spread(values_N: Lengths, edges: NDArray[np.float64]) -> Spread:
    median, p95 = np.quantile(values_N, [0.5, 0.95], method="inverted_cdf")
    counts, _ = np.histogram(np.maximum(values_N, edges[0]), edges)
    return Spread(int(median), int(p95), int(values_N.max()), counts.tolist())
