"""One step of training: its gradients, in micro-batches and over processes, and whether it may be taken."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from stages.devices.memory import memory_for, on_device
from stages.errors import SepoError
from stages.logprobs.logps import Forward, attention_for, batch_tokens, make_batch, make_groups
from stages.training.pulse import Pulse
from stages.training.schedule import deal
from stages.training.watch import response_metrics
from stages.types import CausalLM, Example, PairLoss, Weighted, selected_share

SHOWN: Final = 8
"""pairs that a message names"""
JUDGED_TOGETHER: Final = 4096
"""held-out pairs that are in memory at a time"""

Objective = Callable[[Tensor, Weighted], PairLoss]
"""(logps_RW, batch) -> PairLoss"""

Done = tuple[list[Example], PairLoss]
"""the examples of a micro-batch and what came out"""


class Engine(NamedTuple):
    """What computes the gradients of every step."""

    accelerator: Accelerator
    module: Any
    """log-probs of a batch, as accelerate prepared it; with the divergence from a second model where `with_kl`"""
    forward: Forward
    with_kl: bool
    max_tokens: int
    """of one micro-batch"""
    objective: Objective
    pulse: Pulse


def backward(
    engine: Engine,
    examples: Sequence[Example],
    step_size: float,
    *,
    trains: bool = True,
    gives_up: Callable[[], bool] = lambda: False,
) -> list[Done]:
    """Gradients of one step, summed over this process's micro-batches and averaged over processes by accelerate.

    Args:
        step_size: what the step's summed loss is divided by.
        trains: without it only the losses, and nothing is kept for a backward pass.
        gives_up: asked before each micro-batch; where it says so, this process only takes part from there on, since
            others may wait for it, and the gradients are good for nothing.
    """
    accelerator, with_kl = engine.accelerator, engine.with_kl
    groups, rounds = _groups(engine, examples)
    done: list[Done] = []
    for index in range(rounds):
        # A process with nothing left to do still takes part: with a pair that counts for nothing.
        idle = index >= len(groups) or gives_up()
        group = [examples[0]] if idle else groups[index]
        batch = make_batch(group, accelerator.device, packs=engine.forward.packs, every_token=with_kl)
        engine.pulse.micro_batch(index, rounds)
        # A batch begins with its ids, whatever its layout.
        memory = memory_for(group, batch[0].numel(), engine.max_tokens, trains=trains)
        # Processes exchange gradients in the last micro-batch of a step only; under FSDP2 in each, for until then every
        # process would hold those of all weights, in float32.
        last = index + 1 == rounds or not trains or accelerator.is_fsdp2
        exchange = nullcontext() if last else accelerator.no_sync(engine.module)
        with memory, exchange, attention_for(engine.forward, batch), torch.set_grad_enabled(trains):
            with accelerator.autocast():
                # FSDP2 casts the policy's weights alone, and a reference may be none of them.
                values = engine.module(batch)
            logps_RW, seen = (values[0], batch._replace(kl_RW=values[1])) if with_kl else (values, batch)
            loss = engine.objective(logps_RW, seen)
            engine.pulse.micro_batch(index, rounds, back=True)
            if trains:
                accelerator.backward(loss.loss_B.sum() * (0.0 if idle else accelerator.num_processes / step_size))
        # What is idle reports no pairs, under the same names as the others.
        kept = slice(0) if idle else slice(None)
        metrics = {name: values_B[kept] for name, values_B in (loss.metrics | _watched(logps_RW, batch, group)).items()}
        done.append((group[kept], PairLoss(loss.loss_B.detach()[kept], metrics)))
    return done


def evaluate(engine: Engine, examples: Sequence[Example], size: float) -> dict[str, float]:
    """Loss (a sum over `size`), accuracy and margin of pairs that are not trained on, the same in every process."""
    done = [
        loss
        for start in range(0, len(examples), JUDGED_TOGETHER)
        for _, loss in backward(engine, examples[start : start + JUDGED_TOGETHER], size, trains=False)
    ]
    names = [name for name in ("accuracy", "reward_margin") if name in done[0].metrics]
    columns = [[loss.loss_B for loss in done], *([loss.metrics[name] for loss in done] for name in names)]
    sums = torch.stack([torch.cat(column).sum() for column in columns])
    loss, *rest = engine.accelerator.reduce(sums, "sum").tolist()
    return {"eval_loss": loss / size} | {
        f"eval_{name}": total / len(examples) for name, total in zip(names, rest, strict=True)
    }


def _watched(logps_RW: Tensor, batch: Weighted, group: list[Example]) -> dict[str, Tensor]:
    """What is logged of every objective."""
    metrics = response_metrics(logps_RW, batch.weights_RW, batch.reference_R, len(group))
    if len(group[0].pair.rejected_ids):
        shares = [selected_share(example) for example in group]
        metrics["selected_share"] = on_device(np.array(shares, np.float32), logps_RW.device)
    return metrics


def shares(engine: Engine, examples: Sequence[Example]) -> list[list[Example]]:
    """The examples of a step that each process takes, none for some where there are few."""
    packs, every_token = engine.forward.packs, engine.with_kl
    tokens = [batch_tokens(example, packs=packs, every_token=every_token) for example in examples]
    return [[examples[index] for index in share] for share in deal(tokens, engine.accelerator.num_processes)]


def _groups(engine: Engine, examples: Sequence[Example]) -> tuple[list[list[Example]], int]:
    """This process's micro-batches of a step, and how many it has to take part in."""

    def groups_of(share: list[Example]) -> list[list[Example]]:
        groups = make_groups(share, engine.max_tokens, packs=engine.forward.packs, every_token=engine.with_kl)
        return [[share[index] for index in group] for group in groups]

    dealt = shares(engine, examples)
    mine = groups_of(dealt[engine.accelerator.process_index])
    if not engine.accelerator.is_fsdp2:
        return mine, max(1, len(mine))
    # Every forward pass brings the parts of the model together: all processes have to make as many.
    return mine, max(len(groups_of(share)) for share in dealt)


