"""`--config FILE`: a YAML mapping of option names to values, checked key by key, with the line of every fault."""

import re
import reprlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Final, NamedTuple, get_args

import typer

from sepo_cli.spelling import canonical
from stages.errors import SepoError, borrowed

HINT: Final = "write one `option: value` a line, such as `seed: 42`"
_FILE_HINT: Final = "--config takes a YAML file"
_OPENED: Final = (Path("/dev/fd"), Path("/proc/self/fd"))
_LONGEST: Final = 1 << 16
"""bytes; a file of all options has three thousand"""
_DEEPEST: Final = 10
_MOST_FAULTS: Final = 10
"""that are told at once: another kind of file has one in every line"""
# YAML 1.1 takes 042 for 34 and 1:30 for 90. A sign, digits and _ between them are what everyone takes them for.
_PLAIN_WHOLE: Final = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)")


class Entry(NamedTuple):
    """One line of the file."""

    key: str
    value: Any
    line: int


class _Nested:
    """A value that no option takes."""

    def __repr__(self) -> str:
        return "a mapping, or a list in a list"


def accepted_names(context: typer.Context) -> dict[str, str]:
    """Canonical spelling -> field, for every option that a file may set: both `model` and `models` are `models`."""
    params = [param for param in context.command.params if param.name not in (None, "context", "config", "help")]
    return {canonical(spelling.lstrip("-")): str(p.name) for p in params for spelling in (*p.opts, str(p.name))}


def read_config_file(path: Path, kinds: dict[str, Any], names: dict[str, str], command: str) -> dict[str, Any]:
    """The settings of a file by field name, each of its field's type.

    Args:
        kinds: field -> type.
        names: canonical spelling -> field.
        command: for hints, such as ``score``.

    Raises:
        SepoError: the file cannot be read, is no mapping, or holds an unknown key, a key twice or a wrong type.
    """
    settings: dict[str, Any] = {}
    faults: list[SepoError] = []
    for entry in _entries(path):
        if len(faults) == _MOST_FAULTS:
            break
        field = names.get(canonical(entry.key))
        try:
            if field is None:
                raise _unknown(path, entry, names, command)
            if field in settings:
                raise SepoError(f"{path}:{entry.line}: {entry.key} is given twice", hint="keep one of the two")
            settings[field] = _converted(path, entry, kinds[field])
        except SepoError as fault:
            faults.append(fault)
    if faults:
        raise SepoError("; ".join(fault.message for fault in faults), hint=faults[0].hint)
    return settings


def _entries(path: Path) -> list[Entry]:
    # Only a run with --config pays for the import.
    import yaml

    text = _text(path)
    try:
        _refuse_deep(yaml.parse(text, yaml.SafeLoader), path)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise SepoError(f"{path} is not a mapping of option names to values", hint=HINT)
        return [_entry(path, loader, key, value) for key, value in root.value]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        raise SepoError(f"{where}: not valid YAML: {problem}", hint=HINT) from None


def _refuse_deep(events: Iterator[Any], path: Path) -> None:
    """The rest of the file is not looked at: YAML takes hours for brackets in brackets, where the stack has room."""
    from yaml import CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST:
            where = f"{path}:{event.start_mark.line + 1}"
            raise SepoError(f"{where}: lists and mappings are nested more than {_DEEPEST} deep", hint=HINT)


def _entry(path: Path, loader: Any, key: Any, value: Any) -> Entry:
    """A line of the file. Nothing is made of a value before its shape is known: what an alias repeats has no end."""
    from yaml import ScalarNode, SequenceNode

    line = key.start_mark.line + 1
    if not isinstance(key, ScalarNode):
        raise SepoError(f"{path}:{line}: a key has to be a single word", hint=HINT)
    scalars = value.value if isinstance(value, SequenceNode) else [value]
    if not all(isinstance(scalar, ScalarNode) for scalar in scalars):
        return Entry(key.value, _Nested(), line)
    for scalar in scalars:
        if scalar.tag.endswith(":int") and scalar.style is None and not _PLAIN_WHOLE.fullmatch(scalar.value):
            raise SepoError(
                f"{path}:{line}: {key.value} is {scalar.value}, which YAML takes for another number",
                hint="write it without a leading zero or colons, or put quotes around text",
            )
    # A scalar that looks like a date or a number and is none, such as 2024-99-99.
    with borrowed(f"{path}:{line}: not valid YAML", "put quotes around text"):
        return Entry(key.value, loader.construct_object(value, deep=True), line)


def _text(path: Path) -> str:
    try:
        # What a shell writes for <(...) is open already; any other pipe or device might be waited for without an end.
        if not path.is_file() and path.exists() and path.parent not in _OPENED:
            raise SepoError(f"cannot read {path}: not a regular file", hint=_FILE_HINT)
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise SepoError(f"{path} has more than {_LONGEST:,} bytes", hint=_FILE_HINT)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise SepoError(f"there is no configuration file {path}", hint=_FILE_HINT) from None
    except OSError as error:
        raise SepoError(f"cannot read {path}: {error.strerror}", hint=_FILE_HINT) from None
    except UnicodeDecodeError:
        raise SepoError(f"{path} is not UTF-8 text", hint=_FILE_HINT) from None


def _unknown(path: Path, entry: Entry, names: dict[str, str], command: str) -> SepoError:
    near = get_close_matches(canonical(entry.key), names, n=1)
    guess = f"did you mean {names[near[0]]}? " if near else ""
    return SepoError(
        f"{path}:{entry.line}: unknown key {entry.key}",
        hint=f"{guess}`sepo {command} --help` lists every option, and each is a key",
    )


def _converted(path: Path, entry: Entry, kind: Any) -> Any:
    """The value as the field's type; quoted numbers are numbers, and so is 1e-5, which YAML 1.1 calls a text."""
    optional = NoneType in get_args(kind)
    if entry.value is None and optional:
        return None
    wanted, convert = _CONVERTERS[plain(kind)]
    try:
        return convert(entry.value)
    except (TypeError, ValueError, OverflowError):
        raise SepoError(
            f"{path}:{entry.line}: {entry.key} takes {wanted}, got {_shown(entry.value)}",
            hint=f"write {entry.key}: {_EXAMPLES[plain(kind)]}",
        ) from None


def plain(kind: Any) -> type:
    """`str` of `str | None`, `tuple` of `tuple[str, ...]`."""
    if getattr(kind, "__origin__", None) is tuple:
        return tuple
    plain: type = next((part for part in get_args(kind) if part is not NoneType), kind)
    return plain


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise TypeError
    return int(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _several(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (str, list)):
        raise TypeError
    return tuple(_words(item) for item in ([value] if isinstance(value, str) else value))


def _shown(value: Any) -> str:
    """A value as a file spells it."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)


_CONVERTERS = {
    float: ("a number", _number),
    int: ("a whole number", _whole),
    bool: ("true or false", _switch),
    str: ("a text", _words),
    tuple: ("a list of texts", _several),
}
_EXAMPLES = {float: "0.1", int: "8", bool: "true", str: '"text" in quotes', tuple: '["name=folder"]'}
