"""Weights held in 4 or 8 bits while an adapter on them is trained (QLoRA, arXiv 2305.14314), by bitsandbytes."""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from stages.configs import OptimizerConfig
from stages.model.folders import load_model
from stages.model.memory import move_model


def load_trainable(folder: Path, config: OptimizerConfig, device: torch.device) -> Any:
    """A model on its device, its weights held as the configuration says; the head and the embeddings always in full."""
    if config.quantize is None:
        return move_model(load_model(folder, trust_remote_code=config.trust_remote_code, ordinary=True), device)
    # Weights are packed as they are read: they are never whole on the device.
    held = {"quantization_config": _how(config.quantize), "device_map": {"": device}}
    model = load_model(folder, trust_remote_code=config.trust_remote_code, held=held)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On a CPU that can, evaluation would round the constants to bfloat16, for training too.
            module.support_avx512bf16_for_cpu = False
    return model


def _how(quantize: str) -> BitsAndBytesConfig:
    if quantize == "8bit":
        # It says at every product that activations are rounded, which is what was asked for.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    # NF4 with quantised constants, as in the paper. Products are float32: log-probs are compared.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
