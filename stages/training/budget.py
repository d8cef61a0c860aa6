"""The token budget of a micro-batch, where none was given: the largest that fits, measured with the model at hand.

What a token leaves behind for the backward pass is measured in one forward pass. The memory is the machine's, not what
happens to be free now, so that the same run is cut into the same micro-batches whenever it is started.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor

from stages.configs import OptimizerConfig
from stages.devices.memory import memory_for
from stages.logprobs.logps import Forward, Reference, WeightedLogps, attention_for, make_batch
from stages.reporting import Reporter
from stages.types import CausalLM, Example, longest

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
    batch = make_batch([example], accelerator.device, packs=forward.packs, every_token=reference is not None)
    tokens = batch[0].numel()
    with memory_for([example], tokens, tokens), accelerator.autocast(), attention_for(forward, batch):
        kept = bytes_kept(module, batch) / batch[0].numel()
    if config.gradient_checkpointing:
        kept = _kept_with_checkpointing(forward.model, kept)
    held = standing_bytes([forward.model, *([reference.forward.model] if reference else [])], config.optim)
    memory = memory_of(accelerator.device)
    room = tokens_in_room(accelerator.device.type, memory, held, kept)
    tokens = budget_in_room(accelerator.device.type, room)
    reporter.say(
        f"micro-batches of up to {tokens:,} tokens: of {memory / 1e9:.3g} GB, weights and optimiser take"
        f" {held / 1e9:.2g} GB, and a token keeps {kept / 1e6:.2g} MB for the backward pass"
    )
    if room < batch[0].numel():
        reporter.warn(
            f"the longest pair is a micro-batch of {batch[0].numel():,} tokens, and about {max(0, int(room)):,} fit"
            " the memory: use --gradient-checkpointing or a smaller --max-length if it runs out"
        )
    return tokens


def bytes_kept(module: Any, batch: Any) -> int:
    """Bytes that one forward pass keeps for its backward pass, beside the module's own weights."""
    known = {_place(tensor) for tensor in (*module.parameters(), *module.buffers())}
    sizes: dict[int, int] = {}

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


def standing_bytes(models: Sequence[Any], optim: str) -> int:
    """Weights of some models, and for those that are trained gradients and the moments of an optimiser."""
    weights = {_place(weight): weight for model in models for weight in model.parameters()}.values()
    held: int = sum(weight.untyped_storage().nbytes() for weight in weights)
    trained = (weight for weight in weights if weight.requires_grad)
    return held + int(sum(weight.numel() * (weight.element_size() + MOMENTS.get(optim, 0)) for weight in trained))


def _kept_with_checkpointing(model: CausalLM, kept: float) -> float:
    """Bytes a token where every layer keeps its input alone, and one layer at a time is computed again."""
    config = model.config.get_text_config()
    layers = int(config.num_hidden_layers)
    return kept / layers + float(layers * config.hidden_size * model.dtype.itemsize)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _container_limits() -> list[int]:
    """What cgroups (the second version, then the first) allow this container to take, in bytes."""
    paths = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    texts = [path.read_text(encoding="ascii").strip() for path in map(Path, paths) if path.exists()]
    return [int(text) for text in texts if text.isdecimal()]
