"""What the stages will cost a model and a data set: tokens, steps, operations, and for a plan time and memory by part.

A token costs 2 floating-point operations a weight that it passes forward, as many backward to what came before, and as
many again for a weight that is trained (arXiv 2001.08361 section 2.1): 6 in full training, 4 of an adapter's base. A
lookup in an embedding costs none; attention's own products are left out, which are few in rows of 2,000 tokens (2% for
8 billion weights), and all experts of a layer are counted.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import torch

from stages.configs import OptimizerConfig, OracleConfig, ValidateConfig
from stages.logprobs.head import has_head
from stages.reporting import Table
from stages.training.budget import OVERHEAD, standing
from stages.training.footprint import ALONE, Footprint, Machine, Planned
from stages.training.schedule import make_schedule

HOUR: Final = 3600
COUNTED: Final = "counted"
ESTIMATED: Final = "estimated"
_PARTS: Final = {
    "weights": ("weights", COUNTED),
    "gradients": ("gradients", COUNTED),
    "buckets": ("gradients again, to add them up", COUNTED),
    "moments": ("moments of the optimiser", COUNTED),
    "gathered": ("layers gathered by FSDP2, their gradients", ESTIMATED),
    "casts": ("weights cast to half precision", ESTIMATED),
    "activations": ("activations", ESTIMATED),
    "head": ("head: logits and their gradients", ESTIMATED),
}


class ModelSize(NamedTuple):
    """What of a model decides its cost."""

    parameters: int
    """without an adapter"""
    embeddings: int
    """ids that it has an embedding for"""
    positions: int | None
    """the longest row that the model was made for, where its configuration says so"""
    passed: int
    """weights that a token passes, an adapter's included"""
    trained: int
    """of those"""
    standing: int
    """bytes of weights, gradients and moments in training"""

    @property
    def forward(self) -> int:
        """Operations a token."""
        return 2 * self.passed

    @property
    def training(self) -> int:
        """Operations a token, forward and backward."""
        return 4 * self.passed + 2 * self.trained


def model_size(plan: Planned, optim: str) -> ModelSize:
    """Of a model as it would be trained, with its adapter, if it is to have one."""
    model = plan.model
    text = model.config.get_text_config()
    head = model.get_output_embeddings().weight if has_head(model) else None
    looked_up = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.weight is not head
    }
    passed = [weight for weight in model.parameters() if id(weight) not in looked_up]
    return ModelSize(
        parameters=plan.parameters,
        embeddings=int(model.get_input_embeddings().weight.shape[0]),
        positions=getattr(text, "max_position_embeddings", None),
        passed=sum(weight.numel() for weight in passed),
        trained=sum(weight.numel() for weight in passed if weight.requires_grad),
        standing=sum(standing([model], optim, partial(plan.held, ALONE))),
    )


