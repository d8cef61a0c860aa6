"""Model folders in and out: finding, checking, hashing, loading, saving."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, Final, Literal

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from stages.compat import BITSANDBYTES_LOGGER
from stages.devices.parts import let_wait
from stages.errors import SepoError, borrowed
from stages.models.adapters import CONFIG as ADAPTER
from stages.models.adapters import base_of, content, is_adapter, merge, put_on
from stages.models.adapters import save as save_adapter
from stages.models.fit import (
    REMEDY,
    dtype_of_files,
    refuse_impossible_depth,
    refuse_leading_out,
    refuse_other_weights,
    refuse_unfit,
    weight_files,
)
from stages.reporting import Quiet, Reporter
from stages.store.files import hash_files, hash_json, read_object, whole_folder
from stages.store.manifest import refuse_altered
from stages.types import CausalLM, Tokenizer

HUB_NAME: Final = re.compile(r"^[\w.-]+(/[\w.-]+)?(@[\w./-]+)?$")
"""with a revision, perhaps"""
_LOAD_REMEDY: Final = f"{REMEDY}; a model with code of its own needs --trust-remote-code"
MOST_IDS: Final = 1 << 24
"""of a tokenizer; it is written by counting up to the last one, and ids beyond have no embedding in any model"""
_DESCRIPTION: Final = ["*.json", "*.jinja", "*.txt", "*.model", "*.py"]

Weights = dict[str, torch.Tensor] | None
"""of a model by name, as `stages.devices.engines.gather_weights` gives them"""


def resolve_model(name: str, reporter: Reporter, above: tuple[Path, ...] = ()) -> Path:
    """The folder of a model, perhaps the base of adapters `above`: local as it is, or a hub name, downloaded once.

    Only safetensors weights are downloaded, unless the repository has none. What is no model folder, or has no weights
    of its own, is a `SepoError`.
    """
    folder = _resolved(name, _download, reporter, above)
    if not weight_files(folder):
        raise SepoError(f"{name} has no weights (*.safetensors or pytorch_model*.bin)", hint=REMEDY)
    for index in folder.glob("*.index.json"):
        refuse_leading_out(index)
    if not is_adapter(folder):
        refuse_unfit(folder, read_object(folder / "config.json", REMEDY))
    return folder


def resolve_without_weights(name: str, reporter: Reporter) -> Path:
    """The folder of a model's configuration and tokenizer; its weights may be missing, and are not downloaded."""
    return _resolved(name, lambda name: _fetched(name, _DESCRIPTION), reporter)


def holds_model(folder: Path) -> bool:
    """Whether a folder has a configuration and weights, of a model or of an adapter."""
    return (is_adapter(folder) or (folder / "config.json").exists()) and bool(weight_files(folder))


def model_hash(folder: Path) -> str:
    """Hash of what decides a model's outputs: configuration, weights, its own code; for an adapter, also its base."""
    refuse_altered(folder)
    if is_adapter(folder):
        adapter = _by_name(weight_files(folder))
        return hash_json({"adapter": adapter, "config": content(folder), "base": model_hash(base_folder(folder))})
    config = read_object(folder / "config.json", REMEDY)
    # Written by whichever version saved the folder; says nothing about the model.
    config.pop("transformers_version", None)
    config.pop("_name_or_path", None)
    parts = {"config": config, "weights": _by_name(weight_files(folder))}
    if "auto_map" in config:
        parts["code"] = _by_name(folder.glob("*.py"))
    return hash_json(parts)


def _by_name(paths: Iterable[Path]) -> dict[str, str]:
    """Of each file its hash."""
    return {path.name: found for path, found in hash_files(paths).items()}


def base_folder(folder: Path) -> Path:
    """Where the base of an adapter lies."""
    return resolve_model(base_of(folder), Quiet())


def described_in(folder: Path) -> Path:
    """Where a model's configuration is: of an adapter, in its base."""
    while is_adapter(folder):
        folder = base_folder(folder)
    return folder


def load_tokenizer(folder: Path, *, trust_remote_code: bool, reporter: Reporter | None = None) -> Tokenizer:
    """The tokenizer of a model folder, with its chat template if it has one; `reporter` hears what is wrong with it."""
    if is_adapter(folder) and not (folder / "tokenizer_config.json").exists():
        folder = base_folder(folder)
    with _warnings_kept() as kept, borrowed(f"{folder} holds no tokenizer that transformers can load", _LOAD_REMEDY):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        # Some that can be loaded fail on whatever they are given.
        tokenizer("a text", verbose=False)
        last = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= last < MOST_IDS:
        raise SepoError(f"{folder}: the tokenizer's last id is {last:,}; it must be in [0, {MOST_IDS:,})", hint=REMEDY)
    for text in dict.fromkeys(" ".join(record.getMessage().split()) for record in kept.buffer):
        (reporter or Quiet()).warn(f"the tokenizer of {folder}: {text}")
    return tokenizer


