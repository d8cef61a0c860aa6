"""How a model is computed while it trains: its precision, what is kept for the backward pass, compiled or not.

None of it changes what is trained: the weights stay float32, and so do the optimiser's moments, the head's logits and
the losses.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils.other import has_repeated_blocks, is_repeated_blocks

from stages.configs import OptimizerConfig
from stages.errors import SepoError, one_line
from stages.model.precision import products


def refuse_impossible(config: OptimizerConfig, device: torch.device) -> None:
    """Stop where a device has no such arithmetic.

    Raises:
        SepoError: fp16 without a GPU.
    """
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise SepoError("mixed_precision fp16 needs a GPU", hint="use --mixed-precision bf16, or no")


@contextmanager
def training_mode(model: Any, config: OptimizerConfig) -> Iterator[None]:
    """While open, `model` is computed as the configuration says; it is an ordinary model again at the end.

    With mixed precision the layers' products are half precision by accelerate's autocast, and the head's products take
    half-precision inputs (TF32 on CUDA) but give float32 logits.
    """
    with ExitStack() as stack:
        if config.mixed_precision != "no":
            stack.enter_context(products("medium"))
        if config.gradient_checkpointing:
            _checkpoint_layers(model)
            stack.callback(_renamed(model, "checkpointing_disable"))
        if config.compile:
            for block in _repeated_blocks(model):
                block.compile(dynamic=True)
                stack.callback(setattr, block, "_compiled_call_impl", None)
        model.train()
        stack.callback(model.eval)
        yield


def _checkpoint_layers(model: Any) -> None:
    try:
        # Not reentrant: the hooks of DDP and FSDP see every gradient once.
        _renamed(model, "checkpointing_enable")({"use_reentrant": False})
    except ValueError as error:
        raise SepoError(f"gradient_checkpointing: {one_line(error)}", hint="leave it out for this model") from error


def _renamed(model: Any, name: str) -> Any:
    """A method that newer versions of transformers call ``activation_...``, and warn of its older name."""
    return getattr(model, f"activation_{name}", None) or getattr(model, f"gradient_{name}")


def _repeated_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers, each compiled on its own: the same code serves them all, and hooks around them stay in force."""
    if is_repeated_blocks(model):
        return [*model.children()]
    if has_repeated_blocks(model):
        return [block for child in model.children() for block in _repeated_blocks(child)]
    return []
