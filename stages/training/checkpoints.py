"""Checkpoints of a training phase: everything that the next step depends on, whole or absent."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch.distributed.checkpoint.stateful import Stateful

from stages.devices.memory import enough_memory
from stages.errors import SepoError, one_line
from stages.reporting import Reporter
from stages.store.checksums import fault_in, read_checksums, unlisted_in, write_checksums
from stages.store.files import write_text, writing

FOLDER: Final = "checkpoints"
WEIGHTS: Final = "pytorch_model.bin"
"""of the one model, as accelerate names the file"""
LAYOUTS: Final = {
    WEIGHTS: "with the whole model in every process",
    "pytorch_model_fsdp_0": "by FSDP2 with SHARDED_STATE_DICT",
    "pytorch_model_fsdp.bin": "by FSDP2 with FULL_STATE_DICT",
}
"""how the weights of a checkpoint were written, by the name that accelerate gives them"""
STATE: Final = "state.json"
"""of what accelerate does not know"""
FORMAT_FAULTS: Final = (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError, SafetensorError)
"""what torch and safetensors raise for a file that is not as they expect it"""
MACHINE_FAULTS: Final = (torch.AcceleratorError, torch.distributed.DistError)
"""among the same classes: a device or a connection that failed, of which no file is to blame"""
MEMORY_HINT: Final = "see what else takes the memory, then run the same again: the checkpoints are sound"


def forget_checkpoints(folder: Path) -> None:
    """The model is saved: the checkpoints of its training are of no more use."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


@dataclass
class Checkpoints:
    """The newest checkpoints of one phase: model, optimiser, schedule, random states, sums of what is not yet logged.

    Of a model that is trained in part, such as an adapter, the rest is left out: `WeightedLogps` sees to it.
    """

    accelerator: Accelerator
    folder: Path
    phase: str
    keep: int
    """how many there may be"""
    fingerprint: str
    """of the run"""
    parts: Mapping[str, Stateful]
    """what else is saved, by name: as JSON, since a pickle could run code when it is loaded"""
    newest: int = 0
    """steps that are safe"""

    def save(self, step: int) -> None:
        """Save after `step` steps, then let the oldest go: where it cannot be written, they are still there."""
        target = self.folder / f"{self.phase}-{step:08d}"
        with _writing(target):
            self._write(target)
        self.newest = step
        if self.accelerator.is_main_process:
            for path in self._found()[: -self.keep]:
                with writing(path):
                    shutil.rmtree(path)

    def resume(self, reporter: Reporter, steps: int) -> int:
        """Load the newest sound checkpoint, if any, and return how many of the phase's `steps` it holds."""
        [name] = broadcast_object_list([self._newest_sound(reporter) if self.accelerator.is_main_process else ""])
        if name:
            path = self.folder / name
            self._refuse_other(path, steps)
            with _going_on_from(path):
                self.accelerator.load_state(str(path))
                states = json.loads((path / STATE).read_text(encoding="utf-8"))
                for part, its in self.parts.items():
                    its.load_state_dict(states[part])
            self.newest = _step_of(path)
            reporter.say(f"{self.phase}: goes on after step {self.newest:,}, from {path}")
        return self.newest

    def _refuse_other(self, path: Path, steps: int) -> None:
        of_another = read_checksums(path)["run"] != self.fingerprint
        if of_another or _step_of(path) > steps:
            fault = "of another run" if of_another else f"beyond the {steps:,} steps of this run"
            raise SepoError(f"{path} is {fault}", hint=f"move {self.folder} away, and run the same again")
        here = self._layout()
        written = next((how for name, how in LAYOUTS.items() if (path / name).exists()), here)
        if written != here:
            problem = f"{path} was written {written}, and this run would go on {here}"
            raise SepoError(
                problem, hint=f"start it as before, with any number of processes, or move {self.folder} away"
            )
        # What a library finds beside the files that it wrote may be what it prefers to load.
        unlisted = unlisted_in(path)
        if unlisted:
            problem = f"{path} holds {unlisted[0]}, which was not written with it"
            raise SepoError(problem, hint="remove it, and run the same again")

    def _layout(self) -> str:
        """How this run writes its weights, of `LAYOUTS`."""
        if not self.accelerator.is_fsdp2:
            return LAYOUTS[WEIGHTS]
        return f"by FSDP2 with {self.accelerator.state.fsdp_plugin.state_dict_type.name}"

    def _newest_sound(self, reporter: Reporter) -> str:
        """Its name; damaged ones are named and removed."""
        damaged = False
        for path in reversed(self._found()):
            fault = fault_in(path)
            if not fault:
                return path.name
            damaged = True
            reporter.warn(f"{path} is damaged ({fault}); it is removed, and training goes on from before it")
            shutil.rmtree(path, ignore_errors=True)
        if damaged:
            reporter.warn(f"{self.phase}: no sound checkpoint is left; it starts anew")
        return ""

    def _write(self, target: Path) -> None:
        """Every process writes its part into one temporary folder; the first one renames it when all are done."""
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            self.accelerator.save_state(str(temporary), safe_serialization=False)
            states = {name: part.state_dict() for name, part in self.parts.items()}
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                write_text(temporary / STATE, json.dumps(states))
                write_checksums(temporary, self.fingerprint)
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
            self.accelerator.wait_for_everyone()
        finally:
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)

    def _found(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"{self.phase}-{'[0-9]' * 8}") if path.is_dir())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    hint = "free the space, then run the same again"
    try:
        with enough_memory(f"writing {path}", lambda: MEMORY_HINT), writing(path, hint):
            yield
    except MACHINE_FAULTS:
        raise
    except FORMAT_FAULTS as error:
        raise SepoError(f"cannot write {path}: {one_line(error)}", hint=hint) from error


@contextmanager
def _going_on_from(path: Path) -> Iterator[None]:
    """Only a file that these libraries do not understand is worth no second try."""
    try:
        with enough_memory(f"loading {path}", lambda: MEMORY_HINT):
            yield
    except MACHINE_FAULTS:
        raise
    except OSError as error:
        hint = "it was sound a moment ago: mend what hinders reading it, then run the same again"
        raise SepoError(f"cannot read {path}: {one_line(error)}", hint=hint) from error
    except FORMAT_FAULTS as error:
        hint = f"use the versions of torch and accelerate that wrote it, or delete {path.parent} to train anew"
        raise SepoError(f"cannot go on from {path}: {one_line(error)}", hint=hint) from error


def _step_of(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])