@contextmanager
def _warnings_kept() -> Iterator[BufferingHandler]:
    """What transformers warns of in the block, such as that ids will be wrong: kept, whatever its verbosity is."""
    logger, kept = logging.getLogger("transformers"), BufferingHandler(capacity=1000)
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [kept], False
    try:
        yield kept
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


def load_config(folder: Path, *, trust_remote_code: bool) -> Any:
    """A model's configuration; what is no causal language model is refused."""
    with borrowed(f"cannot load {folder} as a causal language model", _LOAD_REMEDY):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        described = config.to_dict()
    refuse_unfit(folder, described)
    return config


def load_model(
    folder: Path,
    *,
    trust_remote_code: bool,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    change: Callable[[Any], Any] | None = None,
    held: dict[str, Any] | None = None,
    ordinary: bool = False,
) -> CausalLM:
    """A causal language model without dropout, every weight of it read from the folder.

    An adapter is merged; where that would give another model it stays beside its base's weights. Weights that do not
    fill the model (transformers would draw the rest by chance) and those that it does not take are refused.

    Args:
        dtype: "auto" takes that of the weights.
        change: of the configuration, before the model is built from it: the folder may hold more layers than it takes.
        held: more of `from_pretrained`: where, and in how many bits, weights are held (`stages.models.quantization`).
        ordinary: it will be trained or saved as a model, which no adapter may be left in.
    """
    if is_adapter(folder):
        load_base = partial(load_model, base_folder(folder), trust_remote_code=trust_remote_code, dtype=dtype)
        return _load_adapter(folder, partial(load_base, ordinary=True), ordinary=ordinary)
    config = load_config(folder, trust_remote_code=trust_remote_code)
    config = change(config) if change else config
    _disable_dropout(config)
    model: CausalLM
    with borrowed(f"cannot load {folder} as a causal language model", _LOAD_REMEDY):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            weights_only=True,
            output_loading_info=True,
            # Which ones they are is said below.
            ignore_mismatched_sizes=True,
            **(held or {}),
        )
    refuse_other_weights(folder, type(model).__name__, info, cut=change is not None)
    _tell_untied(model)
    if dtype == torch.float32:
        _compute_in_float32(model)
    return model


