"""What is taken from inside other libraries: names with an underscore, which a new version may move or drop.

Each says why nothing public will do. All are as they were in torch 2.13, transformers 5.23 and accelerate 1.15.
"""

import inspect
from typing import Any, Final

import torch
from accelerate.state import AcceleratorState
from torch.distributed import distributed_c10d
from torch.nn.attention.varlen import varlen_attn
from torch.nn.modules.dropout import _DropoutNd
from transformers.quantizers.base import HfQuantizer

DROPOUT: Final = _DropoutNd
"""the base of all dropout modules of torch: there is no public one"""
BITSANDBYTES_LOGGER: Final = "bitsandbytes.autograd._functions"
"""warns at every product in 8 bits that activations are rounded"""


def store_of_processes(prefix: str) -> Any:
    """Through which processes found each other, by a connection of its own; torch's public ways open another store."""
    store: Any = distributed_c10d.PrefixStore(prefix, distributed_c10d._get_default_store())
    return store.clone()


def attention_of(model: Any) -> str:
    """How a model attends: transformers has a public way to set it, and none to ask."""
    return str(model.config._attn_implementation)


def takes_attention(model: Any) -> bool:
    """Whether a model calls a function registered with `AttentionInterface` (no public name since 4.48)."""
    return bool(getattr(model, "_supports_attention_backend", False))


def varlen_options(*, grouped: bool) -> dict[str, bool]:
    """How `varlen_attn` is told that keys have fewer heads than queries: torch 2.11 sees it, newer wants it said."""
    told = grouped and "enable_gqa" in inspect.signature(varlen_attn).parameters
    return {"enable_gqa": True} if told else {}


def unsplit_modules(model: Any) -> set[str]:
    """The classes of a model's layers, by which accelerate wraps them for FSDP; it reads the same attribute."""
    return set(getattr(model, "_no_split_modules", None) or ())


def name_layers(model: Any) -> None:
    """Leave of a model's list of layers those that it has, where accelerate looks for each of them."""
    kinds = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = sorted(kinds & unsplit_modules(model))


def skipped_by_devices(model: Any) -> Any:
    """What accelerate's hooks shall leave where it is, such as a cache; transformers hands it the same attribute."""
    return getattr(model, "_skip_keys_device_placement", None)


def execution_device(module: Any) -> Any:
    """Where a module is computed whose weights accelerate's hook fetches; nothing public tells."""
    return module._hf_hook.execution_device


def forget_compiled(module: Any) -> None:
    """Undo `torch.nn.Module.compile`, which has no inverse."""
    module._compiled_call_impl = None


def forget_other_precision(mixed_precision: str) -> None:
    """Let the next `Accelerator` have this precision; of two in one process accelerate keeps that of the first.

    The group of processes stays.
    """
    if AcceleratorState._shared_state.get("_mixed_precision", mixed_precision) != mixed_precision:
        AcceleratorState._reset_state()


def flash_attention(query: Any, key: Any, value: Any, mask: Any, *, causal: bool, scale: float | None) -> Any:
    """`scaled_dot_product_attention` by a kernel that keeps no scores, unlike the one that the meta device would have.

    The kernel is that of CPUs, the only one that takes a mask and has no limits of shape.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )[0]


def is_dequantizable(model: Any) -> bool:
    """Whether `dequantized` knows how: a public call would find out by doing it, on a model that is then spent."""
    quantizer = getattr(model, "hf_quantizer", None)
    return quantizer is None or type(quantizer)._dequantize is not HfQuantizer._dequantize


def dequantized(model: Any) -> Any:
    """The same weights in full, in an ordinary model that can be saved as one.

    How the checkpoint was unpacked is undone as transformers 5 saves a model, which nothing can do and nothing has to.
    """
    whole = model.dequantize()
    kept = [each for each in getattr(whole, "_weight_conversions", None) or [] if _is_reversible(each)]
    whole._weight_conversions = kept or None
    return whole


def _is_reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True
