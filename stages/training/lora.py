"""Training a low-rank adapter instead of a whole model (LoRA, arXiv 2106.09685; QLoRA, arXiv 2305.14314), by peft.

    W x  becomes  W x + alpha / rank * B A x

W is frozen, and may be held in 4 or 8 bits; B starts at 0, so that training starts from the model as it is. There is no
dropout on the adapter: preference losses compare log-probs, and dropout would add its noise to each of them.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from stages.compat import dequantized, is_dequantizable
from stages.configs import OptimizerConfig, module_names
from stages.devices.engines import gather_trained, gather_weights
from stages.devices.extras import refuse_without
from stages.devices.memory import enough_memory
from stages.errors import SepoError, one_line
from stages.logprobs.trial import agree, rounds_as, trial_logps
from stages.models.adapters import attach, is_adapter, save, tied_target
from stages.models.quantization import quantized, refuse_quantized
from stages.reporting import Reporter
from stages.types import CausalLM

UNMERGED: Final = "unmerged-adapter"
"""in a run's folder, where a trained adapter is kept that could not be merged"""


class Divided(NamedTuple):
    """What the first process has of a trainee that is divided among processes."""

    weights: dict[str, Tensor]
    """what was trained, by name, as `Trainee.gathered` gives it"""
    base: Callable[[], CausalLM]
    """loads the model as it was before training"""


class Trainee(NamedTuple):
    """What is trained: a whole model, or an adapter inside one."""

    model: CausalLM
    """a causal language model; only weights that are trained require a gradient"""
    adapter: Any
    """peft's wrapper around it, or None"""

    @property
    def unmerged(self) -> Any:
        """What is trained: the model, or its adapter alone."""
        return self.model if self.adapter is None else self.adapter

    def gathered(self) -> dict[str, Tensor] | None:
        """What is trained, by name, in the first process, where it is divided; every process has to call it."""
        return gather_weights(self.model) if self.adapter is None else gather_trained(self.adapter)

    def finished(self, *, merged: bool, aside: Path, divided: Divided | None = None) -> Any:
        """What is to be saved: the model, its adapter alone, or the model with the adapter added to its weights.

        Merging takes the trainee apart. Weights that were held in few bits are ordinary ones first, with the values
        that the adapter was trained on.

        Where merging does not give what was trained, that is an error, and the adapter is kept `aside`.

        Args:
            divided: where the trainee is divided among processes; merged is then a second model, which is whole.
        """
        if not merged or self.adapter is None:
            return self.unmerged
        save(self.adapter, aside, divided and divided.weights)
        adapter = attach(divided.base(), aside) if divided else self.adapter
        trained = adapter.get_base_model()
        expected_N = trial_logps(trained)
        # In 8 bits the products round their activations too, as in half precision; ordinary weights' do not.
        precision = rounds_as(trained)
        model = _merged(adapter)
        if not agree(trial_logps(model), expected_N, precision):
            raise SepoError(
                "the model with the adapter merged into it is not the model that was trained",
                hint=f"the adapter is in {aside}; leave out --merge to train one that stays beside its base",
            )
        shutil.rmtree(aside)
        return model


def refuse_useless_lora(config: OptimizerConfig, model_folder: Path, *, keeps_base: bool) -> None:
    """Stop before a model loads, where the options do not fit it or a library is missing.

    Args:
        keeps_base: the adapter's base will be a folder that the stage writes itself.
    """
    held = quantized(model_folder)
    if held and not config.lora_rank:
        raise SepoError(
            f"{model_folder} holds its weights in {held}, which cannot be trained themselves",
            hint="train an adapter on them with --lora-rank 16, or give the model that it was made from",
        )
    if config.quantize:
        refuse_quantized(model_folder, config.quantize)
    if not config.lora_rank:
        return
    refuse_without("peft", "lora_rank", "lora")
    if config.quantize:
        refuse_without("bitsandbytes", f"quantize {config.quantize}", "qlora")
    if not is_adapter(model_folder):
        return
    if config.quantize:
        raise SepoError(f"{model_folder} is an adapter, which cannot be quantised", hint="merge it into its base first")
    if not (config.merge or keeps_base):
        raise SepoError(
            f"{model_folder} is an adapter already, and an adapter on an adapter has no base to be loaded on",
            hint="add --merge, or merge the model into its base first",
        )


