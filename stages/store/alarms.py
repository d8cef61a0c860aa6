"""What is wrong with scores taken together: said by whoever makes, checks or uses them, in the same words."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from stages.store.shape import lookup
from stages.types import PairLogps


class Scale:
    """How far apart scores are, added up in constant memory. In nats."""

    def __init__(self) -> None:
        self._tokens = 0
        self._total = self._squares = 0.0
        self.low = math.inf
        self.high = -math.inf

    def add(self, scores: PairLogps) -> None:
        for side in scores:
            self._tokens += len(side)
            self._total += float(np.sum(side, dtype=np.float64))
            self._squares += float(np.square(side, dtype=np.float64).sum())
            self.low = min(self.low, float(np.min(side)))
            self.high = max(self.high, float(np.max(side)))

    @property
    def spread(self) -> float:
        """Standard deviation."""
        mean = self._total / self._tokens
        return math.sqrt(max(0.0, self._squares / self._tokens - mean**2))


class Spread(Protocol):
    """How far apart scores are, in nats, by whoever has added them up."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def spread(self) -> float: ...


def alarms(scale: Spread, manifest: Mapping[str, Any]) -> list[str]:
    """Why the scores cannot tell one token from another, by their manifest or one that is about to be written."""
    found = []
    oracle, reference = (lookup(manifest, f"inputs.{name}") for name in ("oracle", "reference"))
    if oracle is not None and oracle == reference:
        found.append("oracle and reference are one model: scores of it against itself hold no preference")
    noise = lookup(manifest, "results.noise.p99")
    if scale.low == scale.high:
        found.append(f"every score is {scale.low:g}: a selection by scores follows the order of the tokens alone")
    elif noise is not None and scale.low < scale.high and scale.spread < noise:
        found.append(
            f"the scores' spread of {scale.spread:.2g} nats is below their noise of {noise:.2g} (99th percentile):"
            " a selection by scores follows rounding"
        )
    return found
