"""Whether a run that is asked to end can do so in time: schedulers and launchers ask it once, then kill it."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

VARIABLE: Final = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""of the launcher's environment: the seconds that it gives its processes"""
USUAL: Final = 30
"""seconds without it; Slurm and Kubernetes give as much"""
SHARE: Final = 2 / 3
"""of that time, which a run may plan with"""


class Leaving:
    """What the parts of a run took when they were last done, against the time that is given."""

    def __init__(self) -> None:
        said = os.environ.get(VARIABLE, "")
        self._given = int(said) if said.isdecimal() else USUAL
        self._seconds = {"step": 0.0, "micro-batch": 0.0, "held-out pairs": 0.0, "checkpoint": 0.0}
        self._warned = False

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[part] = time.monotonic() - began

    def stepped(self, micro_batches: int) -> None:
        """The step that was last timed had so many micro-batches."""
        self._seconds["micro-batch"] = self._seconds["step"] / micro_batches

    def is_short(self, *, judges: bool) -> bool:
        """Whether a step, perhaps with its held-out pairs, and its checkpoint would not be done in that time.

        Such a step is given up.
        """
        parts = ("step", "checkpoint", *(["held-out pairs"] if judges else []))
        return sum(self._seconds[part] for part in parts) > SHARE * self._given

    def warning(self) -> str:
        """Once, where even a given-up step is not: what a user has to set. Only of a launcher it is known how."""
        longest = max(("micro-batch", "held-out pairs"), key=lambda part: self._seconds[part])
        needed = self._seconds[longest] + self._seconds["checkpoint"]
        if self._warned or needed <= SHARE * self._given or "TORCHELASTIC_RUN_ID" not in os.environ:
            return ""
        self._warned = True
        what = {"micro-batch": "a micro-batch", "held-out pairs": "the held-out pairs"}[longest]
        what += f" ({self._seconds[longest]:.0f} s)"
        what += f" and a checkpoint ({self._seconds['checkpoint']:.0f} s)" if self._seconds["checkpoint"] else ""
        value = 10 * math.ceil(needed / SHARE / 10 + 1)
        return (
            f"asked to end, this run needs the time of {what}, and its launcher kills it after {self._given} s, unless"
            f" its --shutdown-timeout says more: set {VARIABLE}={value} where it is started, or steps may be lost"
        )
