"""Weights held in 4 or 8 bits while an adapter on them is trained (QLoRA, arXiv 2305.14314), by bitsandbytes."""

from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from stages.configs import OptimizerConfig
from stages.devices.memory import move_model
from stages.errors import SepoError
from stages.models.few_bits import is_trainable
from stages.models.folders import load_model, quantized


def load_trainable(folder: Path, config: OptimizerConfig, device: torch.device) -> Any:
    """A model on its device, its weights held as the configuration says; the head and the embeddings always in full.

    Raises:
        SepoError: as `load_model`, or its checkpoint's weights let no gradient through.
    """
    if config.quantize is None:
        model = move_model(load_model(folder, trust_remote_code=config.trust_remote_code, ordinary=True), device)
        if not is_trainable(model):
            raise SepoError(
                f"{folder} holds its weights in {quantized(folder)}, through which no gradient passes",
                hint="give the model that it was made from",
            )
        return model
    # Weights are packed as they are read: they are never whole on the device.
    held = {"quantization_config": _how(config.quantize), "device_map": {"": device}}
    return load_model(folder, trust_remote_code=config.trust_remote_code, held=held)


def _how(quantize: str) -> BitsAndBytesConfig:
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    # NF4 with quantised constants, as in the paper. Products are float32: log-probs are compared.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
