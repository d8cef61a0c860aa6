"""How many processes work together, that they know of each other, and what each one's share is."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from stages.configs import worker_numbers
from stages.errors import SepoError
from stages.model.trackers import refuse_missing_tracker

PATIENCE: Final = timedelta(hours=2)
"""How long processes wait for each other: while the first one tokenises, the usual ten minutes are soon over."""


class Worker(NamedTuple):
    """One of several that divide pieces of work without talking to each other."""

    number: int
    """from 1"""
    workers: int

    def __str__(self) -> str:
        return f"{self.number}/{self.workers}"

    def share(self, pieces: int) -> range:
        """The pieces of this worker, by their index: every `workers`-th one."""
        return range(self.number - 1, pieces, self.workers)


def this_worker(accelerator: Accelerator, given: str | None) -> Worker:
    """The worker that this process is: given as ``3/16``, a process of `accelerate launch`, or one in the other."""
    number, count = worker_numbers(given) if given else (1, 1)
    processes = accelerator.num_processes
    return Worker((number - 1) * processes + accelerator.process_index + 1, count * processes)


def join_processes(report_to: str = "none", folder: Path | None = None) -> Accelerator:
    """This process's accelerator, as `accelerate launch` or torchrun configured it.

    Args:
        report_to: the tracker that `stages.model.trackers.tracking` opens.
        folder: where a tracker that writes files puts them.

    Raises:
        SepoError: several processes were started, but accelerate sees one: they would all write the same files; or the
            tracker is not installed.
    """
    refuse_missing_tracker(report_to)
    # Taken from the environment, these would change the result behind the fingerprint's back.
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    log_with = report_to if folder is not None and report_to != "none" else None
    accelerator = Accelerator(
        mixed_precision="no",
        gradient_accumulation_steps=1,
        kwargs_handlers=[patience],
        log_with=log_with,
        project_dir=folder,
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        used = f"{accelerator.num_processes} on {accelerator.device}"
        raise SepoError(
            f"{started} processes were started, but accelerate uses {used}",
            hint="on a machine without a GPU set ACCELERATE_USE_CPU=true, or start one process",
        )
    return accelerator


def refuse_several(accelerator: Accelerator, stage: str) -> None:
    """Stop a stage that has to run alone."""
    if accelerator.num_processes > 1:
        raise SepoError(
            f"`sepo {stage}` runs in one process, but {accelerator.num_processes} were started",
            hint=f"start it as `sepo {stage}`, without accelerate launch or torchrun",
        )
