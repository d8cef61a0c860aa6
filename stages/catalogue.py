"""Which objectives and selection rules there are, and their options: read from the source, so that nothing heavy loads.

A module of `stages.method.objectives` or `stages.method.rules` is one of them. Its name, with dashes for underscores,
is what the user types; its function of the same name has the options as keyword parameters, whose defaults are the
options' defaults; the first line of its docstring describes it. Constants in capitals say what else it needs:

    NEEDS        of "reference" (log-probs), "kl"; of a rule: "start_logps", "weights"
    SELECT       the objective's own selection rule, where that is not "all"
    DIVERGENCE   which way an objective's KL goes, where that is not "policy||reference"
    CHOSEN_ONLY  the rejected responses are left out
    VOIDS        options of selection rules that change nothing of an objective
"""

import ast
import difflib
import importlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

_METHOD: Final = Path(__file__).parent / "method"


class Entry(NamedTuple):
    """An objective or a rule, as its source describes it."""

    name: str
    module: str
    summary: str
    options: dict[str, Any]
    """option -> its default"""
    constants: dict[str, Any]
    """capitals -> value, such as ``{"NEEDS": ("reference",)}``"""

    @property
    def needs(self) -> tuple[str, ...]:
        """What it is given only if it asks for it: reference, kl; start_logps, weights."""
        return tuple(self.constants.get("NEEDS", ()))

    def load(self) -> Callable[..., Any]:
        """The function."""
        return getattr(importlib.import_module(self.module), self.module.rpartition(".")[2])  # type: ignore[no-any-return]


@cache
def objectives() -> dict[str, Entry]:
    """Every objective, by name."""
    return _entries("objectives")


@cache
def rules() -> dict[str, Entry]:
    """Every selection rule, by name."""
    return _entries("rules")


def defaults_in_words(option: str) -> str:
    """Who uses an option, and with which default: ``sepo, simpo 2.1; sepo-hinge 1.0``."""
    by_default: dict[Any, list[str]] = {}
    for name, entry in {**objectives(), **rules()}.items():
        if option in entry.options:
            by_default.setdefault(entry.options[option], []).append(name)
    return "; ".join(f"{', '.join(names)} {default}" for default, names in by_default.items())


def users(option: str) -> list[str]:
    """The objectives and rules that have an option."""
    return [name for name, entry in {**objectives(), **rules()}.items() if option in entry.options]


def measuring() -> list[str]:
    """The objectives that measure from a reference whatever their options."""
    return [name for name, entry in objectives().items() if "reference" in entry.needs]


def unknown(kind: str, name: str, entries: Mapping[str, Entry]) -> str:
    """The sentence for a name that nothing has, with the names that are near it."""
    near = difflib.get_close_matches(name, entries, n=3, cutoff=0.5)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    return f"{kind} must be one of {', '.join(entries)}, got {name!r}{meant}"


def _entries(package: str) -> dict[str, Entry]:
    paths = sorted(path for path in (_METHOD / package).glob("*.py") if not path.stem.startswith("_"))
    found = [_read(path, f"stages.method.{package}.{path.stem}") for path in paths]
    return {entry.name: entry for entry in found}


def _read(path: Path, module: str) -> Entry:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    [function] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == path.stem]
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return Entry(
        name=path.stem.replace("_", "-"),
        module=module,
        summary=(ast.get_docstring(function) or "").partition("\n")[0],
        options={argument.arg: ast.literal_eval(default) for argument, default in pairs if default is not None},
        constants={
            node.target.id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
        },
    )