def make_trainee(model: CausalLM, config: OptimizerConfig, base: str, reporter: Reporter, *, merged: bool) -> Trainee:
    """The model with a fresh adapter inside, seeded; or as it is, where no rank was given.

    Args:
        base: folder or hub name of the model, on which the adapter will be loaded again.
        merged: it will be merged in the end.
    """
    if not config.lora_rank:
        return Trainee(model, None)
    from peft import LoraConfig, get_peft_model

    _refuse_rank(model, config.lora_rank)
    if merged and not is_dequantizable(model):
        raise SepoError(
            "an adapter cannot be merged into weights in few bits of this kind",
            hint="train one that is not merged, or give the model that they were made from",
        )

    modules = config.lora_target_modules
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=0.0,
        target_modules=module_names(modules) if modules else "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    doing = f"making an adapter of rank {config.lora_rank:,}"
    try:
        with torch.random.fork_rng(devices=[]), enough_memory(doing, lambda: "lower --lora-rank"):
            torch.manual_seed(config.seed)
            adapter = get_peft_model(model, settings)
    except ValueError as error:
        raise SepoError(
            f"lora_target_modules {modules or 'all-linear'} does not fit {type(model).__name__}: {one_line(error)}",
            hint=f"its linear layers are {', '.join(_linear_names(model))}",
        ) from error
    # peft takes the name that the model was loaded by, and warns of any other.
    name, _, revision = (base, "", "") if Path(base).is_dir() else base.partition("@")
    adapter.active_peft_config.base_model_name_or_path = name
    adapter.active_peft_config.revision = revision or None
    tied = tied_target(adapter) if merged else None
    if tied:
        raise SepoError(
            f"{tied} shares its weights with another layer, which a merged adapter would change too",
            hint="leave it out of --lora-target-modules, or train an adapter that is never merged",
        )
    stacked = next(_stacked(adapter.get_base_model()), None)
    if stacked:
        reporter.warn(f"{stacked} and its like are no linear layers (experts): the adapter leaves them as they are")
    trained, every = adapter.get_nb_trainable_parameters()
    reporter.say(f"LoRA: {trained:,} weights of an adapter are trained, {every - trained:,} of the model are not")
    return Trainee(adapter.get_base_model(), adapter)


def _merged(adapter: Any) -> Any:
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if not getattr(adapter.get_base_model(), "is_quantized", False):
        return adapter.merge_and_unload()
    # peft would add to weights of few bits, and round the sum to as few again.
    settings, weights = adapter.active_peft_config, get_peft_model_state_dict(adapter, save_embedding_layers=False)
    settings.base_model_name_or_path = None
    exact = get_peft_model(dequantized(adapter.unload()), settings)
    set_peft_model_state_dict(exact, weights)
    return exact.merge_and_unload()


def _refuse_rank(model: CausalLM, rank: int) -> None:
    """Refuse a rank that no matrix of the model has: its adapter would only take memory."""
    highest = max((_highest_rank(module) for module in model.modules() if _is_linear(module)), default=rank)
    if rank > highest:
        raise SepoError(f"lora_rank {rank:,} is above the highest rank of a layer, {highest:,}", hint="give 8 to 64")


def _highest_rank(module: Any) -> int:
    # Weights in 4 bits have a shape of their own.
    linear = isinstance(module, torch.nn.Linear)
    return int(min((module.in_features, module.out_features) if linear else module.weight.shape))


def _stacked(model: CausalLM) -> Iterator[str]:
    """Weights without an adapter that hold several matrices each, such as those of all experts of a layer."""
    for prefix, module in model.named_modules():
        if not isinstance(module, torch.nn.modules.conv._ConvNd) and "base_layer" not in prefix:
            for name, weight in module.named_parameters(recurse=False):
                if weight.ndim == 3 and min(weight.shape) > 1:
                    yield f"{prefix}.{name}"


def _linear_names(model: CausalLM) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)})


def _is_linear(module: Any) -> bool:
    return isinstance(module, (torch.nn.Linear, Conv1D))
