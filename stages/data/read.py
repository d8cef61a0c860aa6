"""Bytes to rows: a local JSON Lines, JSON or Parquet file, or a data set on the Hugging Face hub.

An existing path is a local file. A name that ends in a known suffix or starts with ``.``, ``/`` or ``~`` is a file
that is missing. Anything else is a hub name, ``org/name`` or ``org/name:split``.

Nothing here knows what the columns mean, only that a row is an object. A file that cannot be trusted stops the run
with its place: a gap in the middle would shift the number of every later row.
"""

import codecs
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import SepoError

Placed = tuple[str, dict[str, Any]]
"""where a row stands, and the row"""

_HUB_NAME: Final = re.compile(r"(?P<source>[\w.-]+/[\w.-]+)(:(?P<split>\w+))?")
_PREFERRED_SPLITS: Final = ("train_prefs", "train")
_PARQUET_ROWS: Final = 256
_JSON_HINT: Final = "each line is one JSON object; a .json file may also be a list of objects"
_DAMAGED_HINT: Final = "make or download the file again"


class Row(NamedTuple):
    """One row of a data set."""

    number: int
    """from 0; blank lines of a JSON Lines file do not count"""
    where: str
    """for messages: ``pairs.jsonl:17`` is a line, from 1; ``pairs.parquet row 16`` is a row, from 0"""
    columns: dict[str, Any]


def read_rows(dataset: str) -> Iterator[Row]:
    """Every row of `dataset`, in its order, as a stream; only a ``.json`` file that is one list is loaded whole.

    Raises:
        SepoError: from the first row on, if the data set is missing, empty, damaged, of an unknown kind or out of
            reach.
    """
    path = _local_path(dataset)
    placed = _hub_rows(dataset) if path is None else _file_reader(path, dataset)(path, dataset)
    number = -1
    for number, (where, columns) in enumerate(placed):
        yield Row(number, where, columns)
    if number < 0:
        raise SepoError(f"{dataset}: no rows", hint="give a data set with at least one row")


