"""metrics.jsonl: one line for every logged step, free of times, so that a rerun writes the same bytes.

Times and memory, which never repeat, stand beside it in timing.jsonl.
"""

import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor

from stages.reporting import Reporter, counted
from stages.store.files import json_text, make_durable, write_bytes, writing
from stages.store.place import place_of
from stages.training.metric_lines import FILE, RENAMED, Line, read_metrics, sound_lines
from stages.training.watch import collapse, linear
from stages.types import Example, PairLoss

TIMES: Final = "timing.jsonl"
LIVE: Final = {
    "loss": "loss",
    "reward_margin": "margin",
    "accuracy": "accuracy",
    "eval_loss": "held-out loss",
    "eval_reward_margin": "held-out margin",
    "eval_accuracy": "held-out accuracy",
    "chosen_logp": "chosen logp",
    "rejected_logp": "rejected logp",
}
"""what is shown of a logged step while training goes on, and its name there"""


class MetricLog:
    """Averages over the pairs of the logged steps, kept on the device until it is time to log.

    What is not yet logged is part of a checkpoint.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, phase: str, every: int, reporter: Reporter) -> None:
        self._accelerator = accelerator
        self._path = folder / FILE
        self._phase = phase
        self._every = every
        self._reporter = reporter
        self._pace = _Pace(folder / TIMES, accelerator.device)
        self._sums: dict[str, Tensor] = {}
        self._loss: Tensor | float = 0.0
        self._pairs: Tensor | float = 0.0
        self._steps = 0
        self._chosen_logps: list[float] = []
        self._lines = 0
        self._checksums: list[str] = []
        """of the lines of all phases"""
        self._vouched: frozenset[str] | None = None
        """those that there were at the checkpoint"""
        self.last: dict[str, float] = {}

    def start(self, first: int) -> None:
        """Go on after `first` steps: what an interrupted run logged after them is dropped."""
        if not self._accelerator.is_main_process:
            return
        kept, damaged = _forget_after(self._path, self._phase, first, self._vouched)
        _, damaged_times = _forget_after(self._pace.path, self._phase, first)
        self._checksums = [line.checksum for line in kept]
        there = [line.record for line in kept if line.record["phase"] == self._phase]
        self._chosen_logps = [line["chosen_logp"] for line in there if line.get("chosen_logp") is not None]
        lost = self._lines - len(there)
        if lost > 0:
            self._reporter.warn(f"{self._path} has lost {lost:,} of the {self._lines:,} lines of {self._phase} so far")
        for path, count in ((self._path, damaged if lost <= 0 else 0), (self._pace.path, damaged_times)):
            if count:
                self._reporter.warn(f"{path} had {counted(count, 'damaged line')}: left out")

    @property
    def live(self) -> dict[str, float]:
        """What the progress display shows of the step that was just closed: nothing if it was not logged."""
        if self._steps:
            return {}
        return {name: self.last[key] for key, name in LIVE.items() if key in self.last} | self._pace.figures()

    def add(self, loss: PairLoss, step_size: float) -> None:
        """One micro-batch of a step whose losses are divided by `step_size`."""
        self._loss = self._loss + loss.loss_B.sum() / step_size
        self._pairs += len(loss.loss_B)
        for name, values_B in loss.metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=values_B.device)) + values_B.sum()

    def end_step(
        self,
        step: int,
        examples: Sequence[Example],
        learning_rate: float,
        gradient_norm: float | None,
        held_out: Mapping[str, float],
        *,
        last: bool,
    ) -> None:
        """Close a step (counted from 0); every so often, and after the last one, average and write.

        Args:
            gradient_norm: None for a step that overflowed in fp16 and was not taken.
        """
        self._steps += 1
        self._pace.add(examples)
        if not last and (step + 1) % self._every:
            return
        loss, pairs, *sums = self._accelerator.reduce(self._row(), "sum").tolist()
        record = {"phase": self._phase, "step": step + 1, "loss": loss / self._steps}
        record |= {name: total / pairs for name, total in zip(sorted(self._sums), sums, strict=True)}
        record |= {"learning_rate": learning_rate, "gradient_norm": gradient_norm, **held_out}
        warned = collapse(self._chosen_logps)
        self.last = {name: value for name, value in record.items() if isinstance(value, float)}
        if "chosen_logp" in record:
            self._chosen_logps.append(record["chosen_logp"])
        self._lines += 1
        if not warned and collapse(self._chosen_logps):
            self._reporter.warn(f"{self._phase}, step {step + 1}: {collapse(self._chosen_logps)}")
        if self._accelerator.is_main_process:
            self._checksums.append(_append(self._path, record))
            _append(self._pace.path, {"phase": self._phase, "step": step + 1, **self._pace.lap()})
        self._accelerator.log({f"{self._phase}/{name}": value for name, value in self.last.items()}, step=step + 1)
        self._sums, self._loss, self._pairs, self._steps = {}, 0.0, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """What was logged, and the sums since then, a row for each process: added up, they would round otherwise.

        The lines are on the disk when this ends: a checkpoint must not outlive them.
        """
        if self._accelerator.is_main_process and self._path.exists():
            with self._path.open("rb+") as file:
                make_durable(file)
        # Through JSON and back a float32 stays the same.
        rows = self._accelerator.gather(self._row()[None]).tolist()
        open_sums = {"names": sorted(self._sums), "rows": rows, "steps": self._steps}
        return open_sums | {"lines": self._lines, "checksums": self._checksums, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows = torch.tensor(state["rows"])[self._accelerator.process_index :: self._accelerator.num_processes]
        self._loss, self._pairs, *sums = rows.sum(0).to(self._accelerator.device)
        self._sums = dict(zip((RENAMED.get(name, name) for name in state["names"]), sums, strict=True))
        self._steps, self._lines = state["steps"], state["lines"]
        self.last = {RENAMED.get(name, name): value for name, value in state["last"].items()}
        if "checksums" in state:
            self._vouched = frozenset(state["checksums"])

    def _row(self) -> Tensor:
        values = [self._loss, self._pairs, *(self._sums[name] for name in sorted(self._sums))]
        return torch.stack(
            [torch.as_tensor(value, dtype=torch.float32, device=self._accelerator.device) for value in values]
        )


class _Pace:
    """How fast training is, over all processes, and how much memory the first of them has taken at most.

    On a GPU that is what tensors took there since this phase began; elsewhere, what the process has ever taken.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self._device = device
        self._since = time.perf_counter()
        self._pairs = self._tokens = 0
        self._last: dict[str, float] = {}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def add(self, examples: Sequence[Example]) -> None:
        """Pairs of a step, of all processes. A prompt counts once, a response whole."""
        self._pairs += len(examples)
        self._tokens += sum(len(part) for example in examples for part in example.pair.parts)

    def lap(self) -> dict[str, float]:
        """The figures since the last lap."""
        now = time.perf_counter()
        seconds = now - self._since
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        self._last = {
            "seconds": seconds,
            "pairs_per_second": self._pairs / seconds,
            "tokens_per_second": self._tokens / seconds,
            "peak_memory_gb": peak / 1e9,
        }
        self._since, self._pairs, self._tokens = now, 0, 0
        return self._last

    def figures(self) -> dict[str, float]:
        names = {"tokens_per_second": "tokens/s", "peak_memory_gb": "memory, GB"}
        return {name: self._last[key] for key, name in names.items() if self._last}


