"""How many processes work together, and that they know of each other."""

import os
from datetime import timedelta
from typing import Final

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from stages.errors import SepoError

PATIENCE: Final = timedelta(hours=2)
"""How long processes wait for each other: while the first one tokenises, the usual ten minutes are soon over."""


def join_processes() -> Accelerator:
    """This process's accelerator, as `accelerate launch` or torchrun configured it.

    Raises:
        SepoError: several processes were started, but accelerate sees one: they would all write the same files.
    """
    # Taken from the environment, these would change the result behind the fingerprint's back.
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=1, kwargs_handlers=[patience])
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
