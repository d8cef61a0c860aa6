"""The one training loop, on Hugging Face accelerate. It takes an objective as a function.

A step is a number of *pairs*. Every micro-batch contributes the sum of its pairs' losses divided by the size of the
whole step, so that neither the token budget nor the number of processes changes the gradient.

One number a step is read from the device before the optimiser may touch the weights, and waits for it: whether loss
and gradient are finite. All others stay there until it is time to log.
"""

import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import get_scheduler

from stages.configs import OptimizerConfig
from stages.currency import Example, PairLoss, Weighted, selected_share
from stages.errors import SepoError
from stages.method.watch import response_metrics
from stages.model.checkpoints import Checkpoints
from stages.model.interrupts import Interrupts
from stages.model.logps import LogpsAndKl, Reader, Reference, WeightedLogps, make_batch, make_groups, reading
from stages.model.memory import OutOfMemory, memory_for
from stages.model.metrics import MetricLog
from stages.model.optimizers import make_optimizer
from stages.model.paths import find_paths
from stages.model.processes import join_processes, refuse_divided
from stages.model.trackers import FOLDER as TRACKERS
from stages.model.trackers import tracking
from stages.model.training_mode import training_mode
from stages.reporting import Reporter

SHOWN = 8
"""pairs that a message names"""

Objective = Callable[[Tensor, Weighted], PairLoss]
"""(logps_RW, batch) -> PairLoss"""

Done = tuple[list[Example], PairLoss]
"""the examples of a micro-batch and what came out"""


class Schedule(NamedTuple):
    """How many steps there are, and of how many pairs."""

    pairs: int
    batch_size: int
    epochs: int
    steps: int
    warmup_steps: int

    def __str__(self) -> str:
        """``645 pairs x 2 epochs = 162 steps (80 x 8 + 1 x 5 an epoch), 9 of them warm-up``."""
        full, rest = divmod(self.pairs, self.batch_size)
        parts = ([f"{full:,} x {self.batch_size:,}"] if full else []) + ([f"1 x {rest}"] if rest else [])
        per_epoch = full + (rest > 0)
        epoch = f"{self.pairs:,} pairs = {per_epoch:,} steps ({' + '.join(parts)})"
        total = f" x {self.epochs} epochs = {per_epoch * self.epochs:,} steps" if self.epochs > 1 else ""
        stop = f", stopped after {self.steps:,}" if self.steps != per_epoch * self.epochs else ""
        return f"{epoch}{total}{stop}, {self.warmup_steps:,} of them warm-up"

    def step_of(self, order: list[int], step: int) -> list[int]:
        """The places of the pairs of one step (from 0), given the order of its epoch."""
        start = step % math.ceil(self.pairs / self.batch_size) * self.batch_size
        return order[start : start + self.batch_size]

    def epoch_of(self, step: int) -> int:
        return step // math.ceil(self.pairs / self.batch_size)


def make_schedule(pairs: int, config: OptimizerConfig) -> Schedule:
    """Derive the steps from the pairs; the last step of an epoch may hold fewer pairs than the others."""
    batch_size = min(config.batch_size, pairs)
    steps, epochs = math.ceil(pairs / batch_size) * config.num_train_epochs, config.num_train_epochs
    if config.max_steps:
        epochs = max(1, math.ceil(config.max_steps / math.ceil(pairs / batch_size)))
        steps = config.max_steps
    # The first step of a warm-up has a learning rate of 0: a run of one step would train nothing.
    warmup_steps = min(math.ceil(config.warmup_ratio * steps), steps - 1)
    return Schedule(pairs, batch_size, epochs, steps, warmup_steps)


