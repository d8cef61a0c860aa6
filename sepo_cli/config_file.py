"""`--config FILE`: a YAML mapping of option names to values, which click takes as its defaults: a flag beats the file.

A value means what the same text means behind its flag, whatever YAML would make of it: `no` is a text where a text is
wanted, and 1e-5 a number.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NamedTuple

import typer

from sepo_cli.spelling import canonical
from stages.errors import SepoError, shortened

HINT: Final = "write one `option: value` a line, such as `seed: 42`"
_FILE_HINT: Final = "--config takes a YAML file"
_OPENED: Final = (Path("/dev/fd"), Path("/proc/self/fd"))
_LONGEST: Final = 1 << 16
"""bytes; a file of all options has three thousand"""
_MOST_FAULTS: Final = 10
"""that are told at once: another kind of file has one in every line"""
# YAML 1.1 takes 042 for 34 and 1:30 for 90: whoever writes them may mean either.
_PLAIN_WHOLE: Final = re.compile(r"[-+]?(0|[1-9][0-9_]*)")


class Entry(NamedTuple):
    """One line of the file: the nodes of a key and its value, of which nothing was made yet."""

    where: str
    key: str
    node: Any


def use_config_file(context: typer.Context, path: Path | None) -> Path | None:
    """The callback of `--config`, called before all other options are looked at."""
    if path is not None:
        context.default_map = _settings(path, context)
    return path


def _settings(path: Path, context: typer.Context) -> dict[str, Any]:
    params = [param for param in context.command.params if param.name not in ("config", "help")]
    names = {canonical(name.lstrip("-")): param for param in params for name in (*param.opts, str(param.name))}
    settings: dict[str, Any] = {}
    faults: list[SepoError] = []
    for entry in _entries(path):
        try:
            param = names.get(canonical(entry.key))
            if param is None:
                raise _unknown(entry, {name: str(each.name) for name, each in names.items()}, context)
            if param.name in settings:
                raise SepoError(f"{entry.where}: {entry.key} is given twice", hint="keep one of the two")
            settings[str(param.name)] = _value(entry, param, context)
        except SepoError as fault:
            faults.append(fault)
    if faults:
        raise SepoError("; ".join(fault.message for fault in faults[:_MOST_FAULTS]), hint=faults[0].hint)
    return settings


def _entries(path: Path) -> Iterator[Entry]:
    # Only a run with --config pays for the import.
    import yaml

    try:
        root = yaml.compose(_text(path), yaml.SafeLoader)
    except RecursionError:
        raise SepoError(f"{path}: lists and mappings are nested too deep", hint=HINT) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        raise SepoError(f"{where}: not valid YAML: {problem}", hint=HINT) from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise SepoError(f"{path} is not a mapping of option names to values", hint=HINT)
    for key, value in root.value if root else []:
        where = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise SepoError(f"{where}: a key has to be a single word", hint=HINT)
        yield Entry(where, key.value, value)


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


def _unknown(entry: Entry, names: dict[str, str], context: typer.Context) -> SepoError:
    near = get_close_matches(canonical(entry.key), names, n=1)
    guess = f"did you mean {names[near[0]]}? " if near else ""
    return SepoError(
        f"{entry.where}: unknown key {shortened(entry.key)}",
        hint=f"{guess}`sepo {context.info_name} --help` lists every option, and each is a key",
    )


def _value(entry: Entry, param: Any, context: typer.Context) -> Any:
    """A line's value, of its option's type as click makes it of a flag's text; None where there is none."""
    node = entry.node
    nodes = node.value if node.id == "sequence" else [node]
    several = getattr(param, "multiple", False)  # which an argument has not
    if any(each.id != "scalar" for each in nodes) or (node.id == "sequence" and not several):
        raise SepoError(f"{entry.where}: {entry.key} takes no list or mapping of this kind", hint=HINT)
    for each in nodes:
        if each.tag.endswith(":int") and each.style is None and not _PLAIN_WHOLE.fullmatch(each.value):
            raise SepoError(
                f"{entry.where}: {entry.key} is {shortened(each.value)}, which YAML takes for another number",
                hint="write it without a leading zero or colons, or put quotes around text",
            )
    if node.id == "scalar" and node.tag.endswith(":null"):
        if param.default is not None:
            raise SepoError(f"{entry.where}: {entry.key} has no value", hint="write one, or leave out the line")
        return None
    texts = [each.value for each in nodes]
    try:
        return param.process_value(context, texts if several else texts[0])
    except typer.BadParameter as error:
        raise SepoError(f"{entry.where}: {entry.key}: {shortened(error.message)}", hint=HINT) from None
