"""SIGINT and SIGTERM where no stage is at work: one line, and the end. Loads nothing that takes time."""

import os
import signal
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def leave_when_told() -> None:
    """Within imports an exception may end as any other, or be lost; nothing was begun that needs to be put in order."""
    for number in SIGNALS:
        # What is ignored, as under nohup, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
