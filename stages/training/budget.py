"""The token budget of a micro-batch, where none was given: the largest that fits, measured with the model at hand.

What a token leaves behind for the backward pass is measured in a forward pass; under autocast in two, which tell it
from the copies of weights that autocast makes. The memory is the machine's, not what happens to be free now, so that
the same run is cut into the same micro-batches whenever it is started.

`stages.training.footprint` counts by the same functions what a run would take that nobody started.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from stages.configs import OptimizerConfig
from stages.devices.memory import memory_for
from stages.logprobs.batches import whole
from stages.logprobs.logps import Forward, Reference, WeightedLogps, attention_for, batch_tokens, make_batch
from stages.reporting import Reporter
from stages.types import CausalLM, Example, TokenPair, longest

LARGEST: Final = {"cuda": 16_384, "cpu": 2048}
"""tokens beyond which a micro-batch gets no faster: measured on a CPU (benchmarks/RESULTS.md), assumed for GPUs"""
SMALLEST: Final = 256
UNMEASURED: Final = 4096
"""tokens where the weights are divided over devices, and no process can run the model alone"""
SHARE: Final = {"cuda": 0.9, "cpu": 0.5}
"""of a device's memory that training may take: a GPU is its own, a computer has other work to do"""
OVERHEAD: Final = 1.25
"""what a process takes for every byte counted here: 1.15 to 1.19 of it with SmolLM2-135M at 1,024 and 2,048 tokens"""
MOMENTS: Final = {"adamw": 8, "adamw-8bit": 2}
"""bytes a trained weight; paged ones leave the device when it is full"""


class Kept(NamedTuple):
    """What a forward pass keeps for its backward pass, beside the module's own weights, in bytes."""

    fixed: float
    """whatever the tokens: the weights as autocast has cast them"""
    a_token: float


class Standing(NamedTuple):
    """What a device holds whatever the micro-batch, in bytes."""

    weights: int
    gradients: int
    moments: int


def tokens_in_room(device: str, memory: float, standing: float, bytes_a_token: float) -> float:
    """Tokens of a micro-batch that fit, below 0 where not even the weights do.

    Args:
        device: its type, such as ``cuda``.
        memory: of the device, in bytes.
        standing: what is held whatever the micro-batch: weights, gradients, moments, in bytes.
        bytes_a_token: kept for the backward pass.
    """
    return (SHARE.get(device, SHARE["cpu"]) * memory / OVERHEAD - standing) / bytes_a_token


def budget_in_room(device: str, room: float) -> int:
    """The largest power of two of at most `room` tokens, between `SMALLEST` and the device's `LARGEST`."""
    tokens = SMALLEST
    while tokens * 2 <= min(room, LARGEST.get(device, LARGEST["cpu"])):
        tokens *= 2
    return tokens


