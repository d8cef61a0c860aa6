"""What accelerate may be told to train with: DDP, or FSDP2, which divides weights, gradients and optimiser.

Everything here is read from the environment, in which `accelerate launch` puts its configuration.
"""

import os
from typing import Any, Final

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from stages.devices.parts import numbers_of, second_names, waits
from stages.errors import SepoError

_REMEDY: Final = "use DDP (`accelerate launch --multi_gpu`) or, on GPUs, FSDP2 (`--use_fsdp --fsdp_version 2`)"
_ONE_MODEL: Final = {"TP": "tensor", "CP": "context", "SP": "sequence"}
"""ways in which several processes work on the same pairs"""


def refuse_other_engines() -> None:
    """Stop, before accelerate starts, where it was told to train in a way that the loop does not know."""
    for engine in ("DeepSpeed", "Megatron_LM"):
        if asked_for(f"ACCELERATE_USE_{engine.upper()}"):
            raise SepoError(f"accelerate was told to use {engine}, which sepo does not train with", hint=_REMEDY)
    for short, kind in _ONE_MODEL.items() if asked_for("ACCELERATE_USE_PARALLELISM_CONFIG") else ():
        variable = f"PARALLELISM_CONFIG_{short}_SIZE"
        size = os.environ.get(variable, "1")
        if size != "1":
            asked = f"{kind} parallelism ({variable}={size})"
            raise SepoError(f"accelerate was told to use {asked}, which sepo does not train with", hint=_REMEDY)


def refuse_other_precision(mixed_precision: str) -> None:
    """Stop where accelerate's configuration names another precision than the stage, which would not be used."""
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if told not in ("no", mixed_precision):
        raise SepoError(
            f"accelerate was told to use mixed precision {told}, but this stage computes with {mixed_precision}",
            hint=f"give --mixed-precision {told} where sepo trains, and launch with --mixed_precision no elsewhere",
        )


def compute_in_half_precision(accelerator: Accelerator) -> None:
    """Let FSDP2 gather a layer's weights in bfloat16, and leave all else in float32.

    accelerate's own policy would also cast a batch's weights on their way in and the log-probs on their way out, and
    add up gradients of all processes in bfloat16.
    """
    if accelerator.mixed_precision == "fp16":
        raise SepoError(
            "FSDP2 with mixed precision fp16 is not supported: its scaler would have to agree over all parts",
            hint="use --mixed-precision bf16",
        )
    half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=half, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
    )


def refuse_missing_engine(accelerator: Accelerator) -> None:
    """Stop where FSDP was asked for and something else came out."""
    if asked_for("ACCELERATE_USE_FSDP") and not accelerator.is_fsdp2:
        version = os.environ.get("FSDP_VERSION", "1")
        used = f"{accelerator.distributed_type.value} on {accelerator.device}"
        raise SepoError(f"accelerate was told to use FSDP version {version}, but uses {used}", hint=_REMEDY)


def refuse_divided(accelerator: Accelerator, reason: str) -> None:
    """Stop where processes make different numbers of forward passes, if the model is divided among them."""
    if accelerator.is_fsdp2:
        raise SepoError(f"{reason}, which FSDP2 cannot divide", hint="train it without --use_fsdp")


def refuse_undividable(accelerator: Accelerator, model: Any) -> None:
    """Stop where a model holds whole numbers as weights, which no part of a tensor that learns can be.

    Those in 4 bits accelerate leaves whole in every process.
    """
    for weight in model.parameters():
        if not weight.is_floating_point() and type(weight).__name__ != "Params4bit":
            bits = 8 * weight.element_size()
            refuse_divided(accelerator, f"the model's weights are held as whole numbers of {bits} bits")


def gather_weights(model: Any) -> dict[str, Tensor] | None:
    """The weights of a model that is divided among processes: whole in the first process, nothing in the others.

    Every process has to call it. None where the model is whole in every process.
    """
    if waits(model):
        return numbers_of(model) if PartialState().is_main_process else {}
    _take_apart(model)
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    weights: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    again = second_names(model)
    return {name: weight for name, weight in weights.items() if name not in again}


def gather_trained(model: Any) -> dict[str, Tensor] | None:
    """The same of the weights that are trained alone, such as an adapter's; in the other processes nothing is kept."""
    _take_apart(model)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not any(isinstance(weight, DTensor) for weight in trained.values()):
        return None
    gathered: dict[str, Tensor] = {}
    first = PartialState().is_main_process
    for name, weight in trained.items():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if first:
            gathered[name.replace("_checkpoint_wrapped_module.", "")] = whole.detach().cpu()
    return gathered


def _take_apart(model: Any) -> None:
    """Let go of whole weights that a forward pass without a backward one left behind, rounded perhaps."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def asked_for(variable: str) -> bool:
    """Whether a variable of the environment switches something on."""
    return os.environ.get(variable, "false").lower() in ("true", "1")
