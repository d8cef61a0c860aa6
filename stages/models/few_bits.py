"""Weights held in few bits: whether a checkpoint's are, and how the products with them are computed.

How many bits there are is the checkpoint's own property, and no option of ours can give back what was rounded away.
"""

import logging
from typing import Any

import torch
from transformers.quantizers.base import HfQuantizer


def bits_of(config: dict[str, Any]) -> str | None:
    """How a model's configuration says that its weights are held, such as ``4 bits (bitsandbytes)``; None if whole."""
    text = config.get("text_config")
    held = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not isinstance(held, dict):
        return None
    bits = 4 if held.get("load_in_4bit") else 8 if held.get("load_in_8bit") else held.get("bits", held.get("w_bit"))
    method = str(held.get("quant_method") or "bitsandbytes")
    return f"{bits} bits ({method})" if bits else f"few bits ({method})"


def is_trainable(model: Any) -> bool:
    """Whether gradients can pass through the weights of a model to an adapter on them."""
    quantizer = getattr(model, "hf_quantizer", None)
    return quantizer is None or bool(quantizer.is_trainable)


def is_dequantizable(model: Any) -> bool:
    """Whether `dequantized` knows how."""
    quantizer = getattr(model, "hf_quantizer", None)
    return quantizer is None or type(quantizer)._dequantize is not HfQuantizer._dequantize


def dequantized(model: Any) -> Any:
    """The same weights in full, in an ordinary model that can be saved as one."""
    whole = model.dequantize()
    # How the checkpoint was unpacked is undone as a model is saved, which nothing can do and nothing has to.
    kept = [each for each in getattr(whole, "_weight_conversions", None) or [] if _is_reversible(each)]
    whole._weight_conversions = kept or None
    return whole


def _is_reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def exact_products(model: Any) -> None:
    """Compute the products with weights of bitsandbytes in float32, as far as it can: log-probs are compared."""
    # In 8 bits activations are rounded, and it says so at every product.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On a CPU that can, evaluation would round the constants to bfloat16, for training too.
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = torch.float32
