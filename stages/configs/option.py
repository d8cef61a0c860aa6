"""How an option is declared: once, as the annotated type of a field of a command's dataclass.

    learning_rate: Annotated[float, Option("Peak learning rate.", OPTIMISER, limit=limits.positive)] = 5e-7

The command line, the keys of ``--config`` files, `docs/cli.md`, the checks and the manifest are all read from there.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

from stages.configs.limits import Rule, too_large
from stages.errors import SepoError

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
    """What there is to say of a field beside its name, type and default."""

    help: str
    panel: str
    metavar: str | None = None
    limit: Rule | None = None
    """what its value has to be, where one is given"""
    content: bool = True
    """whether it decides what is made, and so enters the fingerprint; else only where or how fast"""
    flags: tuple[str, ...] = ()
    """how it is typed, where that is not ``--`` and the field's name; a name without dashes is an argument"""


class Declared(NamedTuple):
    """A field of a configuration with its option."""

    name: str
    kind: Any
    """such as ``int | None``"""
    option: Option
    default: Any
    required: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """How it is typed: ``--output-dir``; the first of several is the one to show."""
        return self.option.flags or ("--" + self.name.replace("_", "-"),)


def required(nothing: Any = None) -> Any:
    """A field that has to be given; `nothing` stands for "not given" until the command has said so."""
    return field(default=nothing, metadata={"required": True})


def declared(config_class: type[Any]) -> list[Declared]:
    """The options of a command, by panel."""
    hints = get_type_hints(config_class, include_extras=True)
    found = []
    for each in fields(config_class):
        kind, option = get_args(hints[each.name])
        found.append(Declared(each.name, kind, option, each.default, each.metadata.get("required", False)))
    return sorted(found, key=lambda one: PANELS.index(one.option.panel))


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
    """The options of one command. All faults are collected and raised together, before any model loads.

    Raises:
        SepoError: an option outside its limit, or options that do not go together.
    """

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
            value, limit = getattr(self, each.name), each.option.limit
            wanted = too_large(each.name, value)
            if limit and value is not None and not wanted and not limit[0](value):
                wanted = limit[1]
            if wanted:
                faults.append(f"{each.name} must be {wanted}, got {_shown(value)}")
        return faults

    def _faults(self) -> list[str]:
        """One sentence for each fault that is of no field alone."""
        return []
