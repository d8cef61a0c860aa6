"""What the lengths and hashes of a data set's pairs say of it, in a few passes over arrays, whatever their number.

Shapes: ``N`` pairs; the three columns of ``lengths_N3`` are the tokens of prompt, chosen and rejected response.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.method.statistics import Interval, wilson
from stages.reporting import Table

Lengths = NDArray[np.int32]
Hashes = NDArray[np.uint64]

BINS: Final = 16
FAR_FROM_HALF: Final = 0.1
PARTS: Final = ("prompt", "chosen", "rejected", "whole row")
_BARS: Final = " ▁▂▃▄▅▆▇█"


def whole_lengths(lengths_N3: Lengths) -> Lengths:
    """Tokens of a pair's longer row, prompt included, (N,)."""
    whole_N: Lengths = lengths_N3[:, 0] + np.maximum(lengths_N3[:, 1], lengths_N3[:, 2])
    return whole_N


def spreads(lengths_N3: Lengths) -> dict[str, Any]:
    """Median, 95th percentile, maximum and histogram of the tokens of each of `PARTS`, of at least one pair.

    ``histogram_edges`` are those of all, evenly spaced on a logarithmic scale; one more than there are bins.
    """
    lengths = np.column_stack([lengths_N3, whole_lengths(lengths_N3)])
    low = max(1, int(lengths.min()))
    high = max(low + 1, int(lengths.max()))
    edges = np.geomspace(low, high, BINS + 1)
    edges[0], edges[-1] = low, high
    found: dict[str, Any] = {"histogram_edges": [round(float(edge), 1) for edge in edges]}
    for part, values_N in zip(PARTS, lengths.T, strict=True):
        median, p95 = np.quantile(values_N, [0.5, 0.95], method="inverted_cdf")
        # An empty prompt has no place on the scale; it counts as the shortest.
        counts, _ = np.histogram(np.maximum(values_N, low), edges)
        found[part] = {"median": int(median), "p95": int(p95), "max": int(values_N.max()), "histogram": counts.tolist()}
    return found


def spread_table(found: dict[str, Any]) -> Table:
    """What `spreads` found."""
    rows = [
        [part, *(f"{found[part][name]:,}" for name in ("median", "p95", "max")), bars(found[part]["histogram"])]
        for part in PARTS
    ]
    low, high = (round(found["histogram_edges"][end]) for end in (0, -1))
    title = f"Tokens before any limit (whole row: prompt and longer response; bars: {low:,} to {high:,}, logarithmic)"
    return Table(title, ["part", "median", "95%", "longest", "how many"], rows)


def overlong(lengths_N3: Lengths, max_length: int) -> dict[str, int]:
    """What a limit does to the pairs that are longer.

    ``pairs``: their number; ``tokens``: all that they have, which dropping them loses; ``without_room``: pairs among
    them whose prompt alone fills the limit, which truncating drops too; ``cut_tokens``: what it cuts from the others.
    """
    long_M3 = lengths_N3[whole_lengths(lengths_N3) > max_length]
    room_M1 = max_length - long_M3[:, :1]
    excess_M = np.maximum(long_M3[:, [1, 2]] - room_M1, 0).sum(axis=1, dtype=np.int64)
    fits_M = room_M1[:, 0] > 0
    return {
        "pairs": len(long_M3),
        "tokens": int(long_M3.sum(dtype=np.int64)),
        "without_room": int((~fits_M).sum()),
        "cut_tokens": int(excess_M[fits_M].sum()),
    }


def repeats(content_N: Hashes, prompts_N: Hashes) -> dict[str, int]:
    """What comes again among at least one pair, by hashes.

    ``pairs``: whose prompt and answers an earlier pair has too; ``prompts``: different ones; ``most``: pairs of the
    prompt that has most of them.
    """
    _, counts = np.unique(prompts_N, return_counts=True)
    again = len(content_N) - len(np.unique(content_N))
    return {"pairs": again, "prompts": len(counts), "most": int(counts.max())}


def chosen_longer(lengths_N3: Lengths) -> Interval:
    """Share of pairs whose chosen response is the longer one, among those of two lengths; (0, 1) if there are none."""
    longer = int((lengths_N3[:, 1] > lengths_N3[:, 2]).sum())
    different = int((lengths_N3[:, 1] != lengths_N3[:, 2]).sum())
    return wilson(longer, different) if different else Interval(0.5, 0.0, 1.0)


def leaks(share: Interval) -> bool:
    """Whether a share that should be about a half is far from it, and not by chance."""
    return abs(share.value - 0.5) > FAR_FROM_HALF and not share.low <= 0.5 <= share.high


def bars(counts: Sequence[float] | NDArray[Any]) -> str:
    """Counts as a row of bars, ``▁▂▅█▃``; what is there at all has a bar."""
    most = max(counts, default=0)
    return "".join(_BARS[math.ceil(count / most * (len(_BARS) - 1)) if count else 0] for count in counts)
