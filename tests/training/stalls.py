"""Runs of `fit` in two processes: the second one hangs, or is asked to end. `python -m tests.training.stalls FOLDER`"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from stages.devices.processes import join_processes
from stages.reporting import Quiet
from stages.training.leaving import VARIABLE
from tests.training.fits import objective, train, weights

PATIENCE = 2.0


class Told(Quiet):
    """Puts what it is told into a file, when it is told it."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def alarm(self, text):
        super().alarm(text)
        self.path.write_text(json.dumps(self.warnings))


def main(folder):
    rank, calls = join_processes().process_index, 0

    def hangs(logps_RW, batch):
        nonlocal calls
        calls += 1
        if rank == 1 and calls == 1:
            # Long enough to be seen where it is, before it is seen somewhere else.
            time.sleep(0.7)
        while rank == 1 and calls == 2 and not (folder / "hangs.json").exists():
            time.sleep(0.05)
        return objective(logps_RW, batch)

    def asked(logps_RW, batch):
        nonlocal calls
        calls += 1
        if rank == 1 and calls == 3:
            signal.raise_signal(signal.SIGINT)
        return objective(logps_RW, batch)

    found = {}
    for work in (objective, hangs):
        name = work.__name__
        reporter = Told(folder / f"{name}.json")
        found[name] = weights(train(folder / name, objective=work, reporter=reporter, patience=PATIENCE, save_steps=1))
    os.environ[VARIABLE], calls = "0", 0
    # A pair for each micro-batch: two a step in each process.
    small = {"save_steps": 100, "max_tokens_per_device": 2}
    with suppress(KeyboardInterrupt):
        train(folder / "asked", objective=asked, **small)
    left = sorted(path.name for path in (folder / "asked/checkpoints").iterdir())
    found["asked"] = weights(train(folder / "asked", **small))
    if rank == 0:
        torch.save({"weights": found, "left": left}, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
