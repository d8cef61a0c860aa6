"""How an option is declared: once, as the annotated type of a field of a command's dataclass, its help below it.

    learning_rate: Annotated[float, Option(OPTIMISER, limit=limits.positive)] = 5e-7
    \"\"\"Peak learning rate.\"\"\"

The command line, the keys of ``--config`` files, `docs/cli.md`, the checks and the manifest are all read from there.
"""

import ast
import inspect
import reprlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

from stages.configs.limits import Limit, no_text, too_large
from stages.errors import SepoError
from stages.registry import defaults_in_words, users

REQUIRED: Final = "Required"
DATA: Final = "Data"
REFERENCE: Final = "Reference (supervised fine-tuning)"
METHOD: Final = "Method"
OPTIMISER: Final = "Optimiser"
LORA: Final = "LoRA and QLoRA"
MEMORY: Final = "Memory, precision and speed"
OUTPUT: Final = "Output and reruns"
PANELS: Final = (REQUIRED, DATA, REFERENCE, METHOD, OPTIMISER, LORA, MEMORY, OUTPUT)
"""in the order of ``--help``"""


class Option(NamedTuple):
    """What there is to say of a field beside its name, type, default and help."""

    panel: str
    metavar: str | None = None
    """in place of `choices`, where they are too many"""
    choices: tuple[str, ...] = ()
    """all that it may be"""
    limit: Limit | None = None
    """what its value has to be, where one is given"""
    content: bool = True
    """whether it decides what is made, and so enters the fingerprint; else only where or how fast"""
    flags: tuple[str, ...] = ()
    """how it is typed, where that is not ``--`` and the field's name"""
    help: str = ""
    """of a type that several commands share; else it stands below the field"""


class Declared(NamedTuple):
    """A field of a configuration with its option."""

    name: str
    kind: Any
    """such as ``int | None``"""
    option: Option
    default: Any
    required: bool
    help: str

    @property
    def metavar(self) -> str | None:
        return self.option.metavar or "|".join(self.option.choices) or None

    @property
    def flags(self) -> tuple[str, ...]:
        """How it is typed: ``--output-dir``; the first of several is the one to show."""
        return self.option.flags or ("--" + self.name.replace("_", "-"),)


def required(nothing: Any = None) -> Any:
    """A field that has to be given; `nothing` stands for "not given" until the command has said so."""
    return field(default=nothing, metadata={"required": True})


_DECLARED: Final[dict[type[Any], list[Declared]]] = {}


def declared(config_class: type[Any]) -> list[Declared]:
    """The options of a command, by panel; read once a process."""
    if config_class not in _DECLARED:
        _DECLARED[config_class] = sorted(_fields(config_class), key=lambda one: PANELS.index(one.option.panel))
    return _DECLARED[config_class]


def _fields(config_class: type[Any]) -> Iterator[Declared]:
    hints, below = get_type_hints(config_class, include_extras=True), _docstrings(config_class)
    for each in fields(config_class):
        kind, option = get_args(hints[each.name])
        text = option.help or below[each.name]
        if option.metavar and option.choices:
            text += f" One of {', '.join(option.choices)}."
        if users(each.name) and kind is bool:
            text += f" For {', '.join(users(each.name))}."
        elif users(each.name) and each.default is None:
            # Each objective and rule has a default of its own.
            text += f" Default: {defaults_in_words(each.name)}."
        yield Declared(each.name, kind, option, each.default, each.metadata.get("required", False), text)


def _docstrings(config_class: type[Any]) -> dict[str, str]:
    """The strings below the fields of a dataclass and of those it inherits from, by field; Python itself drops them."""
    found = {}
    for each in reversed(config_class.__mro__[:-1]):
        for statement, following in pairwise(_bodies(each.__module__)[each.__name__]):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


@cache
def _bodies(module: str) -> dict[str, list[ast.stmt]]:
    """The statements of each class of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def content_settings(config: Any) -> dict[str, Any]:
    """The settings that decide what a stage makes, by field name."""
    return {name: getattr(config, name) for name in content_defaults(type(config))}


def content_defaults(config_class: type[Any]) -> dict[str, Any]:
    """What those settings are where nobody gives them."""
    options = {one.name: one for one in declared(config_class) if one.option.content}
    return {each.name: options[each.name].default for each in fields(config_class) if each.name in options}


def is_several(kind: Any) -> bool:
    """Whether an option may be given more than once."""
    return get_origin(kind) is tuple


def _shown(value: Any) -> str:
    """Python writes no number of thousands of digits."""
    return "a longer number" if isinstance(value, int) and value.bit_length() > 99 else reprlib.repr(value)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of one command. All faults are collected and raised together, before any model loads."""

    @classmethod
    def missing(cls, given: Mapping[str, Any]) -> list[str]:
        """What a command cannot run without and was not given, as it is typed. 0 is a value, if perhaps a wrong one."""
        return [each.flags[0] for each in declared(cls) if each.required and given[each.name] in (None, "", ())]

    def __post_init__(self) -> None:
        faults = self._limit_faults() or self._faults()
        if faults:
            raise SepoError("; ".join(faults), hint="nothing was started and nothing was written")

    def _limit_faults(self) -> list[str]:
        """One sentence for each field that is outside its limit."""
        faults = []
        for each in declared(type(self)):
            value, option = getattr(self, each.name), each.option
            wanted = too_large(each.name, value)
            if value is None or wanted:
                pass
            elif option.choices and value not in option.choices:
                wanted = f"one of {', '.join(option.choices)}"
            elif option.limit and not option.limit[0](value):
                wanted = option.limit[1]
            wanted = wanted or no_text(value)
            if wanted:
                faults.append(f"{each.name} must be {wanted}, got {_shown(value)}")
        return faults

    def _faults(self) -> list[str]:
        """One sentence for each fault that is of no field alone."""
        return []
