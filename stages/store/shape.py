"""What a manifest may look like: whoever reads one, by whatever hand it was written, relies on what is checked here."""

import json
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

MOST_LEVELS: Final = 100
"""of lists and objects in one another; ours have some six"""
MOST_COUNT: Final = (1 << 63) - 1
LONGEST_NAME: Final = 255
LONGEST_PATH: Final = 2048
"""both in bytes; what file systems take, with room for more"""


class _Kind(NamedTuple):
    """What a value may be."""

    words: str
    holds: Callable[[Any], bool]


def is_inside(name: Any) -> bool:
    """Whether a value names a file in the folder that names it, or below: never a path that leads out of it."""
    if not isinstance(name, str) or len(_bytes(name)) > LONGEST_NAME or "\0" in name or "\\" in name:
        return False
    return not {"", ".", ".."} & {*name.split("/")}


def is_file_name(name: Any) -> bool:
    """Whether a value names a file in the folder that names it, and none below."""
    return is_inside(name) and "/" not in name


def _bytes(name: str) -> bytes:
    """As many bytes as the system's; a name that is no UTF-8 holds surrogates."""
    return name.encode(errors="replace")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_COUNT


def _is_name(value: Any) -> bool:
    """Whether a value may be given to the system as a path, wherever that leads."""
    parts = _bytes(value).split(b"/") if isinstance(value, str) else [b"\0"]
    short = all(len(part) <= LONGEST_NAME and b"\0" not in part for part in parts)
    return short and sum(map(len, parts)) < LONGEST_PATH


def _are_checksums(value: Any, is_named: Callable[[Any], bool], *counts: str) -> bool:
    """Whether a value holds, by names of files, hashes with these counts beside each."""
    return isinstance(value, dict) and all(
        is_named(name) and isinstance(each, dict) and isinstance(each.get("sha256"), str)
        and all(_is_count(each.get(key)) for key in counts)
        for name, each in value.items()
    )  # fmt: skip


def _list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= MOST_COUNT)


_OBJECT: Final = _Kind("an object", lambda value: isinstance(value, dict))
_OBJECT_OR_NULL: Final = _Kind("an object or null", lambda value: value is None or isinstance(value, dict))
_TEXT: Final = _Kind("a text", lambda value: isinstance(value, str))
_TEXT_OR_NULL: Final = _Kind("a text or null", lambda value: value is None or isinstance(value, str))
_NAME: Final = _Kind("a name of a file or model", _is_name)
_NUMBER: Final = _Kind("a number", _number)
_COUNT: Final = _Kind("a whole number from 0", _is_count)
_TEXTS: Final = _Kind("a list of texts", lambda value: _list_of(str, value))
_NAMED: Final = _Kind("an object of texts", lambda value: isinstance(value, dict) and _list_of(str, [*value.values()]))
_FILES: Final = _Kind(
    "a list of names of different files in the folder",
    lambda value: isinstance(value, list) and all(map(is_inside, value)) and len({*value}) == len(value),
)
_OF_FILES: Final = "an object of checksums by names of files in the folder"
_SHAPE: Final[dict[tuple[str, ...], _Kind]] = {
    ("format",): _COUNT,
    ("stage",): _TEXT,
    ("fingerprint",): _TEXT,
    ("settings",): _OBJECT,
    ("settings", "columns"): _TEXT_OR_NULL,
    ("settings", "chat_template_kwargs"): _TEXT_OR_NULL,
    ("settings", "sft_epochs"): _NUMBER,
    ("inputs",): _NAMED,
    ("input_names",): _NAMED,
    ("input_names", "model"): _NAME,
    ("input_names", "scores"): _NAME,
    ("input_names", "tokenizer"): _NAME,
    ("counts",): _OBJECT,
    ("counts", "kept"): _COUNT,
    ("counts", "held_out"): _COUNT,
    ("results",): _OBJECT,
    ("results", "noise"): _OBJECT_OR_NULL,
    ("results", "noise", "p99"): _NUMBER,
    ("warnings",): _TEXTS,
    ("tokenizer",): _OBJECT,
    ("tokenizer", "vocabulary"): _TEXT,
    ("tokenizer", "hash"): _TEXT,
    ("tokenizer", "size"): _COUNT,
    ("files",): _FILES,
    ("shards",): _Kind(_OF_FILES, lambda value: _are_checksums(value, is_file_name, "bytes", "rows")),
    ("checksums",): _Kind(_OF_FILES, lambda value: _are_checksums(value, is_inside, "bytes")),
}
"""what may stand where, if anything does; what no reader looks at may be anything"""
_MISSING: Final = object()


def parse_json(data: bytes, *, finite: bool = True) -> Any:
    """A JSON value that can be written again: no endless nesting, and, but for other people's, finite numbers.

    Raises:
        ValueError: it is none, and why.
    """
    try:
        number = _finite if finite else float
        value = json.loads(data.decode(), parse_constant=number, parse_float=number)
        levels = _levels(value)
    except RecursionError:
        levels = MOST_LEVELS + 1
    if levels > MOST_LEVELS:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
    return value


def misshapen(manifest: Any) -> str | None:
    """What in a manifest is not as its readers take it to be, in words; None where nothing is."""
    if not isinstance(manifest, dict):
        return "it is not an object"
    for path, kind in _SHAPE.items():
        found = lookup(manifest, path, _MISSING)
        if found is not _MISSING and not kind.holds(found):
            return f"{'.'.join(path)} is not {kind.words}"
    return None


def lookup(value: Any, path: tuple[str, ...], missing: Any = None) -> Any:
    """The value at a path of keys, or `missing`."""
    for key in path:
        value = value.get(key, missing) if isinstance(value, dict) else missing
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _levels(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, inside), default=0)
