"""The one training loop, on Hugging Face accelerate. It takes an objective as a function.

A step is a number of *pairs*. Every micro-batch contributes the sum of its pairs' losses divided by the size of the
whole step, so that neither the token budget nor the number of processes changes the gradient.
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
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import get_scheduler

from stages.configs import OptimizerConfig
from stages.currency import Example, PairLoss, Weighted
from stages.errors import SepoError
from stages.model.checkpoints import Checkpoints
from stages.model.logps import LogpsAndKl, Reader, Reference, WeightedLogps, make_batch, make_groups, reading
from stages.model.metrics import MetricLog
from stages.model.paths import find_paths
from stages.model.processes import join_processes
from stages.reporting import Reporter

ADAM_BETAS = (0.9, 0.95)
"""those of the SePO authors' code; the paper says only "Adam" """

_WHOLE_MODELS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

Objective = Callable[[Tensor, Weighted], PairLoss]
"""(logps_RW, batch) -> PairLoss"""


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

    The last checkpoint stays until the caller has saved the model and calls `forget_checkpoints`.

    Args:
        objective: makes one loss a pair of the log-probs of a batch.
        phase: names the work in ``metrics.jsonl`` and its checkpoints, such as ``dpo``.
        folder: gets ``metrics.jsonl`` and ``checkpoints/``.
        size: what a step's summed loss is divided by, added up over the step's examples: pairs, or tokens for SFT.
        reference: a second model, from which the divergence at every response token is given to the objective.

    Returns:
        the averages of the last logged steps, by name.

    Raises:
        SepoError: the loss or a gradient is not finite; the weights were not touched by that step.
    """
    accelerator = join_processes()
    schedule = make_schedule(len(examples), config)
    reporter.say(f"{phase}: {schedule}")
    optimizer = torch.optim.AdamW(
        _decayed(model, config.weight_decay), lr=config.learning_rate, betas=ADAM_BETAS, fused=True
    )
    scheduler = get_scheduler(config.lr_scheduler_type, optimizer, schedule.warmup_steps, schedule.steps)
    reader = find_paths(model, reporter)
    if accelerator.distributed_type not in _WHOLE_MODELS:
        # Where every process holds a part of the model, only its own forward brings the head together.
        reader = reader._replace(tiled=False)
    if reference is not None:
        # Both read the same batches.
        packs = reader.packs and reference.reader.packs
        reader, reference = reader._replace(packs=packs), reference.packed(packs)
    module, optimizer = accelerator.prepare(
        LogpsAndKl(reader, reference) if reference else WeightedLogps(reader), optimizer
    )
    accelerator.register_for_checkpointing(scheduler)
    checkpoints = Checkpoints(accelerator, folder, phase)
    first = checkpoints.resume(reporter)
    log = MetricLog(accelerator, folder, phase, first, config.logging_steps)
    module.train()
    with reporter.task(phase, schedule.steps, "steps") as task:
        task.advance(first)
        for step in range(first, schedule.steps):
            order = _order(schedule.pairs, schedule.epoch_of(step), config.seed)
            chosen = [examples[place] for place in schedule.step_of(order, step)]
            step_size = sum(size(example) for example in chosen)
            for loss in _backward(
                accelerator, module, reader, chosen, objective, step_size, config, with_kl=reference is not None
            ):
                log.add(loss, step_size)
            norm = accelerator.clip_grad_norm_(module.parameters(), config.max_grad_norm)
            _refuse_non_finite(norm, step, chosen)
            optimizer.step()
            optimizer.zero_grad()
            log.end_step(step, scheduler.get_last_lr()[0], norm, last=step + 1 == schedule.steps)
            scheduler.step()
            task.advance(1, log.note)
            last = step + 1 == schedule.steps
            if config.save_steps and (last or (step + 1) % config.save_steps == 0):
                checkpoints.save(step + 1)
    accelerator.free_memory()
    return log.last


def _decayed(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: norms and biases are not decayed, as in transformers' Trainer."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


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
) -> list[PairLoss]:
    """Gradients of one step, summed over this process's micro-batches and averaged over processes by accelerate."""
    mine = examples[accelerator.process_index :: accelerator.num_processes]
    # A process without a pair in a small last step still has to take part in the exchange of gradients.
    idle = not mine
    groups = make_groups(reader, mine or examples[:1], config.max_tokens_per_device, every_token=with_kl)
    losses = []
    for index, group in enumerate(groups):
        batch = make_batch(group, accelerator.device, packs=reader.packs, every_token=with_kl)
        with _exchange(accelerator, module, index + 1 == len(groups)), reading(reader, batch):
            values = module(batch)
            logps_RW, seen = (values[0], batch._replace(kl_RW=values[1])) if with_kl else (values, batch)
            loss = objective(logps_RW, seen)
            share = 0.0 if idle else accelerator.num_processes / step_size
            accelerator.backward(loss.loss_B.sum() * share)
        # An idle process reports no pairs, under the same names as the others.
        kept = slice(0) if idle else slice(None)
        metrics = {name: values_B[kept] for name, values_B in loss.metrics.items()}
        losses.append(PairLoss(loss.loss_B.detach()[kept], metrics))
    return losses


def _exchange(accelerator: Accelerator, module: Any, last: bool) -> Any:
    """Processes exchange gradients in the last micro-batch of a step only."""
    return nullcontext() if last else accelerator.no_sync(module)


def _refuse_non_finite(norm: Tensor | float, step: int, examples: list[Example]) -> None:
    if math.isfinite(float(norm)):
        return
    ids = ", ".join(str(example.pair.pair_id) for example in examples[:8])
    more = f" and {len(examples) - 8} more" if len(examples) > 8 else ""
    raise SepoError(
        f"the gradient is not finite at step {step + 1} (pairs {ids}{more}); that step was not taken",
        hint="lower --learning-rate, or look at those pairs",
    )