def fit(
    model: Any,
    examples: list[Example],
    objective: Objective,
    config: OptimizerConfig,
    *,
    phase: str,
    folder: Path,
    reporter: Reporter,
    size: Callable[[Example], float] = lambda example: 1.0,
    reference: Reference | None = None,
) -> dict[str, float]:
    """Train `model` in place; go on from the last checkpoint of this phase if `folder` holds one.

    SIGTERM and Ctrl-C end it after the step they come in, with a checkpoint of it; a second signal ends it at once. The
    last checkpoint stays until the caller has saved the model and calls `forget_checkpoints`.

    Args:
        objective: makes one loss a pair of the log-probs of a batch.
        phase: names the work in ``metrics.jsonl`` and its checkpoints, such as ``dpo``.
        folder: gets ``metrics.jsonl`` and ``checkpoints/``.
        size: what a step's summed loss is divided by, added up over the step's examples: pairs, or tokens for SFT.
        reference: a second model, from which the divergence at every response token is given to the objective.

    Returns:
        the averages of the last logged steps, by name.

    Raises:
        SepoError: the loss or a gradient is not finite (the weights were not touched by that step), or memory ran out.
    """
    accelerator = join_processes(config.mixed_precision, config.report_to, folder / TRACKERS / phase)
    schedule = make_schedule(len(examples), config)
    reporter.say(f"{phase}: {schedule}")
    if config.lora_rank:
        refuse_divided(accelerator, "an adapter is trained")
    optimizer = make_optimizer(model, config)
    scheduler = get_scheduler(config.lr_scheduler_type, optimizer, schedule.warmup_steps, schedule.steps)
    reader = find_paths(model, reporter)
    if reader.alone:
        refuse_divided(accelerator, "this model's responses are read one by one")
    if reference is not None:
        refuse_divided(accelerator, "a second model is read in every step")
        # Both read the same batches.
        packs = reader.packs and reference.reader.packs
        reader, reference = reader._replace(packs=packs), reference.packed(packs)
    module, optimizer = accelerator.prepare(
        LogpsAndKl(reader, reference) if reference else WeightedLogps(reader), optimizer
    )
    accelerator.register_for_checkpointing(scheduler)
    log = MetricLog(accelerator, folder, phase, config.logging_steps, reporter)
    accelerator.register_for_checkpointing(log)
    checkpoints = Checkpoints(accelerator, folder, phase, config.save_total_limit)
    first = checkpoints.resume(reporter)
    log.start(first)
    task_of_steps = reporter.task(phase, schedule.steps, "steps")
    tracked = tracking(accelerator, config, first)
    with training_mode(model, config), tracked, task_of_steps as task, Interrupts() as interrupts:
        task.advance(first)
        for step in range(first, schedule.steps):
            order = _order(schedule.pairs, schedule.epoch_of(step), config.seed)
            chosen = [examples[place] for place in schedule.step_of(order, step)]
            step_size = sum(size(example) for example in chosen)
            try:
                done = _backward(
                    accelerator, module, reader, chosen, objective, step_size, config, with_kl=reference is not None
                )
            except OutOfMemory:
                # A run with a smaller budget is the same run. Other processes may not have come to this step's end.
                if config.save_steps and step > checkpoints.newest and accelerator.num_processes == 1:
                    checkpoints.save(step)
                raise
            for _, loss in done:
                log.add(loss, step_size)
            norm = float(accelerator.clip_grad_norm_(module.parameters(), config.max_grad_norm))
            if accelerator.scaler is not None and not math.isfinite(norm):
                # fp16 overflowed: the scaler passes over this step and takes a smaller scale for the next one.
                reporter.say(f"{phase}: step {step + 1:,} overflowed in fp16 and was not taken")
                norm = 0.0
            interrupted = _agree(accelerator, done, norm, step, interrupts)
            optimizer.step()
            optimizer.zero_grad()
            last = step + 1 == schedule.steps
            log.end_step(step, chosen, scheduler.get_last_lr()[0], norm, last=last)
            scheduler.step()
            task.advance(1, log.note)
            if config.save_steps and (last or interrupted or (step + 1) % config.save_steps == 0):
                checkpoints.save(step + 1)
            if interrupted:
                reporter.say(f"{phase}: interrupted after step {step + 1:,}; {checkpoints.newest:,} steps are safe")
                interrupts.leave(interrupted)
    accelerator.free_memory()
    return log.last


