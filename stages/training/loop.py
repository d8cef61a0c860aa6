"""The one training loop, on Hugging Face accelerate. It takes an objective as a function.

A step is a number of *pairs*. Every micro-batch contributes the sum of its pairs' losses divided by the size of the
whole step, so that neither the token budget nor the number of processes changes the gradient.

Two numbers a step are read from the device before the optimiser may touch the weights, which waits for them: the
gradient's norm and the loss, whether they are finite. All others stay there until it is time to log.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from accelerate import Accelerator
from transformers import get_scheduler

from stages.configs import OptimizerConfig
from stages.devices.engines import refuse_undividable
from stages.devices.memory import OutOfMemory, enough_memory
from stages.devices.parts import divide, head_is_apart, prepare_divided
from stages.devices.precision import price_of_float32
from stages.devices.processes import join_processes
from stages.logprobs.logps import Forward, Reference, WeightedLogps
from stages.models.references import find_paths_of
from stages.reporting import Reporter, counted
from stages.training.budget import measured_budget
from stages.training.checkpoints import FOLDER as CHECKPOINTS
from stages.training.checkpoints import Checkpoints
from stages.training.interrupts import Interrupts
from stages.training.leaving import Leaving
from stages.training.metrics import MetricLog
from stages.training.optimizers import make_optimizer
from stages.training.pulse import PATIENCE, Pulse
from stages.training.schedule import Schedule, make_schedule, order_of_epoch
from stages.training.step import Done, Engine, Objective, agree, backward, evaluate, refuse_broken
from stages.training.trackers import FOLDER as TRACKERS
from stages.training.trackers import tracking
from stages.training.training_mode import refuse_noise, training_mode
from stages.types import CausalLM, Example

MOMENTS_HINT: Final = (
    "AdamW's two moments take twice the memory of the trained weights: use --optim adamw-8bit, or --lora-rank 16"
)


def fit(
    model: CausalLM,
    examples: Sequence[Example],
    objective: Objective,
    config: OptimizerConfig,
    *,
    phase: str,
    folder: Path,
    reporter: Reporter,
    fingerprint: str = "",
    size: Callable[[Example], float] = lambda example: 1.0,
    reference: Reference | None = None,
    held_out: Sequence[Example] = (),
    after_step: Callable[[int], None] = lambda steps: None,
    patience: float = PATIENCE,
) -> dict[str, float]:
    """Train `model` in place; go on from the last checkpoint of this phase if `folder` holds one.

    SIGTERM and Ctrl-C end it after the step they come in, with a checkpoint of it; a step that takes too long for that
    is given up, and the checkpoint is of the one before. A second signal ends it at once. The last checkpoint stays
    until the caller has saved the model and calls `forget_checkpoints`.

    Args:
        examples: may be made when they are asked for; those of one step are held in memory.
        objective: makes one loss a pair of the log-probs of a batch.
        phase: names the work in ``metrics.jsonl`` and its checkpoints, such as ``dpo``.
        folder: gets ``metrics.jsonl`` and ``checkpoints/``.
        fingerprint: of the run, which its checkpoints bear: those of another are refused.
        size: what a step's summed loss is divided by, added up over the step's examples: pairs, or tokens for SFT.
        reference: a second model, from which the divergence at every response token is given to the objective.
        held_out: pairs that are not trained on, for the figures of `eval_steps`.
        after_step: called in every process with the number of steps taken.
        patience: seconds without progress of several processes before it is said which one the others wait for.

    Returns:
        the averages of the last logged steps, by name.

    Raises:
        SepoError: the loss or a gradient is not finite (the weights were not touched by that step), or weights that are
            to be kept; memory ran out; or the folder's checkpoint is of another run.
    """
    accelerator = join_processes(config.mixed_precision, config.report_to, folder / TRACKERS / phase)
    schedule = make_schedule(len(examples), config)
    reporter.say(f"{phase}: {schedule}")
    faster = "--mixed-precision bf16 takes about a seventh of the time"
    if config.mixed_precision == "no" and (price := price_of_float32(accelerator.device, faster)):
        reporter.say(price)
    pulse = Pulse(accelerator, phase, reporter, lambda: checkpoints.newest, patience)
    engine, optimizer = _make_engine(accelerator, model, examples, objective, reference, config, pulse, reporter)
    scheduler = get_scheduler(config.lr_scheduler_type, optimizer, schedule.warmup_steps, schedule.steps)
    log = MetricLog(accelerator, folder, phase, config.logging_steps, reporter)
    parts = {"schedule": scheduler, "log": log}
    checkpoints = Checkpoints(accelerator, folder / CHECKPOINTS, phase, config.save_total_limit, fingerprint, parts)
    interrupts = Interrupts()
    taken = (engine, optimizer, scheduler, schedule, config, log, checkpoints, interrupts)
    training = Training(examples, held_out, *taken, Leaving(), phase, size, reporter)
    first = checkpoints.resume(reporter, schedule.steps)
    log.start(first)
    task_of_steps = reporter.task(phase, schedule.steps, "steps")
    tracked = tracking(accelerator, config, first)
    with training_mode(model, config), tracked, task_of_steps as task, interrupts, pulse:
        task.advance(first)
        for step in range(first, schedule.steps):
            batch = training.batch_of(step)
            norm, interrupted = training.gradients(batch, step)
            rate = training.update(norm)
            pulse.at(step, "held-out pairs")
            figures = training.held_out_figures(step)
            log.end_step(step, batch, rate, norm, figures, last=step + 1 == schedule.steps)
            task.advance(1, log.live)
            save = training.is_to_be_saved(step, interrupted)
            pulse.at(step, "checkpoint")
            if save or step + 1 == schedule.steps:
                refuse_broken(accelerator, model, phase, step + 1, checkpoints.newest)
            after_step(step + 1)
            if save:
                training.save(step + 1)
            training.warn_of_leaving()
            if interrupted:
                reporter.say(f"{phase}: interrupted after step {step + 1:,}; {training.safe}")
                interrupts.leave(interrupted)
    accelerator.free_memory()
    return log.last


class Training(NamedTuple):
    """One phase at work: what its steps are made of. Steps count from 0."""

    examples: Sequence[Example]
    held_out: Sequence[Example]
    engine: Engine
    optimizer: Any
    scheduler: Any
    schedule: Schedule
    config: OptimizerConfig
    log: MetricLog
    checkpoints: Checkpoints
    interrupts: Interrupts
    leaving: Leaving
    phase: str
    size: Callable[[Example], float]
    reporter: Reporter

    def batch_of(self, step: int) -> list[Example]:
        order = order_of_epoch(self.schedule.pairs, self.schedule.epoch_of(step), self.config.seed)
        return [self.examples[index] for index in self.schedule.step_of(order, step)]

    def gradients(self, batch: list[Example], step: int) -> tuple[float | None, int]:
        """The step's gradients, as all processes agree that they may be taken, and its losses in the log.

        Returns:
            the gradient's norm, None if fp16 overflowed, and the signal that a process got, or 0.
        """
        with self.leaving.timed("step"):
            done, given_up = self._backward(batch, step)
            self.engine.pulse.at(step, "update")
            norm = self._clipped(step)
            number = self.interrupts.number
            number, given_up = agree(self.engine.accelerator, done, norm or 0.0, step, number, given_up=given_up)
        if given_up:
            self._give_up(step, number)
        self.leaving.stepped(len(done))
        for _, loss in done:
            self.log.add(loss, sum(map(self.size, batch)))
        return norm, number

    def _backward(self, batch: list[Example], step: int) -> tuple[list[Done], bool]:
        """Losses with their gradients, and whether this process gave them up, since it has to leave soon."""
        given_up = False

        def gives_up() -> bool:
            nonlocal given_up
            given_up = bool(self.interrupts.number) and self.leaving.is_short(judges=self._judges(step))
            return given_up

        self.engine.pulse.at(step, "gradients")
        try:
            done = backward(self.engine, batch, sum(map(self.size, batch)), gives_up=gives_up)
        except OutOfMemory:
            # A run with a smaller budget is the same run. Other processes may not have come to this step's end.
            alone = self.engine.accelerator.num_processes == 1
            if self.config.save_steps and step > self.checkpoints.newest and alone:
                self.checkpoints.save(step)
            raise
        return done, given_up

    def _give_up(self, step: int, signal: int) -> None:
        """Leave with a checkpoint of the step before, which the weights still are of."""
        self.engine.pulse.at(step, "checkpoint")
        if self.config.save_steps and step > self.checkpoints.newest:
            refuse_broken(self.engine.accelerator, self.engine.forward.model, self.phase, step, self.checkpoints.newest)
            self.checkpoints.save(step)
        too_long = f"interrupted in step {step + 1:,}, which takes too long to finish"
        self.reporter.say(f"{self.phase}: {too_long}; {self.safe}")
        self.interrupts.leave(signal)
        # Whoever handles the signal may go on, but this step cannot.
        raise SystemExit(128 + signal)

    @property
    def safe(self) -> str:
        """What no end can take any more, in words."""
        steps = self.checkpoints.newest
        return f"{counted(steps, 'step')} {'is' if steps == 1 else 'are'} safe"

    def _clipped(self, step: int) -> float | None:
        """Scale the gradient down to its greatest norm; returns the norm it had, None if fp16 overflowed."""
        accelerator = self.engine.accelerator
        norm = float(accelerator.clip_grad_norm_(self.engine.module.parameters(), self.config.max_grad_norm))
        if accelerator.scaler is None or math.isfinite(norm) or accelerator.scaler.get_scale() < 1:
            return norm
        # The scaler passes over this step and takes half the scale for the next one. A gradient that is not finite at a
        # scale of 1 either did not overflow.
        self.reporter.say(f"step {step + 1:,} overflowed in fp16 and was not taken")
        return None

    def update(self, norm: float | None) -> float:
        """Take the step, if its gradient has a norm; returns the learning rate."""
        with enough_memory("the optimiser's step", lambda: MOMENTS_HINT):
            self.optimizer.step()
        self.optimizer.zero_grad()
        rate = float(self.scheduler.get_last_lr()[0])
        if norm is not None:
            self.scheduler.step()
        return rate

    def _judges(self, step: int) -> bool:
        """Whether the held-out pairs are due after a step: every so often, and after the last one."""
        every, last = self.config.eval_steps, step + 1 == self.schedule.steps
        return bool(every and self.held_out) and (last or (step + 1) % every == 0)

    def held_out_figures(self, step: int) -> dict[str, float]:
        """What pairs say that are not trained on, where they are due."""
        if not self._judges(step):
            return {}
        with self.leaving.timed("held-out pairs"):
            figures = evaluate(self.engine, self.held_out, sum(map(self.size, self.held_out)))
        said = ", ".join(
            f"{name.removeprefix('eval_').replace('_', ' ')} {value:.4f}" for name, value in figures.items()
        )
        self.reporter.say(f"{self.phase}, step {step + 1:,}, held-out pairs: {said}")
        return figures

    def save(self, steps: int) -> None:
        with self.leaving.timed("checkpoint"):
            self.checkpoints.save(steps)

    def warn_of_leaving(self) -> None:
        warning = self.leaving.warning()
        if warning:
            self.reporter.warn(f"{self.phase}: {warning}")

    def is_to_be_saved(self, step: int, interrupted: int) -> bool:
        last, every = step + 1 == self.schedule.steps, self.config.save_steps
        return bool(every and (last or interrupted or (step + 1) % every == 0))


def _make_engine(
    accelerator: Accelerator,
    model: CausalLM,
    examples: Sequence[Example],
    objective: Objective,
    reference: Reference | None,
    config: OptimizerConfig,
    pulse: Pulse,
    reporter: Reporter,
) -> tuple[Engine, Any]:
    """The engine, and the optimiser as accelerate prepared it."""
    refuse_undividable(accelerator, model)
    forward = find_paths_of(model, accelerator, reporter)
    refuse_noise(forward.model)
    forward = forward._replace(model=model)
    if accelerator.is_fsdp2:
        divide(model, accelerator)
        forward = _with_whole_head(forward)
    if reference is not None:
        reference = reference._replace(forward=_with_whole_head(reference.forward))
        # Both read the same batches.
        packs = forward.packs and reference.forward.packs
        forward, reference = forward._replace(packs=packs), reference.packed(packs)
    module = WeightedLogps(forward, reference)
    budget = config.max_tokens_per_device or measured_budget(
        accelerator, module, forward, reference, config, examples, reporter
    )
    optimizer = make_optimizer(model, config)
    if accelerator.is_fsdp2:
        optimizer = prepare_divided(accelerator, model, optimizer)
    else:
        module, optimizer = accelerator.prepare(module, optimizer)
    return Engine(accelerator, module, forward, reference is not None, budget, objective, pulse), optimizer


def _with_whole_head(forward: Forward) -> Forward:
    """By its own forward, where a head was divided by itself."""
    return forward._replace(chunked=forward.chunked and not head_is_apart(forward.model))
