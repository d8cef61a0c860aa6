"""What is wrong with scores taken together: said by whoever makes, checks or uses them, in the same words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stages.store.shape import lookup
from stages.types import PairLogps


@dataclass
class Scale:
    """How far apart scores are, added up in constant memory. In nats."""

    tokens: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, scores: PairLogps) -> None:
        for side in scores:
            self.tokens += len(side)
            self.total += float(np.sum(side, dtype=np.float64))
            self.squares += float(np.square(side, dtype=np.float64).sum())
            self.low = min(self.low, float(np.min(side)))
            self.high = max(self.high, float(np.max(side)))

    def merge(self, other: "Scale") -> None:
        """Add what another one has added."""
        self.tokens += other.tokens
        self.total += other.total
        self.squares += other.squares
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    @property
    def spread(self) -> float:
        """Standard deviation."""
        mean = self.total / self.tokens
        return math.sqrt(max(0.0, self.squares / self.tokens - mean**2))


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
