"""What training would take of each device, part by part, counted on a model without weights.

Exact are the weights, gradients and moments: they are added up over the parameters of the very model, adapter and
optimiser that a run would have, and of FSDP2's parts over the shapes that `fully_shard` gives them.

Estimated are three. *Gathered layers*: what FSDP2 holds of undivided weights and gradients at its worst moment, after
the order in which torch 2.13 gathers and frees them. *Activations*: the model is run on the meta device, and what
autograd keeps is added up, as `stages.training.budget` measures it in a run; what only a backward pass makes is left to
`OVERHEAD`. *Head*: the chunks in which logits are computed.
"""

import copy
import math
from collections.abc import Container, Iterable
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stages.compat import flash_attention, takes_attention, unsplit_modules
from stages.configs import OptimizerConfig
from stages.logprobs.batches import whole
from stages.logprobs.head import find_head, has_head, working_bytes
from stages.logprobs.logps import Forward, WeightedLogps
from stages.models.quantization import bytes_in_few_bits, quantizable
from stages.reporting import Reporter
from stages.training.budget import (
    OVERHEAD,
    SHARE,
    UNMEASURED,
    Kept,
    budget_in_room,
    kept_with_checkpointing,
    measured_kept,
    standing,
    tokens_in_room,
)
from stages.training.lora import make_trainee
from stages.types import CausalLM, TokenPair

_FLOAT32: Final = 4
_SHORT: Final = (64, 96, 96)
"""tokens of the pair that is read without numbers"""
_PRODUCTS: Final = (
    F.linear, F.scaled_dot_product_attention, F.conv1d,
    torch.addmm, torch.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.bmm,
)  # fmt: skip


class Machine(NamedTuple):
    """What a run is planned for."""

    processes: int
    """one a device"""
    divided: bool
    """by FSDP2; else every device has the whole model"""
    device: str
    """its type, such as ``cuda``"""
    memory: int
    """of one device, in bytes"""

    @property
    def share(self) -> float:
        """What training allows itself of a device's memory."""
        return SHARE.get(self.device, SHARE["cpu"])


ALONE: Final = Machine(1, False, "cpu", 0)
"""one device that has all"""


class Footprint(NamedTuple):
    """Bytes of one device, the fullest, by part."""

    weights: int
    gradients: int
    buckets: int
    """a second copy of the gradients, in which DDP adds them up"""
    moments: int
    gathered: int
    """undivided weights and gradients of FSDP2, at the worst moment"""
    loading: int
    """before the first step: weights, and where they are divided the layers that are gathered to be read in float32"""
    head: int
    """what the logits are computed in"""
    casts: int = 0
    """weights in half precision beside those in float32"""
    activations: int | None = None
    """of a micro-batch; None where the model cannot be run without its numbers"""
    tokens: int = 0
    """of a micro-batch"""

    @property
    def total(self) -> int:
        parts = (self.weights, self.gradients, self.buckets, self.moments, self.gathered, self.casts, self.head)
        return sum(parts) + (self.activations or 0)

    def fits(self, machine: Machine) -> bool:
        return self.trains_in(machine) and self.loading <= machine.memory

    def trains_in(self, machine: Machine) -> bool:
        """Whether its steps fit, with what allocators take."""
        return self.total * OVERHEAD <= machine.share * machine.memory