@lru_cache(maxsize=1)
def _order(pairs: int, epoch: int, seed: int) -> list[int]:
    """The order of an epoch: a seeded shuffle of its own, so that any step can be found again without a replay."""
    order = list(range(pairs))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def _backward(
    accelerator: Accelerator,
    module: Any,
    reader: Reader,
    examples: list[Example],
    objective: Objective,
    step_size: float,
    config: OptimizerConfig,
    with_kl: bool,
) -> list[Done]:
    """Gradients of one step, summed over this process's micro-batches and averaged over processes by accelerate."""
    groups, rounds = _groups(accelerator, reader, examples, config.max_tokens_per_device, every_token=with_kl)
    done: list[Done] = []
    for index in range(rounds):
        # A process with nothing left to do still takes part: with a pair that counts for nothing.
        idle = index >= len(groups)
        group = examples[:1] if idle else groups[index]
        batch = make_batch(group, accelerator.device, packs=reader.packs, every_token=with_kl)
        # A batch begins with its ids, whatever its layout.
        memory = memory_for(group, batch[0].numel(), config.max_tokens_per_device)
        with memory, _exchange(accelerator, module, index + 1 == rounds), reading(reader, batch):
            values = module(batch)
            logps_RW, seen = (values[0], batch._replace(kl_RW=values[1])) if with_kl else (values, batch)
            loss = objective(logps_RW, seen)
            share = 0.0 if idle else accelerator.num_processes / step_size
            accelerator.backward(loss.loss_B.sum() * share)
        # What is idle reports no pairs, under the same names as the others.
        kept = slice(0) if idle else slice(None)
        metrics = {name: values_B[kept] for name, values_B in (loss.metrics | _watched(logps_RW, batch, group)).items()}
        done.append((group[kept], PairLoss(loss.loss_B.detach()[kept], metrics)))
    return done


def _watched(logps_RW: Tensor, batch: Weighted, group: list[Example]) -> dict[str, Tensor]:
    """What is logged of every objective."""
    reference_R = batch.reference_R if group[0].chosen_reference else None
    metrics = response_metrics(logps_RW, batch.weights_RW, reference_R, len(group))
    if len(group[0].pair.rejected_ids):
        shares = [selected_share(example) for example in group]
        metrics["selected_share"] = torch.tensor(shares, device=logps_RW.device)
    return metrics


def _groups(
    accelerator: Accelerator, reader: Reader, examples: list[Example], max_tokens: int, *, every_token: bool
) -> tuple[list[list[Example]], int]:
    """This process's micro-batches of a step, and how many it has to take part in."""

    def groups_of(process: int) -> list[list[Example]]:
        return make_groups(reader, examples[process :: accelerator.num_processes], max_tokens, every_token=every_token)

    mine = groups_of(accelerator.process_index)
    if not accelerator.is_fsdp2:
        return mine, max(1, len(mine))
    # Every forward pass brings the parts of the model together: all processes have to make as many.
    return mine, max(len(groups_of(process)) for process in range(accelerator.num_processes))


def _exchange(accelerator: Accelerator, module: Any, last: bool) -> Any:
    """Processes exchange gradients in the last micro-batch of a step only."""
    return nullcontext() if last else accelerator.no_sync(module)


def _agree(accelerator: Accelerator, done: list[Done], norm: float, step: int, interrupts: Interrupts) -> int:
    """Make sure, with the other processes, that the step may be taken; the signal that one of them got, or 0.

    Raises:
        SepoError: in all of them, if the loss or the gradient is not finite.
    """
    loss = torch.stack([loss.loss_B.sum() for _, loss in done]).sum()
    row = torch.stack([loss, torch.tensor(float(interrupts.number), device=loss.device)])
    losses, signals = accelerator.gather(row[None]).T.tolist()
    if all(map(math.isfinite, [norm, *losses])):
        return int(max(signals))
    # Where a loss is not finite, its pairs are the cause; where only the gradient is not, any of the step's may be.
    finite = [
        (each.pair.pair_id, fine) for group, loss in done for each, fine in zip(group, _finite(loss), strict=True)
    ]
    finite = gather_object(finite)
    ids = sorted(pair_id for pair_id, fine in finite if not fine) or sorted(pair_id for pair_id, _ in finite)
    named = ", ".join(map(str, ids[:SHOWN])) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
    cause = "gradient" if all(fine for _, fine in finite) else "loss"
    raise SepoError(
        f"the {cause} is not finite at step {step + 1} (pairs {named}); that step was not taken",
        hint="lower --learning-rate, or look at those pairs",
    )


def _finite(loss: PairLoss) -> list[bool]:
    finite: list[bool] = torch.isfinite(loss.loss_B).tolist()
    return finite
