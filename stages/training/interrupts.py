"""Signals that ask a run to end, held back until the step that they came in is done."""

import signal
import threading
import time
from types import TracebackType
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
TOGETHER: Final = 3.0
"""seconds in which a second SIGTERM is the first one again: a scheduler may send it, and the launcher pass it on"""


class Interrupts:
    """While open, the first SIGINT or SIGTERM is only remembered; a second one does at once what it always does.

    Outside the main thread, where Python lets nobody handle signals, it holds nothing back.
    """

    def __init__(self) -> None:
        self.number = 0
        """the signal that came; 0: none yet"""
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # What is ignored, as under nohup, stays ignored.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._let_go()
        if self.number and kind is None:
            signal.raise_signal(self.number)

    def leave(self, number: int) -> None:
        """Let a signal, of this process or of one that works with it, do what it always does."""
        self._let_go()
        self.number = 0
        signal.raise_signal(number)

    def _remember(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
        elif number == signal.SIGINT or now - self._since > TOGETHER:
            self._let_go()
            signal.raise_signal(number)

    def _let_go(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