class Planned(NamedTuple):
    """A model without weights, as a run would train it."""

    model: CausalLM
    in_few_bits: dict[int, int]
    """bytes of each weight that is quantised, by the id of its parameter"""
    parameters: int
    """without an adapter"""

    def held(self, machine: Machine, weight: Tensor) -> tuple[int, int]:
        """Numbers and bytes of a weight that the fullest device has."""
        few = self.in_few_bits.get(id(weight))
        if few is not None:
            # accelerate leaves weights in 4 bits undivided.
            return weight.numel(), few
        # `fully_shard` cuts the first dimension, and pads the last parts.
        rows = weight.shape[0] if weight.ndim else 1
        numbers = math.ceil(rows / machine.processes) * (weight.numel() // rows) if machine.divided else weight.numel()
        return numbers, numbers * weight.element_size()


def planned(model: CausalLM, config: OptimizerConfig, reporter: Reporter) -> Planned:
    """The trainee that a stage would make of a model without weights."""
    few: dict[int, int] = {}
    parameters = sum(weight.numel() for weight in model.parameters())
    if config.quantize:
        few = {id(weight): bytes_in_few_bits(weight.shape, config.quantize) for weight in quantizable(model)}
    with torch.device("meta"):
        trainee = make_trainee(model, config, config.model, reporter, merged=False)
    return Planned(trainee.model, few, parameters)


def footprint(plan: Planned, config: OptimizerConfig, machine: Machine, longest: int, most: int) -> Footprint:
    """Count it.

    Args:
        longest: tokens of the longest pair, which a micro-batch is never smaller than.
        most: tokens that a device has to do in a step.
    """
    half = config.mixed_precision != "no"
    held = standing([plan.model], config.optim, partial(plan.held, machine))
    trained = sum(weight.numel() for weight in plan.model.parameters() if weight.requires_grad)
    # FSDP2 gathers the weights in half precision: nothing is left to cast.
    read: Any = copy.deepcopy(plan.model)
    read = read.to(torch.bfloat16 if half and machine.divided else torch.float32)
    found = Footprint(
        weights=held.weights,
        gradients=held.gradients,
        buckets=_FLOAT32 * trained if machine.processes > 1 and not machine.divided else 0,
        moments=held.moments,
        gathered=gathered_bytes(plan.model, half=half, left_out=plan.in_few_bits) if machine.divided else 0,
        loading=_loading(plan, config, machine, held.weights),
        head=_head_bytes(read, machine.device, 0),
    )
    kept = kept_without_numbers(read, config)
    if kept:
        found = found._replace(casts=int(kept.fixed))
    budget = config.max_tokens_per_device or UNMEASURED
    if kept and not (config.max_tokens_per_device or machine.divided):
        room = tokens_in_room(machine.device, machine.memory, found.total, kept.a_token)
        budget = budget_in_room(machine.device, room)
    tokens = max(longest, min(budget, most))
    activations = int(kept.a_token * tokens) if kept else None
    return found._replace(tokens=tokens, activations=activations, head=_head_bytes(read, machine.device, tokens))


def _loading(plan: Planned, config: OptimizerConfig, machine: Machine, weights: int) -> int:
    # Weights in few bits are loaded whole, with the rest of their model.
    if plan.in_few_bits or not machine.divided:
        return standing([plan.model], config.optim, partial(plan.held, ALONE)).weights
    return weights + gathered_bytes(plan.model, half=False, trains=False)


def kept_without_numbers(model: Any, config: OptimizerConfig) -> Kept | None:
    """What a forward pass keeps on a GPU; None where a model looks at numbers to know what to compute."""
    example = whole(TokenPair(0, *(np.zeros(length, np.int32) for length in _SHORT)))
    forward = Forward(model, packs=takes_attention(model), chunked=has_head(model))
    half = config.mixed_precision != "no"
    # FSDP2 has cast the weights of such a model already.
    autocast = partial(AsOnGpu, half=True) if half and model.dtype == torch.float32 else None
    try:
        with AsOnGpu(half=half):
            kept = measured_kept(WeightedLogps(forward), forward, example, autocast=autocast)
    except RuntimeError:
        return None
    return kept_with_checkpointing(model, kept) if config.gradient_checkpointing else kept


class AsOnGpu(TorchFunctionMode):
    """While open, tensors without numbers are computed as on a GPU: no scores of attention are kept.

    With `half`, products are of half precision, as autocast makes them; the meta device has no autocast.
    """

    def __init__(self, *, half: bool) -> None:
        super().__init__()
        self._half = half

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._half and func in _PRODUCTS:
            args = tuple(map(_half, args))
            kwargs = {name: _half(value) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    return flash_attention(query, key, value, attn_mask, causal=is_causal, scale=scale)


def _half(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


def gathered_bytes(model: CausalLM, *, half: bool, left_out: Container[int] = (), trains: bool = True) -> int:
    """Undivided weights and gradients of FSDP2, at the worst of three moments.

    A layer is gathered while the one before it is at work, and its gradients are summed (in float32) while the next
    one's are computed. What is no layer is a group of its own, gathered from first to last.

    Args:
        left_out: weights that are not divided, by the ids of their parameters.
        trains: without it the first of those moments alone.
    """
    size = 2 if half else _FLOAT32
    kinds = unsplit_modules(model)
    layers = [[*module.parameters()] for module in model.modules() if type(module).__name__ in kinds]
    inside = {id(weight) for layer in layers for weight in layer}

    def numbers(weights: Iterable[Tensor], *, trained: bool = False) -> int:
        divided = (weight for weight in weights if id(weight) not in left_out)
        return sum(weight.numel() for weight in divided if weight.requires_grad or not trained)

    rest = [weight for weight in model.parameters() if id(weight) not in inside]
    root, root_trained = numbers(rest), numbers(rest, trained=True)
    layer = max(map(numbers, layers), default=0)
    layer_trained = max((numbers(each, trained=True) for each in layers), default=0)
    head_trained = numbers([model.get_output_embeddings().weight], trained=True) if has_head(model) else 0
    begins = 2 * (root + layer) * size
    if not trains:
        return begins
    turns = (root + 2 * layer + head_trained + layer_trained) * size + layer_trained * _FLOAT32
    ends = root_trained * (size + _FLOAT32)
    return max(begins, turns, ends)


def _head_bytes(model: CausalLM, device: str, rows: int) -> int:
    if not has_head(model):
        return 0
    return working_bytes(find_head(model), rows, device, learns=model.get_output_embeddings().weight.requires_grad)
