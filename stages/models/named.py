"""Several models on one command line, each with a name of its own."""

from collections.abc import Iterable
from pathlib import Path

from stages.errors import SepoError
from stages.models.folders import resolve_model
from stages.reporting import Reporter


def named_models(items: Iterable[str], reporter: Reporter, *, taken: Iterable[str] = ()) -> dict[str, Path]:
    """``NAME=FOLDER`` or a plain folder, named by its last part, as name -> model folder; no name may be `taken`."""
    return {name: resolve_model(folder, reporter) for name, folder in split_names(items, taken=taken).items()}


def split_names(items: Iterable[str], *, taken: Iterable[str] = ()) -> dict[str, str]:
    """The same without looking at what they name, which a server may have."""
    names = set(taken)
    models: dict[str, str] = {}
    for item in items:
        name, model = _split(item)
        if not name:
            raise SepoError(f"the model {item!r} has no name", hint="give --model NAME=FOLDER, or the folder alone")
        if name in names:
            raise SepoError(f"two models are named {name!r}", hint="give each a name of its own: --model NAME=FOLDER")
        names.add(name)
        models[name] = model
    return models


def _split(item: str) -> tuple[str, str]:
    """Name and folder of ``NAME=FOLDER``, or of a folder alone."""
    name, equals, folder = item.partition("=")
    if equals and not Path(item).expanduser().exists():
        return name, folder
    return Path(item).expanduser().resolve().name if Path(item).exists() else Path(item).name, item