def agree(
    accelerator: Accelerator, done: list[Done], norm: float, step: int, signal: int, *, given_up: bool = False
) -> tuple[int, bool]:
    """Make sure, with all processes, that loss and gradient norm are finite.

    Args:
        norm: 0 for a step that overflowed in fp16 and is not taken.

    Returns:
        the signal that one of them got, or 0, and whether one of them has given up the step.

    Raises:
        SepoError: in every process, where the loss or the norm of one of them is not finite.
    """
    loss = torch.stack([loss.loss_B.sum() for _, loss in done]).sum()
    row = torch.stack([loss, *torch.tensor([signal, given_up], dtype=loss.dtype, device=loss.device)])
    losses, signals, gave_up = accelerator.gather(row[None]).T.tolist()
    if all(map(math.isfinite, [norm, *losses])):
        return int(max(signals)), any(gave_up)
    # Where a loss is not finite, its pairs are the cause; where only the gradient is not, any of the step's may be.
    pairs = [
        (example.pair.pair_id, value) for group, loss in done for example, value in zip(group, loss.loss_B, strict=True)
    ]
    finite = gather_object([(pair_id, bool(value.isfinite())) for pair_id, value in pairs])
    ids = sorted(pair_id for pair_id, fine in finite if not fine) or sorted(pair_id for pair_id, _ in finite)
    named = ", ".join(map(str, ids[:SHOWN])) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
    cause = "gradient" if all(fine for _, fine in finite) else "loss"
    raise SepoError(
        f"the {cause} is not finite at step {step + 1} (pairs {named}); that step was not taken",
        hint="lower --learning-rate, or look at those pairs",
    )


def refuse_broken(accelerator: Accelerator, model: CausalLM, phase: str, step: int, safe: int) -> None:
    """Weights that an optimiser's step has broken, in any process, are not saved; after `safe` steps there are some."""
    trained = [weight.detach() for weight in model.parameters() if weight.requires_grad]
    here = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in trained)
    if not all(gather_object([all(bool(weight.isfinite().all()) for weight in here)])):
        kept = f"the checkpoint after step {safe:,} stays" if safe else "nothing of it was kept"
        problem = f"{phase}: step {step:,} has left weights that are not finite; {kept}"
        raise SepoError(problem, hint="lower --learning-rate")
