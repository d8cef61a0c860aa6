"""How many processes work together, that they know of each other, and what each one's share is."""

import os
import re
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    disable_fsdp_ram_efficient_loading,
)

from stages.compat import forget_other_precision
from stages.configs import worker_numbers
from stages.devices.engines import (
    compute_in_half_precision,
    refuse_missing_engine,
    refuse_other_engines,
    refuse_other_precision,
)
from stages.devices.extras import refuse_without
from stages.errors import SepoError, borrowed, one_line, shortened

T = TypeVar("T")

PATIENCE: Final = timedelta(hours=2)
"""How long processes wait for each other: while the first one tokenises, the usual ten minutes are soon over."""
_NUMBERS: Final = {"RANK": -1, "LOCAL_RANK": -1, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
"""variables of a launcher, and the least that they may be; -1: none"""
_UNSET: Final = "unset what a launcher did not set (RANK, WORLD_SIZE, MASTER_PORT, ACCELERATE_... in the environment)"


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


class Team(NamedTuple):
    """Processes that do one piece of work together: the first of them decides, and it alone writes."""

    processes: Accelerator | None
    """None: this process by itself"""

    @property
    def first(self) -> bool:
        """Whether this process decides and writes."""
        return self.processes is None or self.processes.is_main_process

    def agreed(self, find: Callable[[], T]) -> T:
        """What the first process finds, in all of them, each of which has to ask; the others do not look."""
        found = find() if self.first else None
        heard: list[Any] = broadcast_object_list([found]) if self.processes else [found]
        agreed: T = heard[0]
        return agreed


ALONE: Final = Team(None)


def this_worker(accelerator: Accelerator, given: str | None, team: Team = ALONE) -> Worker:
    """The worker that this process is: given as ``3/16``, a process of `accelerate launch`, or one in the other.

    All processes of a team are one worker.
    """
    number, count = worker_numbers(given) if given else (1, 1)
    if team.processes:
        return Worker(number, count)
    processes = accelerator.num_processes
    return Worker((number - 1) * processes + accelerator.process_index + 1, count * processes)


def join_processes(mixed_precision: str = "no", report_to: str = "none", folder: Path | None = None) -> Accelerator:
    """This process's accelerator, as `accelerate launch` or torchrun configured it.

    Args:
        report_to: the tracker that `stages.training.trackers.tracking` opens.
        folder: where a tracker that writes files puts them.

    Raises:
        SepoError: several processes were started, but accelerate sees one: they would all write the same files; or the
            engine or the tracker that was asked for is not to be had.
    """
    for name, least in _NUMBERS.items():
        value = os.environ.get(name, str(least))
        if not re.fullmatch(r"-?\d{1,6}", value, re.ASCII) or int(value) < least:
            problem = f"{name} must be a whole number of at least {least}, got {shortened(repr(value))}"
            raise SepoError(problem, hint=_UNSET)
    _refuse_unknown_host()
    _refuse_old_addresses()
    refuse_other_engines()
    refuse_other_precision(mixed_precision)
    if report_to != "none":
        # Every tracker is a package of its own name.
        refuse_without(report_to, f"--report-to {report_to}", "report" if report_to == "tensorboard" else None)
    # It would fill the model in the first process only, of which the others get their parts from it.
    disable_fsdp_ram_efficient_loading()
    log_with = report_to if folder is not None and report_to != "none" else None
    forget_other_precision(mixed_precision)
    with borrowed("accelerate cannot start", _UNSET):
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            # A plain number would give way to the environment's, by which every gradient would be divided.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
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
    if started > 1:
        refuse_missing_engine(accelerator)
    if accelerator.is_fsdp2:
        compute_in_half_precision(accelerator)
    # cuDNN plans attention anew for every length of a row, which takes longer than the attention itself: with it a
    # training step in bfloat16 took fifty times as long on an H200.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return accelerator


def _refuse_unknown_host() -> None:
    """torch would look for it as long as processes wait for each other, and hear no signal meanwhile."""
    host = os.environ.get("MASTER_ADDR")
    if host is None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise SepoError(
            f"MASTER_ADDR must be a host that can be found from here, got {shortened(repr(host))}: {one_line(error)}",
            hint=_UNSET,
        ) from None


def _refuse_old_addresses() -> None:
    """A restarted process would find in the launcher's store where the others were before, and wait for them there."""
    restarts, shared = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"), "TORCHELASTIC_USE_AGENT_STORE"
    if restarts != "0" and os.environ.get(shared) == "True" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise SepoError(
            f"--max-restarts {shortened(restarts)} would fail: restarted processes look for each other where they were",
            hint="start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --rdzv-backend c10d (or --standalone)",
        )


def refuse_several(accelerator: Accelerator, stage: str) -> None:
    """Stop a stage that has to run alone."""
    if accelerator.num_processes > 1:
        raise SepoError(
            f"`sepo {stage}` runs in one process, but {accelerator.num_processes} were started",
            hint=f"start it as `sepo {stage}`, without accelerate launch or torchrun",
        )
