"""What a manifest may look like: whoever reads one, by whatever hand it was written, relies on what is checked here."""

import json
import math
from collections.abc import Callable
from types import NoneType
from typing import Any, Final

MOST_LEVELS: Final = 100
"""of lists and objects in one another; ours have some six"""
MOST_COUNT: Final = (1 << 63) - 1
LONGEST_NAME: Final = 255
LONGEST_PATH: Final = 2048
"""both in bytes; what file systems take, with room for more"""

Holds = Callable[[Any], bool]


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


def _is_path(value: Any) -> bool:
    """Whether a value may be given to the system as a path, wherever that leads."""
    parts = _bytes(value).split(b"/") if isinstance(value, str) else [b"\0"]
    short = all(len(part) <= LONGEST_NAME and b"\0" not in part for part in parts)
    return short and sum(map(len, parts)) < LONGEST_PATH


def _is(*kinds: type) -> Holds:
    return lambda value: isinstance(value, kinds)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_COUNT


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= MOST_COUNT)


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _each(names: Holds, values: Holds) -> Holds:
    """Whether a value is an object of which all names and all values hold."""
    return lambda value: isinstance(value, dict) and all(map(names, value)) and all(map(values, value.values()))


def _checksum(*counts: str) -> Holds:
    """Whether a value is an object of a hash and these counts."""
    return lambda value: (
        isinstance(value, dict)
        and isinstance(value.get("sha256"), str)
        and all(_is_count(value.get(each)) for each in counts)
    )


def _numbers(**kinds: Holds) -> Holds:
    """Whether a value is an object of exactly these numbers."""
    return lambda value: (
        isinstance(value, dict) and {*value} == {*kinds} and all(holds(value[name]) for name, holds in kinds.items())
    )


_CHECKSUMS: Final = "an object of checksums by names of files in the folder"
_SHAPE: Final[tuple[tuple[str, Holds, tuple[str, ...]], ...]] = (
    ("a text", _is(str), ("stage", "fingerprint", "tokenizer.vocabulary", "tokenizer.hash")),
    ("a text or null", _is(str, NoneType), ("settings.columns", "settings.chat_template_kwargs")),
    ("a whole number from 0", _is_count, ("format", "counts.kept", "counts.held_out", "tokenizer.size")),
    ("a number", _is_number, ("settings.sft_epochs", "results.noise.p99")),
    ("an object", _is(dict), ("settings", "counts", "results", "tokenizer")),
    ("an object or null", _is(dict, NoneType), ("results.noise",)),
    (
        "an object of coefficients",
        _each(_is(str), _numbers(coefficient=_is_number, standard_error=_is_number_or_null)),
        ("results.calibration",),
    ),
    (
        "an object of intervals",
        _each(_is(str), _numbers(value=_is_number, low=_is_number, high=_is_number)),
        ("results.accuracy_on_unseen_pairs", "results.log_loss_on_unseen_pairs"),
    ),
    ("an object of texts", _each(_is(str), _is(str)), ("inputs", "input_names")),
    ("a path", _is_path, ("input_names.model", "input_names.scores", "input_names.tokenizer")),
    ("a list of texts", lambda value: isinstance(value, list) and all(map(_is(str), value)), ("warnings",)),
    (
        "a list of names of different files in the folder",
        lambda value: isinstance(value, list) and all(map(is_inside, value)) and len({*value}) == len(value),
        ("files",),
    ),
    (_CHECKSUMS, _each(is_file_name, _checksum("bytes", "rows")), ("shards",)),
    (_CHECKSUMS, _each(is_inside, _checksum("bytes")), ("checksums",)),
)
"""what stands at these paths of keys, if anything does; what no reader looks at may be anything"""
_MISSING: Final = object()


def parse_json(data: bytes, *, finite: bool = True) -> Any:
    """A JSON value that can be written again: not nested endlessly, numbers finite if asked for; else a ValueError."""
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
    for words, holds, paths in _SHAPE:
        for path in paths:
            found = lookup(manifest, path, _MISSING)
            if found is not _MISSING and not holds(found):
                return f"{path} is not {words}"
    return None


def lookup(value: Any, path: str, missing: Any = None) -> Any:
    """The value at a path of keys, such as ``counts.kept``, or `missing`."""
    for key in path.split("."):
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
