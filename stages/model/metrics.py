"""metrics.jsonl: one line for every logged step, free of times, so that a rerun writes the same bytes."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stages.currency import PairLoss
from stages.store.files import write_text

FILE = "metrics.jsonl"


class MetricLog:
    """Averages over the pairs of the logged steps, kept on the device until it is time to log."""

    def __init__(self, accelerator: Accelerator, folder: Path, phase: str, first: int, every: int) -> None:
        self._accelerator = accelerator
        self._path = folder / FILE
        self._phase = phase
        self._every = every
        self._sums: dict[str, Tensor] = {}
        self._loss: Tensor | float = 0.0
        self._pairs = 0
        self._steps = 0
        self.last: dict[str, float] = {}
        if accelerator.is_main_process:
            _forget_after(self._path, phase, first)
        for record in read_metrics(folder):
            if record["phase"] == phase and record["step"] <= first:
                self.last = _values(record)

    @property
    def note(self) -> str:
        """The live figure of the progress line."""
        return f"loss {self.last['loss']:.4f}" if self.last else ""

    def add(self, loss: PairLoss, step_size: float) -> None:
        """One micro-batch of a step whose losses are divided by `step_size`."""
        self._loss = self._loss + loss.loss_B.sum() / step_size
        self._pairs += len(loss.loss_B)
        for name, values_B in loss.metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=values_B.device)) + values_B.sum()

    def end_step(self, step: int, learning_rate: float, gradient_norm: Tensor | float, *, last: bool) -> None:
        """Close a step (counted from 0); every so often, and after the last one, average and write."""
        self._steps += 1
        if not last and (step + 1) % self._every:
            return
        record = {"phase": self._phase, "step": step + 1, **self._averages()}
        record |= {"learning_rate": learning_rate, "gradient_norm": float(gradient_norm)}
        self.last = _values(record)
        if self._accelerator.is_main_process:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self._sums, self._loss, self._pairs, self._steps = {}, 0.0, 0, 0

    def _averages(self) -> dict[str, float]:
        device = self._accelerator.device
        names = sorted(self._sums)
        local = [torch.as_tensor(self._loss, device=device), torch.tensor(float(self._pairs), device=device)]
        totals = self._accelerator.reduce(torch.stack([*local, *(self._sums[name] for name in names)]), "sum").tolist()
        loss, pairs, *sums = totals
        averages = {"loss": loss / self._steps}
        return averages | {name: total / pairs for name, total in zip(names, sums, strict=True)}


def _values(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, float)}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's metrics.jsonl; none if there is no such file."""
    path = folder / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A killed run may have left half a line at the end.
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _forget_after(path: Path, phase: str, step: int) -> None:
    """Drop the lines that an interrupted run wrote after the checkpoint from which it goes on."""
    kept = [line for line in read_metrics(path.parent) if line["phase"] != phase or line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