def read_times(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's timing.jsonl; none if there is no such file."""
    lines = [line.record for line in sound_lines(place_of(folder), TIMES)[0]]
    return [line for line in lines if (line.get("seconds") or -1) >= 0]


def seconds_spent(folder: Path) -> float:
    """On all steps that the log of times tells of, those that a resume is about to drop included."""
    return float(sum(line["seconds"] for line in read_times(folder)))


def training_warnings(folder: Path) -> list[str]:
    """What the logged steps give reason to warn of, for the manifest: the same after a resume as without one."""
    curves: dict[str, list[float]] = {}
    warnings: dict[str, str] = {}
    for record in read_metrics(folder):
        curve = curves.setdefault(record["phase"], [])
        if record.get("chosen_logp") is not None:
            curve.append(record["chosen_logp"])
        said = collapse(curve)
        if said:
            warnings.setdefault(record["phase"], f"{record['phase']}, step {record['step']}: {said}")
    return list(warnings.values())


def linear_warnings(folder: Path, phase: str) -> list[str]:
    """What there is to say where the last logged margins of a phase leave the sigmoid of its loss linear."""
    found = [record.get("reward_margin") for record in read_metrics(folder) if record["phase"] == phase]
    return linear([margin for margin in found if margin is not None])


def _append(path: Path, record: dict[str, Any]) -> str:
    """Write a line; returns its checksum."""
    data = json_text(record).encode()
    with writing(path), path.open("ab") as file:
        file.write(data + b"\n")
    return Line(record, data).checksum


def _forget_after(path: Path, phase: str, step: int, vouched: frozenset[str] | None = None) -> tuple[list[Line], int]:
    """Drop the lines that an interrupted run wrote after the checkpoint from which it goes on, and damaged ones.

    Damaged is also what `vouched`, the checksums of the lines there were at the checkpoint, does not have.

    Returns:
        the lines that stay, and how many are damaged.
    """
    sound, damaged = sound_lines(place_of(path.parent), path.name)
    before = [line for line in sound if line.record["phase"] != phase or line.record["step"] <= step]
    kept = [line for line in before if vouched is None or line.checksum in vouched]
    write_bytes(path, b"".join(line.data + b"\n" for line in kept))
    return kept, damaged + len(before) - len(kept)
