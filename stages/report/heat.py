"""Scores as steps of a diverging colour scale."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.types import Floats

STEPS: Final = 10
"""of colour on each side of the middle"""


def levels(scores: Floats, median: float, far: float) -> NDArray[np.int8]:
    """The step of each score in [-STEPS, STEPS]: 0 near the median, the last one at a distance of `far` and beyond."""
    steps = np.rint((scores.astype(np.float64) - median) / (far or 1.0) * STEPS)
    return np.clip(steps, -STEPS, STEPS).astype(np.int8)
