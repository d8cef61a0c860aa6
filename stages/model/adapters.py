"""Models kept as an adapter beside a base model, as peft writes them (LoRA and its kin).

A folder with ``adapter_config.json`` and no ``config.json`` is such a model; the configuration names its base.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.errors import SepoError, borrowed
from stages.store.files import read_object, write_json

CONFIG: Final = "adapter_config.json"
_REMEDY: Final = "save the adapter again, or merge it into its base"
_BEFORE_THE_PROMPT: Final = ("PROMPT", "P_TUNING", "PREFIX", "CPT")
"""in the names of the kinds that put tokens of their own before a prompt; only peft's own forward reads those"""


_SETS: Final = ("target_modules", "exclude_modules")
_NOT_CONTENT: Final = ("base_model_name_or_path", "peft_version")


class Adapted(NamedTuple):
    """A base model with an adapter inside that can be switched off."""

    model: Any
    """the base model, whose layers now hold the adapter's"""
    without: Callable[[], AbstractContextManager[Any]]
    """while open, the model is its base alone"""


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def base_of(folder: Path) -> str:
    """The folder or hub name of an adapter's base.

    Raises:
        SepoError: the configuration cannot be read, names none, or is of a kind that cannot be read token by token.
    """
    config = read_object(folder / CONFIG, _REMEDY)
    name, kind = config.get("base_model_name_or_path"), str(config.get("peft_type"))
    if any(part in kind for part in _BEFORE_THE_PROMPT):
        raise SepoError(f"{folder} is an adapter of kind {kind}, which adds tokens to prompts", hint="use LoRA")
    if not isinstance(name, str) or not name:
        raise SepoError(f"{folder / CONFIG} names no base_model_name_or_path", hint=_REMEDY)
    return name if Path(name).expanduser().exists() else _beside(folder, name)


def base_name(name: str, folder: Path) -> str:
    """How an adapter names its base for good: a folder from the root, and a model of the hub as the hub does."""
    return str(folder.resolve()) if Path(name).expanduser().is_dir() else name


def content(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration says, but for where its base lies and who wrote it."""
    config = read_object(folder / CONFIG, _REMEDY)
    return {key: value for key, value in config.items() if key not in _NOT_CONTENT}


def save(adapter: Any, folder: Path) -> None:
    """Write an adapter as peft does, the same bytes in every process."""
    # What embeddings an adapter adds to are the base's: peft would look for them on the hub, and copy them.
    adapter.save_pretrained(folder, save_embedding_layers=False)
    # A card to be filled in; a policy has one that is.
    (folder / "README.md").unlink(missing_ok=True)
    config = read_object(folder / CONFIG, _REMEDY)
    # Sets, which every process lists in an order of its own.
    ordered = {key: sorted(value) if key in _SETS and value else value for key, value in config.items()}
    write_json(folder / CONFIG, ordered)


def put_on(base: Any, folder: Path) -> Adapted:
    """The base with the adapter of a folder inside.

    Raises:
        SepoError: peft is not installed, or the adapter is not of this base.
    """
    attached = _attached(base, folder)
    return Adapted(attached.get_base_model(), attached.disable_adapter)


def merge(base: Any, folder: Path) -> Any:
    """The base with the adapter's weights added to its own: an ordinary model."""
    return _attached(base, folder).merge_and_unload()


def _beside(folder: Path, name: str) -> str:
    """The folder of the base's name beside the adapter, if there is one: the two were moved together."""
    moved = folder.resolve().parent / Path(name).name
    return str(moved) if Path(name).is_absolute() and moved.is_dir() else name


def _attached(base: Any, folder: Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise SepoError(f"{folder} is an adapter, which needs peft", hint="pip install 'sepo[lora]'") from error
    with borrowed(f"the adapter {folder} does not fit its base", _REMEDY):
        return PeftModel.from_pretrained(base, folder)
