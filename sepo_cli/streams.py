"""What is shown may be lost, by a reader that went away or a full disk; what was done may not be undone by that."""

import io
import os
import sys
from typing import Any, Final

_LOST: Final[dict[int, OSError]] = {}
"""why something written to stdout or stderr was lost, by file descriptor"""


class _Forgiving(io.FileIO):
    """A stream whose reader may go away: what can no longer be written is dropped, and remembered as lost."""

    def write(self, data: Any) -> int:
        try:
            return int(super().write(data))
        except OSError as error:
            _LOST.setdefault(self.fileno(), error)
            return memoryview(data).nbytes


def forgive_streams() -> None:
    """Make stdout and stderr survive whatever becomes of their other ends, and of characters that they lack."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError as closed:
            # It would be given to the next file that is opened, and that file would hold what is printed.
            _LOST[descriptor] = closed
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            raw = io.BufferedWriter(_Forgiving(descriptor, "w", closefd=False))
            forgiving = io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)
            setattr(sys, name, forgiving)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def lost_output() -> OSError | None:
    """Why some of stdout was lost, if it was and nobody has asked yet: it is told once."""
    sys.stdout.flush()
    return _LOST.pop(1, None)