def dataset_hash(dataset: str) -> str:
    """``sha256:<hex>`` over the bytes of a local file, or over the rows of a hub data set as canonical JSON.

    Raises:
        SepoError: missing, of an unknown kind, or out of reach.
    """
    path = _local_path(dataset)
    if path is not None:
        _file_reader(path, dataset)
        try:
            with path.open("rb") as file:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise _unreadable(dataset, error) from error
    digest = hashlib.sha256()
    for row in read_rows(dataset):
        # A column that sepo does not read may hold what JSON has no type for, such as a date.
        line = json.dumps(row.columns, sort_keys=True, separators=(",", ":"), default=str)
        digest.update(line.encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def load_split(source: str, split: str | None) -> tuple[str, Any]:
    """A split of a data set, by name: `split`, or else ``train_prefs``, else ``train``, else the only one.

    Args:
        source: whatever `datasets.load_dataset` takes: a hub name, or a folder of data files.

    Returns:
        The split's name and its rows, a `datasets.Dataset`.

    Raises:
        SepoError: out of reach, or no such split.
    """
    import datasets

    try:
        splits = datasets.load_dataset(source)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        # This one says no more than that something went wrong; what went wrong is its cause.
        told = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        raise SepoError(
            f"{source} cannot be loaded from the hub: {_first_line(told or error)}",
            hint="check the name, the network and `hf auth login`, or give a .jsonl, .json or .parquet file",
        ) from error
    names = list(splits)
    wanted = [split] if split else [*_PREFERRED_SPLITS, *(names if len(names) == 1 else [])]
    found = next((name for name in wanted if name in names), None)
    if found is None:
        problem = f"has no split {split}" if split else "has several splits, and none is train_prefs or train"
        raise SepoError(f"{source} {problem}", hint=f"choose one: {', '.join(f'{source}:{name}' for name in names)}")
    return found, splits[found]


def kind(value: Any) -> str:
    """What a value of a row is, in words for a message: ``null``, ``a number``, ``a list``."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "text", bytes: "bytes", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _local_path(dataset: str) -> Path | None:
    """The file that `dataset` names, or None if it is a hub name."""
    # Unlike pathlib's, these never raise: a name may be too long, or lie in a folder that is closed to us.
    path = Path(os.path.expanduser(dataset))
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        raise SepoError(f"{dataset} is a folder, not a data set", hint="name a file in it")
    if _reader(path) or dataset.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(dataset):
        raise SepoError(f"{dataset}: no such file", hint="check the path; a data set on the hub is org/name[:split]")
    return None


def _reader(path: Path) -> Callable[[Path, str], Iterator[Placed]] | None:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet_rows
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_rows}
    return readers.get(Path(name.removesuffix(".gz")).suffix)


def _file_reader(path: Path, name: str) -> Callable[[Path, str], Iterator[Placed]]:
    reader = _reader(path)
    if reader is None:
        raise SepoError(
            f"{name}: unknown kind of file", hint="convert it to .jsonl or .json (either may end in .gz) or .parquet"
        )
    return reader


def _json_rows(path: Path, name: str) -> Iterator[Placed]:
    """A list of objects, or JSON Lines under another name."""
    first = next((line for line in _lines(path, name) if line.strip()), b"")
    return _json_list(path, name) if first.lstrip().startswith(b"[") else _json_lines(path, name)


def _json_lines(path: Path, name: str) -> Iterator[Placed]:
    for number, line in enumerate(_lines(path, name), start=1):
        if line.strip():
            where = f"{name}:{number}"
            yield where, _object(_parse(_text(line, where), name, first_line=number), where)


def _json_list(path: Path, name: str) -> Iterator[Placed]:
    rows = _parse(_text(b"".join(_lines(path, name)), name), name, first_line=1)
    for number, row in enumerate(rows):
        where = f"{name} row {number}"
        yield where, _object(row, where)


def _lines(path: Path, name: str) -> Iterator[bytes]:
    """The lines of a file, decompressed, without a byte order mark."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with cast(BinaryIO, opened(path, "rb")) as file:
            yield file.readline().removeprefix(codecs.BOM_UTF8)
            yield from file
    except EOFError as error:
        raise SepoError(f"{name}: the gzip data ends too early", hint=_DAMAGED_HINT) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SepoError(f"{name}: damaged gzip data: {_first_line(error)}", hint=_DAMAGED_HINT) from error
    except OSError as error:
        raise _unreadable(name, error) from error


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SepoError(f"{where}: not UTF-8 at byte {error.start + 1}", hint="save the file as UTF-8") from error


def _parse(text: str, name: str, *, first_line: int) -> Any:
    try:
        # Without the last newline, an end that comes too early is told of the line it is on.
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        place = f"{name}:{first_line + error.lineno - 1}"
        raise SepoError(f"{place}: broken JSON: {error.msg} (column {error.colno})", hint=_JSON_HINT) from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets in brackets in brackets.
        raise SepoError(f"{name}:{first_line}: broken JSON: {_first_line(error)}", hint=_JSON_HINT) from error


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SepoError(f"{where}: {kind(row)}, not an object", hint=_JSON_HINT)
    return row


def _parquet_rows(path: Path, name: str) -> Iterator[Placed]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield f"{name} row {number}", row
                    number += 1
    except UnicodeDecodeError as error:
        raise SepoError(f"{name}: not UTF-8 after row {number}", hint="save its texts as UTF-8") from error
    except (pa.ArrowException, OSError) as error:
        raise SepoError(f"{name}: damaged Parquet data: {_first_line(error)}", hint=_DAMAGED_HINT) from error


def _hub_rows(dataset: str) -> Iterator[Placed]:
    parts = cast(re.Match[str], _HUB_NAME.fullmatch(dataset))
    split, rows = load_split(parts["source"], parts["split"])
    for number, row in enumerate(rows):
        yield f"{parts['source']}:{split} row {number}", row


def _unreadable(name: str, error: OSError) -> SepoError:
    return SepoError(f"{name} cannot be read: {error.strerror or error}", hint="check the file and its permissions")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