def memory_of(device: torch.device) -> int:
    """Bytes of memory that this device has; of a computer's, what its container may take, and this process's part."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *_container_limits()]) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def measured_budget(
    accelerator: Accelerator,
    module: WeightedLogps,
    forward: Forward,
    reference: Reference | None,
    config: OptimizerConfig,
    examples: Sequence[Example],
    reporter: Reporter,
) -> int:
    """Tokens of a micro-batch for a module that is not divided over devices yet. Says what was measured.

    The longest pair is the one that is measured, and the one that is warned of if it does not fit alone.
    """
    if accelerator.is_fsdp2:
        divided = "not measured: the weights are divided over devices"
        reporter.say(f"micro-batches of up to {UNMEASURED:,} tokens, {divided}")
        return UNMEASURED
    example = max(examples, key=lambda example: longest(example.pair))
    every_token = reference is not None
    tokens = batch_tokens(example, packs=forward.packs, every_token=every_token)
    with memory_for([example], tokens, tokens):
        autocast = accelerator.autocast if config.mixed_precision != "no" else None
        kept = measured_kept(module, forward, example, every_token=every_token, autocast=autocast)
    if config.gradient_checkpointing:
        kept = kept_with_checkpointing(forward.model, kept)
    models = [forward.model, *([reference.forward.model] if reference else [])]
    held = sum(standing(models, config.optim)) + kept.fixed
    memory = memory_of(accelerator.device)
    room = tokens_in_room(accelerator.device.type, memory, held, kept.a_token)
    budget = budget_in_room(accelerator.device.type, room)
    reporter.say(
        f"micro-batches of up to {budget:,} tokens: of {memory / 1e9:.3g} GB, weights and optimiser take"
        f" {held / 1e9:.2g} GB, and a token keeps {kept.a_token / 1e6:.2g} MB for the backward pass"
    )
    if room < tokens:
        reporter.warn(
            f"the longest pair is a micro-batch of {tokens:,} tokens, and about {max(0, int(room)):,} fit"
            " the memory: use --gradient-checkpointing or a smaller --max-length if it runs out"
        )
    return budget


def measured_kept(
    module: WeightedLogps,
    forward: Forward,
    example: Example,
    *,
    every_token: bool = False,
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Kept:
    """What the pair of an example makes a module keep.

    Args:
        every_token: as the module reads it while it trains, and `make_batch` is told.
        autocast: it reads in half precision; a pair of half the length then tells what is kept whatever the length.
    """

    def read(example: Example) -> tuple[int, int]:
        batch = make_batch([example], forward.model.device, packs=forward.packs, every_token=every_token)
        with (autocast or nullcontext)(), attention_for(forward, batch):
            return batch[0].numel(), bytes_kept(module, batch)

    tokens, total = read(example)
    if autocast is None:
        return Kept(0.0, total / tokens)
    fewer, less = read(whole(TokenPair(0, *(ids[: (len(ids) + 1) // 2] for ids in example.pair.parts))))
    a_token = (total - less) / (tokens - fewer) if tokens > fewer else total / tokens
    return Kept(max(0.0, total - a_token * tokens), a_token)


def bytes_kept(module: Any, batch: Any) -> int:
    """Bytes that one forward pass keeps for its backward pass, beside the module's own weights."""
    known = {_place(tensor) for tensor in (*module.parameters(), *module.buffers())}
    sizes: dict[StorageWeakRef, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if (place := _place(tensor)) not in known:
            sizes[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        # While the result lives, so does what it keeps, and no place is used twice.
        values = module(batch)
    total = sum(sizes.values())
    del values
    return total


def standing(models: Sequence[Any], optim: str, held: Callable[[Tensor], tuple[int, int]] | None = None) -> Standing:
    """Weights of some models, and for those that are trained gradients and the moments of an optimiser.

    Args:
        held: numbers and bytes of a weight that this device has; without it, all that is here.
    """
    weights = {_place(weight): weight for model in models for weight in model.parameters()}.values()
    found = [(weight, *(held or _all_here)(weight)) for weight in weights]
    trained = [(weight, numbers) for weight, numbers, _ in found if weight.requires_grad]
    return Standing(
        weights=sum(size for _, _, size in found),
        gradients=sum(numbers * weight.element_size() for weight, numbers in trained),
        moments=sum(numbers * MOMENTS.get(optim, 0) for _, numbers in trained),
    )


def _all_here(weight: Tensor) -> tuple[int, int]:
    return weight.numel(), weight.untyped_storage().nbytes()


def kept_with_checkpointing(model: CausalLM, kept: Kept) -> Kept:
    """Where every layer keeps its input alone, and one layer at a time is computed again, its weights cast again."""
    config = model.config.get_text_config()
    layers = int(config.num_hidden_layers)
    return Kept(kept.fixed / layers, kept.a_token / layers + float(layers * config.hidden_size * model.dtype.itemsize))


def _place(tensor: Tensor) -> StorageWeakRef:
    # Of tensors without numbers too, whose storages all have the same address. It equals that of the same storage.
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _container_limits() -> list[int]:
    """What cgroups (the second version, then the first) allow this container to take, in bytes."""
    paths = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    texts = [path.read_text(encoding="ascii").strip() for path in map(Path, paths) if path.exists()]
    return [int(text) for text in texts if text.isdecimal()]
