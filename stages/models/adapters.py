"""Models kept as an adapter beside a base model, as peft writes them (LoRA and its kin).

A folder with ``adapter_config.json`` and no ``config.json`` is such a model; the configuration names its base.

What peft makes of a base and an adapter is believed only where the trial (`stages.logprobs.trial`) or the names of the
weights say so: adapters of some kinds change the base itself, some cannot be merged, and weights whose names do not fit
are left out with a warning.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from stages.devices.parts import waits
from stages.devices.placement import input_device
from stages.errors import SepoError, borrowed
from stages.logprobs.trial import agree, trial_logps
from stages.store.files import read_object, write_json
from stages.store.protect import base_of_adapter
from stages.types import CausalLM

CONFIG: Final = "adapter_config.json"
_REMEDY: Final = "save the adapter again, or merge it into its base"
_BEFORE_THE_PROMPT: Final = ("PROMPT", "P_TUNING", "PREFIX", "CPT", "CARTRIDGE")
"""in the names of the kinds that put tokens of their own before a prompt; only peft's own forward knows those"""
_ROWS: Final = 4096
"""of an embedding that are looked at together"""
_SETS: Final = ("target_modules", "exclude_modules")
_NOT_CONTENT: Final = ("base_model_name_or_path", "peft_version")


class Adapted(NamedTuple):
    """A base model with an adapter inside."""

    model: CausalLM
    """the base model, whose layers now hold the adapter's"""
    without: Callable[[], AbstractContextManager[Any]] | None
    """while open, the model is its base alone; None where the adapter changed the base itself, or nobody could try"""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; a model beside it, in whose stead its base would be loaded, is refused."""
    adapter = (folder / CONFIG).is_file()
    if adapter and (folder / "config.json").exists():
        raise SepoError(
            f"{folder} holds a model (config.json) and an adapter ({CONFIG})", hint="move one of them to another folder"
        )
    return adapter


def base_of(folder: Path) -> str:
    """The folder or hub name of an adapter's base; kinds whose log-probs cannot be had token by token are refused."""
    config = read_object(folder / CONFIG, _REMEDY)
    kind = str(config.get("peft_type"))
    if any(part in kind for part in _BEFORE_THE_PROMPT):
        raise SepoError(f"{folder} is an adapter of kind {kind}, which adds tokens to prompts", hint="use LoRA")
    if str(config.get("init_lora_weights")).startswith("pissa_niter"):
        # What is left of the base beside it is found by chance, and another time it is another.
        raise SepoError(
            f"{folder} is an adapter of PiSSA by a fast SVD, another model each time it is loaded",
            hint="convert it to LoRA with peft's path_initial_model_for_weight_conversion",
        )
    if config.get("alora_invocation_tokens"):
        # The trial holds none of them, and layers that are called by themselves are never told where they stand.
        raise SepoError(f"{folder} is an adapter that works only behind invocation tokens (aLoRA)", hint="use LoRA")
    name = base_of_adapter(folder)
    if name is None:
        raise SepoError(f"{folder / CONFIG} names no base_model_name_or_path", hint=_REMEDY)
    revision = config.get("revision")
    return f"{name}@{revision}" if revision and isinstance(revision, str) and not Path(name).exists() else name


def base_name(name: str, folder: Path) -> str:
    """How an adapter names its base for good: a folder from the root, and a model of the hub as the hub does."""
    return str(folder.resolve()) if Path(name).expanduser().is_dir() else name


