"""The optimisers: PyTorch's fused AdamW, and those of bitsandbytes, which need less memory on the device."""

from typing import Any, Final

import torch

from stages.configs import OptimizerConfig
from stages.devices.extras import refuse_without
from stages.errors import SepoError
from stages.types import CausalLM

_OF_BITSANDBYTES: Final = {
    "adamw-8bit": "AdamW8bit",
    "adamw-paged": "PagedAdamW32bit",
    "adamw-8bit-paged": "PagedAdamW8bit",
}


def refuse_useless_optimizer(config: OptimizerConfig, device: torch.device, *, divided: bool = False) -> None:
    """Stop before a model loads, where the optimiser's library is missing or it can do nothing on this device.

    Args:
        divided: the weights will be FSDP2's, in parts; what bitsandbytes computes knows nothing of those.
    """
    if config.optim in _OF_BITSANDBYTES:
        if divided:
            raise SepoError(
                f"optim {config.optim} cannot step weights that FSDP2 divides",
                hint="use --optim adamw: its moments are divided too; fsdp_offload_params moves them to the host",
            )
        refuse_without("bitsandbytes", f"optim {config.optim}", "qlora")
    if config.optim.endswith("-paged") and device.type != "cuda":
        raise SepoError(
            f"optim {config.optim} moves its state between a CUDA device and the host, and this is {device.type}",
            hint=f"use --optim {config.optim.removesuffix('-paged')}",
        )


def make_optimizer(model: CausalLM, config: OptimizerConfig) -> Any:
    """The optimiser of the weights of `model` that are trained."""
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    groups = _decayed(model, config.weight_decay)
    if config.optim not in _OF_BITSANDBYTES:
        return torch.optim.AdamW(groups, fused=True, **settings)
    from bitsandbytes import optim

    _keep_embeddings_exact(model, optim.GlobalOptimManager.get_instance())
    return getattr(optim, _OF_BITSANDBYTES[config.optim])(groups, **settings)


def _decayed(model: CausalLM, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: norms and biases are not decayed, as in transformers' Trainer; frozen weights are in none."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _keep_embeddings_exact(model: CausalLM, manager: Any) -> None:
    """Rows of rare tokens are unstable with moments in 8 bits (arXiv 2110.02861 section 2.3)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
