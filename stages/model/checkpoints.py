"""Checkpoints of a training phase: everything that the next step depends on, whole or absent."""

import shutil
from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator

from stages.reporting import Reporter
from stages.store.files import whole_folder

FOLDER: Final = "checkpoints"


def forget_checkpoints(folder: Path) -> None:
    """The model is saved: the checkpoints of its training are of no more use."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _leave_out_frozen(models: list[Any], weights: list[dict[str, Any]], folder: str) -> None:
    """Takes the weights that are not trained, and what belongs to them, out of the state that is about to be saved."""
    for model, state in zip(models, weights, strict=False):
        if _frozen_names(model):
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            for name in [name for name in state if name not in trained]:
                del state[name]


def _frozen_names(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


class Checkpoints:
    """The newest checkpoint of one phase: model, optimiser, schedule and random states, as accelerate saves them.

    Of a model that is trained in part, such as an adapter, the rest is left out: it is where it was loaded from.

    That a checkpoint belongs to the same run is what `stages.store.manifest.open_run` made sure of.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, phase: str) -> None:
        self._accelerator = accelerator
        self._folder = folder / FOLDER
        self._phase = phase
        accelerator.register_save_state_pre_hook(_leave_out_frozen)

    def save(self, step: int) -> None:
        """Save after `step` steps, then let the older one go."""
        older = self._found()
        target = self._folder / f"{self._phase}-{step:08d}"
        if self._accelerator.num_processes == 1:
            with whole_folder(target) as temporary:
                self._accelerator.save_state(str(temporary))
        else:
            self._save_together(target)
        if self._accelerator.is_main_process:
            for path in older:
                shutil.rmtree(path)

    def resume(self, reporter: Reporter) -> int:
        """Load the newest checkpoint, if any, and return how many steps it holds."""
        found = self._found()
        if not found:
            return 0
        self._accelerator.load_state(str(found[-1]), strict=not self._partly_trained())
        step = int(found[-1].name.rsplit("-", 1)[1])
        reporter.say(f"{self._phase}: goes on after step {step:,}, from {found[-1]}")
        return step

    def _save_together(self, target: Path) -> None:
        """Every process writes its part into one temporary folder; the first one renames it when all are done."""
        temporary = target.with_name(f".{target.name}.tmp")
        self._accelerator.save_state(str(temporary))
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            temporary.rename(target)
        self._accelerator.wait_for_everyone()

    def _partly_trained(self) -> bool:
        return any(_frozen_names(model) for model in self._accelerator._models)

    def _found(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._phase}-*"))
