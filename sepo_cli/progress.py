"""What is known of a piece of long work: how far, how fast, how long still. Shared by the bar and the plain lines."""

import time
from collections.abc import Callable

from stages.reporting import printable

Clock = Callable[[], float]


class Work:
    """A `stages.reporting.Task` that keeps the books and shows nothing.

    Args:
        total: 0 where nobody knows it.
        clock: seconds, from any start.
    """

    def __init__(self, title: str, total: int, unit: str, clock: Clock = time.monotonic) -> None:
        self.title = printable(title)
        self.total = total
        self.unit = unit
        self.done = 0
        self._note = ""
        self._clock = clock
        self._start = clock()
        # The rate counts from the end of the first `advance`: what a resumed run brings along in it was done by
        # another run, and a first step that compiles and allocates says nothing about the next.
        self._mark: tuple[float, int] | None = None

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        self._note = printable(note) or self._note
        if self._mark is None:
            self._mark = (self._clock(), self.done)

    def end(self) -> None:
        """Stop the clock: the figures stay as they are now."""
        now = self._clock()
        self._clock = lambda: now

    @property
    def elapsed(self) -> float:
        return self._clock() - self._start

    @property
    def rate(self) -> float:
        """Units per second; 0 while nothing is known."""
        since, before = self._mark or (self._start, 0)
        if self.done == before:
            since, before = self._start, 0
        seconds = self._clock() - since
        return (self.done - before) / seconds if seconds > 0 else 0.0

    def figures(self) -> str:
        """Such as ``128/640 pairs, 12.3 pairs/s, 0:10 passed, 0:42 left, loss 0.65``."""
        of = f"/{self.total:,}" if self.total else ""
        parts = [f"{self.done:,}{of} {self.unit}"]
        rate = self.rate
        if rate > 0:
            parts.append(f"{_three_digits(rate)} {self.unit}/s")
        parts.append(f"{duration(self.elapsed)} passed")
        if rate > 0 and self.total > self.done:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, self._note] if self._note else parts)


def duration(seconds: float) -> str:
    """``0:42``, ``59:01``, ``26:03:09``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _three_digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