def content(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration says, but for where its base lies and who wrote it."""
    config = read_object(folder / CONFIG, _REMEDY)
    return {key: value for key, value in config.items() if key not in _NOT_CONTENT}


def save(adapter: Any, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write an adapter as peft does, the same bytes in every process.

    Args:
        weights: by name, where the adapter itself holds only a part of them here.
    """
    # What embeddings an adapter adds to are the base's: peft would look for them on the hub, and copy them.
    adapter.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    # A card to be filled in; a policy has one that is.
    (folder / "README.md").unlink(missing_ok=True)
    config = read_object(folder / CONFIG, _REMEDY)
    # Sets, which every process lists in an order of its own.
    ordered = {key: sorted(value) if key in _SETS and value else value for key, value in config.items()}
    write_json(folder / CONFIG, ordered)


def put_on(base: CausalLM, folder: Path) -> Adapted:
    """The base with the adapter of a folder inside."""
    if waits(base):
        return Adapted(attach(base, folder).get_base_model(), None)
    before = _signature(base)
    attached = attach(base, folder)
    with attached.disable_adapter():
        same = torch.equal(_signature(attached.get_base_model()), before)
    return Adapted(attached.get_base_model(), attached.disable_adapter if same else None)


def merge(base: CausalLM, folder: Path) -> Any:
    """The base with the adapter's weights added to its own, an ordinary model; None where that is another model.

    Some kinds cannot be merged; a layer that shares its weights, as a head with the embedding, would change both; and
    weights in few bits would be rounded again.
    """
    attached = attach(base, folder)
    expected_N = trial_logps(attached.get_base_model())
    try:
        merged = attached.merge_and_unload()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # Merging that was never written for a kind may fail in any way.
        return None
    return merged if agree(trial_logps(merged), expected_N, merged.dtype) else None


def tied_target(adapter: Any) -> str | None:
    """The first layer with an adapter whose own weights are another layer's too, such as a head's."""
    names = Counter(id(weight) for _, weight in adapter.named_parameters(remove_duplicate=False))
    for name, module in adapter.named_modules():
        own = module.base_layer.parameters() if hasattr(module, "base_layer") else ()
        if any(names[id(weight)] > 1 for weight in own):
            return str(name).removeprefix("base_model.model.")
    return None


@torch.no_grad()
def _signature(model: CausalLM) -> Tensor:
    """What tells a model from one with other weights to the bit: the trial, and every row of the embedding."""
    embedding = model.get_input_embeddings()
    ids_V = torch.arange(embedding.weight.shape[0], device=input_device(model))
    rows_V = [embedding(ids).sum(-1, dtype=torch.float32) for ids in torch.split(ids_V, _ROWS)]
    return torch.cat([trial_logps(model), *rows_V])


def attach(base: CausalLM, folder: Path) -> Any:
    """peft's wrapper around the base with the adapter of a folder inside; one that does not fit is refused."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise SepoError(f"{folder} is an adapter, which needs peft", hint="pip install 'sepo[lora]'") from error
    fault = f"the adapter {folder} does not fit its base"
    with borrowed(fault, _REMEDY), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Of what is refused below, and of tied weights that are not merged.
        warnings.simplefilter("ignore")
        # Some kinds are begun by chance each time they are loaded: it has to be the same chance.
        torch.manual_seed(0)
        attached = PeftModel.from_pretrained(base, folder)
        # The second time only the weights are read, and what did not fit is told.
        found = attached.load_adapter(folder, attached.active_adapter)
    _refuse_unread(attached, found, folder)
    inner = attached.get_base_model()
    if waits(inner):
        # Its numbers are not here to be tried.
        return attached
    with borrowed(f"the adapter {folder} cannot be read token by token", "use LoRA"):
        whole_N, inner_N = trial_logps(attached), trial_logps(inner)
    if not agree(inner_N, whole_N, inner.dtype):
        raise SepoError(f"the adapter {folder} works outside of its base's layers", hint="use LoRA")
    return attached


def _refuse_unread(attached: Any, found: Any, folder: Path) -> None:
    """Refuse weights of the file that no layer took, and layers that found none in it."""
    state = attached.state_dict()
    # A weight that several layers share is in the file once.
    read = {weight.data_ptr() for name, weight in state.items() if name not in found.missing_keys}
    missing = [name for name in found.missing_keys if state[name].data_ptr() not in read]
    for names, fault in ((found.unexpected_keys, "holds weights that its base has no place for"), (missing, "lacks")):
        if names:
            raise SepoError(
                f"the adapter {folder} {fault}: {len(names):,}, such as {sorted(names)[0]}",
                hint="save it again from the model as it was before it was wrapped or compiled, or merge it there",
            )
