"""`sepo`, and `python -m sepo_cli`, which is also what `accelerate launch -m sepo_cli ...` starts."""

import os
import signal
from types import FrameType


def start() -> None:
    """Run `sepo` as a process of its own: the imports of the program may already be interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # What is ignored, as under nohup, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from sepo_cli.main import main

    main()


def _leave(number: int, frame: FrameType | None) -> None:
    """One line, and the end: within imports an exception may be lost, and nothing was begun to be put in order."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    start()