def load_waiting(folder: Path, *, trust_remote_code: bool) -> CausalLM:
    """A model whose weights wait to be divided (`stages.devices.parts`): their files are mapped, and not read.

    An adapter is merged in each process's memory first.
    """
    dtype = torch.float32 if is_adapter(folder) else dtype_of_files(folder)
    model: Any = load_model(folder, trust_remote_code=trust_remote_code, dtype=dtype, ordinary=True)
    if model.dtype != torch.float32:
        # What a model computes of its configuration, it rounds to the type that it is loaded in.
        with init_empty_weights(include_buffers=False):
            exact: Any = AutoModelForCausalLM.from_config(
                model.config, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
        saved, computed = model.state_dict(), dict(exact.named_buffers())
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.float() if name in saved else computed[name]
    let_wait(model, dict(model.named_parameters(remove_duplicate=False)))
    waiting: CausalLM = model
    return waiting


def load_without_weights(folder: Path, *, trust_remote_code: bool) -> CausalLM:
    """The model that a configuration describes, on the meta device: shapes without numbers."""
    config = load_config(folder, trust_remote_code=trust_remote_code)
    _disable_dropout(config)
    with borrowed(f"{folder}/config.json describes no causal language model", REMEDY), torch.device("meta"):
        model: CausalLM = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    return model


def _load_adapter(folder: Path, load_base: Callable[[], CausalLM], *, ordinary: bool) -> CausalLM:
    merged = merge(load_base(), folder)
    if merged is None and ordinary:
        raise SepoError(
            f"{folder} is an adapter that cannot be merged: its base with its weights added is another model",
            hint="start from its base, or from a model that has no adapter",
        )
    return put_on(load_base(), folder).model if merged is None else merged


def save_model(model: CausalLM, tokenizer: Tokenizer, folder: Path, weights: Weights = None) -> None:
    """Write an ordinary save_pretrained folder with tokenizer and chat template, whole or not at all.

    Of peft's wrapper the adapter alone is written; `weights` are those of a model that holds only a part of them here.
    """
    with whole_folder(folder) as temporary:
        _write(model, tokenizer, temporary, weights)


def save_model_into(
    model: CausalLM,
    tokenizer: Tokenizer,
    folder: Path,
    weights: Weights = None,
    *,
    promise: Callable[[list[str]], None],
) -> list[str]:
    """The same into a folder that holds other files too; returns the names written, as it first gave to `promise`."""
    with whole_folder(folder / ".model") as temporary:
        _write(model, tokenizer, temporary, weights)
        names = sorted(path.name for path in temporary.iterdir())
        promise(names)
        for name in names:
            os.replace(temporary / name, folder / name)
    (folder / ".model").rmdir()
    return names


def embedding_rows(model: CausalLM) -> int:
    """How many ids the model has an embedding for; may exceed the tokenizer's."""
    return int(model.get_input_embeddings().weight.shape[0])


def most_positions(*folders: Path, trust_remote_code: bool) -> int | None:
    """The longest row that all of some models were made for, as their configurations tell; None where none does."""
    configs = [load_config(described_in(folder), trust_remote_code=trust_remote_code) for folder in folders]
    told = [getattr(config.get_text_config(), "max_position_embeddings", None) for config in configs]
    return min((positions for positions in told if positions is not None), default=None)


def usable_length(folders: Iterable[Path], max_length: int, *, trust_remote_code: bool, reporter: Reporter) -> int:
    """`max_length`, or fewer tokens where one of these models has fewer positions, which is said."""
    usable = min(max_length, most_positions(*folders, trust_remote_code=trust_remote_code) or max_length)
    if usable < max_length:
        reporter.say(f"max_length {max_length:,} is taken as {usable:,}: the model has no more positions")
    return usable


def _write(model: CausalLM, tokenizer: Tokenizer, folder: Path, weights: Weights) -> None:
    with borrowed(f"cannot write {folder.parent}", "free the space, or use another folder; then run the same again"):
        if hasattr(model, "get_base_model"):
            save_adapter(model, folder, weights)
        else:
            model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


def _resolved(name: str, download: Callable[[str], Path], reporter: Reporter, above: tuple[Path, ...] = ()) -> Path:
    folder, (before, _, revision) = Path(name).expanduser(), name.partition("@")
    if revision and not folder.exists() and Path(before).expanduser().exists():
        raise SepoError(f"{before} is a folder here, which has no revision {revision}", hint="give its name alone")
    if not folder.exists() and HUB_NAME.match(name) and not name.startswith("."):
        reporter.say(f"{name} is no folder here: taking it from the Hugging Face hub")
        folder = download(name)
    if not folder.is_dir():
        raise SepoError(f"there is no model folder {name}", hint=REMEDY)
    if is_adapter(folder):
        if folder.resolve() in above:
            raise SepoError(f"the adapter {folder} is in the end its own base", hint=f"name a model in its {ADAPTER}")
        resolve_model(base_of(folder), reporter, above=(*above, folder.resolve()))
    elif not (folder / "config.json").exists():
        oracle, reference = folder / "oracle", folder / "reference"
        made_both = oracle.is_dir() and (reference / "config.json").exists()
        hint = f"it is a folder of `sepo train-oracle`: give {oracle} or {reference}" if made_both else REMEDY
        raise SepoError(f"{name} is no model folder: it has no config.json", hint=hint)
    else:
        refuse_impossible_depth(folder, read_object(folder / "config.json", REMEDY))
    return folder


def _download(name: str) -> Path:
    folder = _fetched(name, [*_DESCRIPTION, "*.safetensors"])
    return folder if weight_files(folder) else _fetched(name, [*_DESCRIPTION, "pytorch_model*.bin"])


def _fetched(name: str, patterns: list[str]) -> Path:
    repository, _, revision = name.partition("@")
    with borrowed(f"there is no folder {name}, and the hub did not give it", REMEDY):
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))


def _compute_in_float32(model: CausalLM) -> None:
    """The products with weights of bitsandbytes too, as far as it can: log-probs are compared."""
    logging.getLogger(BITSANDBYTES_LOGGER).setLevel(logging.ERROR)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On a CPU that can, evaluation would round the constants to bfloat16, for training too.
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = torch.float32


def _tell_untied(model: CausalLM) -> None:
    """Let the configuration say that embeddings and head are two matrices where the weights have two that differ."""
    head = getattr(model.get_output_embeddings(), "weight", None)
    tied = getattr(model.config, "tie_word_embeddings", False)
    if tied and head is not None and head is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False


def _disable_dropout(config: Any) -> None:
    """Preference losses compare log-probs; dropout would add its own noise to each of them."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _disable_dropout(value)
        elif isinstance(value, float) and "drop" in name:
            setattr(config, name, 0.0)
