"""Models of which every process holds a part alone, by FSDP2, from the moment on that their weights are read.

A model can wait to be divided: its weights have shapes, and know where their numbers lie, such as in a file that is
mapped into memory and not read. An adapter may be put into it, and copies made of it; `divide` then gives each process
its part of every weight, wherever it lies, and no process reads another's.
"""

import copy
import gc
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_auto_wrap_policy
from torch import Tensor
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn import ModuleDict, ModuleList, Parameter

from stages.compat import name_layers
from stages.types import CausalLM


def let_wait(model: Any, numbers: Mapping[str, Tensor]) -> None:
    """Take a model's numbers from its weights, which will have them again, in float32, once it is divided.

    Args:
        numbers: of every weight, by its name; mapped files stay mapped, and unread.
    """
    waiting: dict[Tensor, Parameter] = {}
    for prefix, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight not in waiting:
                # Whoever reads it too early gets no number at all.
                shape = torch.full((), torch.nan).expand(weight.shape)
                waiting[weight] = Parameter(shape, requires_grad=weight.requires_grad)
                _tell_source(waiting[weight], numbers[f"{prefix}.{name}".removeprefix(".")])
            setattr(module, name, waiting[weight])


def waits(model: Any) -> bool:
    """Whether a model's numbers are still where it was loaded from."""
    return any(hasattr(weight, "source") for weight in model.parameters())


def is_divided(model: Any) -> bool:
    """Whether its processes have to make the same forward passes, since each brings its parts together."""
    return isinstance(model, FSDPModule)


def numbers_of(model: Any) -> dict[str, Tensor]:
    """All that a waiting model would be saved with, in float32; as large as the whole model."""
    found: dict[str, Tensor] = {}
    again = second_names(model)
    for name, value in model.state_dict(keep_vars=True).items():
        source = getattr(value, "source", value).detach()
        if name not in again:
            found[name] = source.float() if source.is_floating_point() else source
    return found


def second_names(model: Any) -> set[str]:
    """Those of weights that have another name too, such as a head's that are the embedding's."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def class_of(model: Any) -> type:
    """What it was before it was divided, which gives it a class of torch's own."""
    kind = type(model)
    return kind.__bases__[-1] if is_divided(model) else kind


def readable(model: CausalLM, accelerator: Accelerator) -> CausalLM:
    """The model as its log-probs can be read: itself, or of one that waits a divided copy, in float32."""
    if not waits(model):
        return model
    weights = {id(weight): weight for weight in model.parameters()}
    divided: CausalLM = copy.deepcopy(model, weights)
    divide(divided, accelerator, trains=False)
    return divided


def divide(model: CausalLM, accelerator: Accelerator, *, trains: bool = True) -> None:
    """Divide a model in place as accelerate's FSDP plugin is set; weights that are no decimals stay whole.

    What a layer needs is brought together while it is computed. Embeddings, last norm and head stay together from the
    model's forward on, or from that of its `read_base`, until the backward pass is done.

    Args:
        trains: without it everything is float32, and nothing is computed twice.
    """
    # What was divided before is held by its own hooks, in circles.
    gc.collect()
    plugin = accelerator.state.fsdp_plugin
    if trains and plugin.activation_checkpointing:
        fsdp2_apply_ac(accelerator, model)
    places = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.is_floating_point()
    ]
    shapes = {
        weight: Parameter(torch.empty(weight.shape, dtype=weight.dtype, device="meta"), weight.requires_grad)
        for _, _, weight in places
    }
    for module, name, weight in places:
        setattr(module, name, shapes[weight])
    _shard(model, accelerator, plugin.mixed_precision_policy if trains else MixedPrecisionPolicy())
    device = torch.device("cpu") if isinstance(plugin.cpu_offload, CPUOffloadPolicy) else accelerator.device
    parts: dict[Tensor, Parameter] = {}
    for module, name, weight in places:
        if weight not in parts:
            parts[weight] = Parameter(_part(weight, getattr(module, name), device), weight.requires_grad)
        setattr(module, name, parts[weight])


def prepare_divided(accelerator: Accelerator, model: CausalLM, optimizer: Any) -> Any:
    """Make accelerate know a divided model with its optimiser, which it returns."""
    weights = [[*group["params"]] for group in optimizer.param_groups]
    plugin = accelerator.state.fsdp_plugin
    # Nothing is left to be wrapped: layers are no longer what they were called.
    accelerator.state.fsdp_plugin = done = copy.copy(plugin)
    done.auto_wrap_policy, done.activation_checkpointing = None, False
    _, optimizer = accelerator.prepare(model, optimizer)
    accelerator.state.fsdp_plugin = plugin
    # It tells weights by their addresses, of which parts without a row have none.
    for group, its in zip(optimizer.param_groups, weights, strict=True):
        group["params"] = its
    return optimizer


def head_is_apart(model: CausalLM) -> bool:
    """Whether the head was divided by itself, and is whole in its own forward only."""
    return is_divided(model.get_output_embeddings())


def _shard(model: Any, accelerator: Accelerator, policy: MixedPrecisionPolicy) -> None:
    """`fully_shard` each layer, and the rest as one, as accelerate would."""
    plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
    options = {
        "mesh": None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)],
        "mp_policy": policy,
        "offload_policy": plugin.cpu_offload,
        "ignored_params": {weight for weight in model.parameters() if not weight.is_floating_point()},
    }
    name_layers(model)
    is_layer = fsdp2_prepare_auto_wrap_policy(plugin, model)
    for module in reversed([*model.modules()][1:]):
        if is_layer is not None and is_layer(module) and not isinstance(module, ModuleList | ModuleDict):
            fully_shard(module, reshard_after_forward=plugin.reshard_after_forward, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    model.read_base = lambda **inputs: model.base_model(**inputs)
    register_fsdp_forward_method(model, "read_base")


def _part(weight: Tensor, shape: DTensor, device: torch.device) -> Any:
    """This process's rows of a weight, read from where it lies."""
    source, mesh = getattr(weight, "source", weight.detach()), shape.device_mesh
    last = mesh.ndim - 1
    rows = math.ceil(len(source) / mesh.size(last))
    start = mesh.get_local_rank(last) * rows
    mine = source[start : start + rows]
    # In memory of its own: a row that is kept would keep the whole.
    part: Any = torch.empty_like(shape, device=device, requires_grad=False)
    part.to_local().copy_(mine)
    return part


def _tell_source(weight: Any, source: Tensor) -> None:
    weight.source = source.detach()
