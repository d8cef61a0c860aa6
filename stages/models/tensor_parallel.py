"""Tensor parallelism: all processes of a launcher hold a model together, by the plan of its class in transformers.

Each holds a part of every layer, and all read the same pairs or prompts at the same time. The head stays whole in each
of them: divided it would give the logits of all rows over the whole vocabulary at once, rounded as the layers are.
"""

from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from stages.devices.processes import ALONE, Team
from stages.errors import SepoError
from stages.models.adapters import is_adapter
from stages.models.folders import load_model, load_without_weights
from stages.models.quantization import quantized
from stages.types import CausalLM

TENSOR_PARALLEL: Final = "tensor-parallel"
_ASKED: Final = f"--device-map {TENSOR_PARALLEL}"
_WHOLE: Final = "replicated_with_grad_allreduce"
"""transformers' name for weights of which every process has all"""


def who_holds(device_map: str | None, accelerator: Accelerator) -> Team:
    """Who works on the models that this process loads: all processes of a launch, or this one by itself."""
    return Team(accelerator) if device_map == TENSOR_PARALLEL else ALONE


def load_together(folder: Path, *, trust_remote_code: bool, dtype: Any) -> CausalLM:
    """This process's parts of a model; all processes have to call it."""
    kept = _kept_whole(load_without_weights(folder, trust_remote_code=trust_remote_code))
    held = {"distributed_config": DistributedConfig(tp_plan=kept)}
    return load_model(folder, trust_remote_code=trust_remote_code, dtype=dtype, held=held)


def _kept_whole(model: Any) -> dict[str, str]:
    """The head, and an embedding of the same weights, by their names in the plan."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    whole = [head, embedding] if head.weight is embedding.weight else [head]
    return {name: _WHOLE for name, module in model.named_modules() if any(module is each for each in whole)}


def bytes_here(model: CausalLM) -> int:
    """What this process holds of a model's weights."""
    weights = model.parameters()
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in weights)


def refuse_undivided(folder: Path, processes: int, quantize: str | None, *, trust_remote_code: bool) -> None:
    """Stop, before weights are read, where so many processes cannot hold a model together."""
    if processes == 1:
        raise SepoError(
            f"{_ASKED} divides a model among several processes, but one was started",
            hint="start it by torchrun or accelerate launch; --device-map auto is for one process",
        )
    if quantize or quantized(folder):
        bits = quantize or quantized(folder)
        raise SepoError(f"{_ASKED} cannot divide weights held in {bits}: {folder}", hint="use --precision bfloat16")
    if is_adapter(folder):
        raise SepoError(
            f"{folder} is an adapter, which {_ASKED} cannot put on a divided model",
            hint="merge it into its base (peft's merge_and_unload), and give the folder of that model",
        )
    model: Any = load_without_weights(folder, trust_remote_code=trust_remote_code)
    if not model.tp_plan.keys() - _kept_whole(model).keys():
        raise SepoError(
            f"{folder} cannot be divided by {_ASKED}: {type(model).__name__} has no plan of its layers in transformers",
            hint="use --device-map auto in one process",
        )
    config = model.config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None)
        if isinstance(heads, int) and heads % processes:
            raise SepoError(
                f"{folder} has {name} {heads}, which {processes} processes cannot divide evenly",
                hint="start as many processes as divide it",
            )