def stage_costs(
    size: ModelSize, pairs: int, tokens: Mapping[str, int], config: OptimizerConfig
) -> list[dict[str, Any]]:
    """The cost of every stage with these settings, if this model is both oracle and policy.

    Of each ``stage`` the ``tokens`` that a model sees over all epochs, the ``steps`` of the optimiser (None where
    nothing is trained), ``operations``, those ``recomputed`` by gradient checkpointing, and ``memory`` in bytes, at the
    least. `tokens` are those of all prompts (each computed once for both answers), chosen and rejected responses.
    """
    total = sum(tokens.values())
    share = 1 - OracleConfig.eval_fraction
    # The reference sees every pair once.
    forward = size.forward * total

    def cost(stage: str, seen: float, pairs: float, config: OptimizerConfig, more: int = 0) -> dict[str, Any]:
        seen = round(config.num_train_epochs * seen)
        return {
            "stage": stage,
            "tokens": seen,
            "steps": make_schedule(max(1, round(pairs)), config).steps,
            "operations": size.training * seen + more,
            "recomputed": size.forward * seen if config.gradient_checkpointing else 0,
            "memory": size.standing,
        }

    sft = OptimizerConfig(
        batch_size=OracleConfig.sft_batch_size,
        num_train_epochs=OracleConfig.sft_epochs,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    return [
        cost("SFT (train-oracle)", share * (tokens["prompt"] + tokens["chosen"]), share * pairs, sft),
        cost("DPO (train-oracle)", share * total, share * pairs, config, forward),
        # Two models side by side, in float32.
        {"stage": "score", "tokens": 2 * total, "steps": None, "operations": 2 * forward, "recomputed": 0}
        | {"memory": 2 * 4 * size.parameters},
        cost("train-policy", total, pairs, config),
    ]


def with_hours(costs: list[dict[str, Any]], config: ValidateConfig) -> list[dict[str, Any]]:
    """The same with ``hours`` on all GPUs of a plan, where their peak was given."""
    if config.peak_tflops is None:
        return costs
    speed = config.peak_tflops * 1e12 * config.mfu * config.world_size
    return [cost | {"hours": (cost["operations"] + cost["recomputed"]) / speed / HOUR} for cost in costs]


def cost_table(costs: list[dict[str, Any]], size: ModelSize) -> Table:
    """The costs in units for people."""
    columns = ["stage", "tokens seen", "steps", "TFLOP", "memory, at least"]
    rows = [
        [
            cost["stage"],
            f"{cost['tokens']:,}",
            f"{cost['steps']:,}" if cost["steps"] else "",
            three_digits(cost["operations"] / 1e12),
            gigabytes(cost["memory"]),
            *([duration(cost["hours"])] if "hours" in cost else []),
        ]
        for cost in costs
    ]
    columns += ["time"] if "hours" in costs[0] else []
    return Table(f"Estimate ({size.parameters:,} parameters; memory undivided)", columns, rows)


def plan_table(found: Footprint, machine: Machine) -> Table:
    """Bytes of one device by part, what training allows itself of it, and whether they fit."""
    parts = [(words, getattr(found, name), how) for name, (words, how) in _PARTS.items()]
    rows = [[words, "unknown" if size is None else gigabytes(size), how] for words, size, how in parts if size != 0]
    rows += [
        ["together", gigabytes(found.total), ""],
        [f"together, with {OVERHEAD - 1:.0%} that allocators take", gigabytes(found.total * OVERHEAD), ESTIMATED],
        [
            f"there is: {machine.share:.0%} of {gigabytes(machine.memory)}",
            gigabytes(machine.share * machine.memory),
            "",
        ],
        ["before the first step, while the model is loaded and read", gigabytes(found.loading), ""],
    ]
    return Table(f"Training on {place(machine)}: {verdict(found, machine)}", ["a device holds", "size", ""], rows)


def plan_json(found: Footprint, machine: Machine) -> dict[str, Any]:
    """The same for programs, in bytes."""
    parts = {name: getattr(found, name) for name in _PARTS}
    return {
        "world_size": machine.processes,
        "use_fsdp": machine.divided,
        "device_memory": machine.memory,
        "bytes": parts,
        "estimated": [name for name, (_, how) in _PARTS.items() if how == ESTIMATED],
        "total": found.total,
        "with_overhead": found.total * OVERHEAD,
        "room": machine.share * machine.memory,
        "loading": found.loading,
        "micro_batch_tokens": found.tokens,
        "fits": found.fits(machine),
    }


def verdict(found: Footprint, machine: Machine) -> str:
    """Whether it fits, and if not, what does not."""
    if found.fits(machine):
        return f"fits, with micro-batches of {found.tokens:,} tokens"
    if found.trains_in(machine):
        return f"would fit, but not while the model is loaded and read: {gigabytes(found.loading)}"
    return f"does not fit, with micro-batches of {found.tokens:,} tokens"


def place(machine: Machine) -> str:
    """Such as ``8 devices of 80 GB by FSDP2``."""
    devices = "one device" if machine.processes == 1 else f"{machine.processes:,} devices"
    how = "" if machine.processes == 1 else f" by {'FSDP2' if machine.divided else 'DDP'}"
    return f"{devices} of {gigabytes(machine.memory)}{how}"


def duration(hours: float) -> str:
    """In the largest unit of which there are two."""
    units = {"days": 24.0, "hours": 1.0, "minutes": 1 / 60}
    name, unit = next(((name, unit) for name, unit in units.items() if hours >= 2 * unit), ("seconds", 1 / HOUR))
    return f"{three_digits(hours / unit)} {name}"


def gigabytes(count: float) -> str:
    return f"{three_digits(count / 1e9)} GB"


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
