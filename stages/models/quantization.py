"""Weights held in few bits: by a checkpoint, or while an adapter on them is trained (QLoRA, arXiv 2305.14314)."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from stages.configs import OptimizerConfig
from stages.devices.memory import move_model
from stages.errors import SepoError, borrowed
from stages.models.fit import REMEDY
from stages.models.folders import described_in, load_model, load_waiting
from stages.store.files import read_object
from stages.types import CausalLM


def quantized(folder: Path) -> str | None:
    """How a model's checkpoint, or that of an adapter's base, holds its weights, if in few bits."""
    return bits_of(read_object(described_in(folder) / "config.json", REMEDY))


def refuse_quantized(folder: Path, quantize: str) -> None:
    """Refuse a checkpoint in few bits where its weights are to be held in as many, or in others."""
    held = quantized(folder)
    if held:
        raise SepoError(
            f"{folder} holds its weights in {held} already, and cannot be held in {quantize}",
            hint="leave out --quantize, or give the model that it was made from",
        )


def bits_of(config: dict[str, Any]) -> str | None:
    """How a model's configuration says that its weights are held, such as ``4 bits (bitsandbytes)``; None if whole."""
    text = config.get("text_config")
    held = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not isinstance(held, dict):
        return None
    bits = 4 if held.get("load_in_4bit") else 8 if held.get("load_in_8bit") else held.get("bits", held.get("w_bit"))
    method = str(held.get("quant_method") or "bitsandbytes")
    return f"{bits} bits ({method})" if bits else f"few bits ({method})"


def load_trainable(folder: Path, config: OptimizerConfig, device: torch.device, *, divided: bool = False) -> CausalLM:
    """A model on its device, its weights held as the configuration says; the head and the embeddings always in full.

    Args:
        divided: it waits to be divided, where its weights are not in few bits; those every process holds whole.
    """
    # Products are float32, but while it trains in mixed precision: log-probs are compared.
    held = held_in(config.quantize, {"": device}) if config.quantize else None
    ordinary, trust = config.quantize is None, config.trust_remote_code
    if divided and ordinary and not quantized(folder):
        model = load_waiting(folder, trust_remote_code=trust)
    else:
        model = move_model(load_model(folder, trust_remote_code=trust, held=held, ordinary=ordinary), device)
    quantizer = getattr(model, "hf_quantizer", None)
    if ordinary and quantizer is not None and not quantizer.is_trainable:
        raise SepoError(
            f"{folder} holds its weights in {quantized(folder)}, through which no gradient passes",
            hint="give the model that it was made from",
        )
    if config.attn_implementation:
        with borrowed(
            f"{folder} does not attend by {config.attn_implementation}", hint="leave out --attn-implementation"
        ):
            model.set_attn_implementation(config.attn_implementation)
        model.own_attention = True
    return model


def held_in(quantize: str, device_map: Any, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """For `load_model`: weights of so many bits, which are packed as they are read; products take `dtype`."""
    how = BitsAndBytesConfig(load_in_8bit=True)
    if quantize == "4bit":
        # NF4 with quantised constants, as in the paper.
        how = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return {"quantization_config": how, "device_map": device_map}


def quantizable(model: Any) -> list[Tensor]:
    """The weights that `load_trainable` holds in few bits, as transformers chooses them: of layers but the head."""
    skipped = get_keys_to_not_convert(model)
    return [
        module.weight
        for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped)
    ]


def bytes_in_few_bits(shape: torch.Size, quantize: str) -> int:
    """What bitsandbytes holds of a matrix of this shape, its constants included."""
    if quantize == "8bit":
        return shape.numel() + 4 * shape[0]
    blocks = math.ceil(shape.numel() / 64)
    # A constant a block in 8 bits, one in float32 for 256 of those, their mean, and what the codes stand for.
    return math.ceil(shape.numel() / 2) + blocks + 4 * math.ceil(blocks / 256) + 4 + 4 * (16 + 256)
