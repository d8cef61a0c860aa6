"""Too little memory, said as what to change and by how much."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.errors import SepoError, one_line
from stages.types import CausalLM, Example, longest


class OutOfMemory(SepoError):
    """An allocation failed. What was trained before is as it was."""


@contextmanager
def enough_memory(doing: str, hint: Callable[[], str]) -> Iterator[None]:
    """Turn an allocation that fails inside, on a GPU or a CPU, into `OutOfMemory`: ``out of memory in DOING``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory in {doing}: {one_line(error)}", hint=hint()) from error


def memory_for(
    examples: Sequence[Example], tokens: int, max_tokens: int, *, trains: bool = True
) -> AbstractContextManager[None]:
    """`enough_memory` for a micro-batch of so many tokens; `trains`: with a backward pass."""
    size = f"a micro-batch of {len(examples):,} pairs with {tokens:,} tokens (budget {max_tokens:,})"
    return enough_memory(size, lambda: _remedy(examples, tokens, trains))


def move_model(model: CausalLM, device: torch.device) -> CausalLM:
    """The model on that device; weights in few bits are where they were loaded to."""
    if getattr(model, "is_quantized", False):
        return model
    doing = f"moving a model of {sum(weight.numel() for weight in model.parameters()):,} parameters to {device}"
    with enough_memory(doing, lambda: "use a smaller model or a larger device, or see what else takes its memory"):
        return model.to(device)


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array's numbers on a device. A GPU gets them while it computes, and whoever sends them goes on at once."""
    numbers = torch.from_numpy(array)
    # Only out of pinned memory; torch keeps that until the copy is done.
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


def _is_out_of_memory(error: Exception) -> bool:
    # torch has a class of its own for devices only; on a CPU its allocator says so in words.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _remedy(examples: Sequence[Example], tokens: int, trains: bool) -> str:
    row = max(longest(example.pair) for example in examples)
    if len(examples) > 1:
        return f"use --max-tokens-per-device {tokens // 2}: it does not change the result, and the run goes on with it"
    alone = f"it is one pair alone, whose longer row has {row:,} tokens"
    return f"{alone}: use {'--gradient-checkpointing, or ' if trains else ''}--max-length {row // 2}"
