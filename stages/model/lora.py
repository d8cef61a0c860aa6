"""Training a low-rank adapter instead of a whole model (LoRA, arXiv 2106.09685; QLoRA, arXiv 2305.14314), by peft.

    W x  becomes  W x + alpha / rank * B A x

W is frozen, and may be held in 4 or 8 bits; B starts at 0, so that training starts from the model as it is. There is no
dropout on the adapter: preference losses compare log-probs, and dropout would add its noise to each of them.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.pytorch_utils import Conv1D

from stages.configs import OptimizerConfig, module_names
from stages.errors import SepoError, one_line
from stages.model.adapters import is_adapter, put_on
from stages.model.extras import refuse_without
from stages.reporting import Reporter


class Trainee(NamedTuple):
    """What is trained: a whole model, or an adapter inside one."""

    model: Any
    """a causal language model; only weights that are trained require a gradient"""
    adapter: Any
    """peft's wrapper around it, or None"""

    @property
    def unmerged(self) -> Any:
        """What is trained: the model, or its adapter alone."""
        return self.model if self.adapter is None else self.adapter

    def finished(self, *, merged: bool) -> Any:
        """What is to be saved: the model, its adapter alone, or the model with the adapter added to its weights.

        Merging takes the trainee apart. Weights that were held in few bits are ordinary ones first, with the values
        that the adapter was trained on.
        """
        return _merged(self.adapter) if merged and self.adapter is not None else self.unmerged


def refuse_useless_lora(config: OptimizerConfig, model_folder: Path, *, keeps_base: bool) -> None:
    """Stop before a model loads.

    Args:
        keeps_base: the adapter's base will be a folder that the stage writes itself.

    Raises:
        SepoError: a library is not installed, or the adapter would have no base to be loaded on again.
    """
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


def make_trainee(model: Any, config: OptimizerConfig, base: str, reporter: Reporter) -> Trainee:
    """The model with a fresh adapter inside, seeded; or as it is, where no rank was given.

    Args:
        base: folder or hub name of the model, on which the adapter will be loaded again.

    Raises:
        SepoError: the model has no such layers, or only kinds that peft cannot adapt.
    """
    if not config.lora_rank:
        return Trainee(model, None)
    from peft import LoraConfig, get_peft_model

    modules = config.lora_target_modules
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=0.0,
        target_modules=module_names(modules) if modules else "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adapter = get_peft_model(model, settings)
    except ValueError as error:
        raise SepoError(
            f"lora_target_modules {modules or 'all-linear'} does not fit {type(model).__name__}: {one_line(error)}",
            hint=f"its linear layers are {', '.join(_linear_names(model))}",
        ) from error
    # peft takes the name that the model was loaded by, and warns of any other.
    adapter.active_peft_config.base_model_name_or_path = base
    trained, every = adapter.get_nb_trainable_parameters()
    reporter.say(f"LoRA: {trained:,} weights of an adapter are trained, {every - trained:,} of the model are not")
    return Trainee(adapter.get_base_model(), adapter)


def trained_again(model: Any, folder: Path) -> Any:
    """The base with a finished adapter inside, as it was when its training ended."""
    return put_on(model, folder).model


def _merged(adapter: Any) -> Any:
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if not getattr(adapter.get_base_model(), "is_quantized", False):
        return adapter.merge_and_unload()
    # peft would add to weights of few bits, and round the sum to as few again.
    settings, weights = adapter.active_peft_config, get_peft_model_state_dict(adapter, save_embedding_layers=False)
    settings.base_model_name_or_path = None
    exact = get_peft_model(adapter.unload().dequantize(), settings)
    set_peft_model_state_dict(exact, weights)
    return exact.merge_and_unload()


def _linear_names(model: Any) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)})


def _is_linear(module: Any) -> bool:
    return isinstance(module, (torch.nn.Linear, Conv1D))
