"""The rows of one local file: JSON Lines, JSON, CSV, Parquet or Arrow.

Everything streams, except a ``.json`` file that is one list. Nothing here knows what the columns mean. A file that
cannot be trusted stops the run with its place: a gap in the middle would shift the number of every later row.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import SepoError, one_line

Placed = tuple[str, dict[str, Any]]
"""where a row stands, and the row"""

_ROWS_AT_ONCE: Final = 256
_JSON_HINT: Final = "each line is one JSON object; a .json file may also be a list of objects"
_CSV_HINT: Final = 'quote a field that holds a comma, a quote or a line end, and double its quotes: "so ""this"", then"'
_DAMAGED_HINT: Final = "make or download the file again"
_UTF8_HINT: Final = "save the file as UTF-8"
_COMPRESSED: Final = (".gz", ".zst")
# A quote that is never closed would otherwise take the rest of the file into memory.
_LONGEST_FIELD: Final = 1 << 26
_END_OF_STREAM: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Format(NamedTuple):
    """A kind of file and how its rows are read."""

    name: str
    rows: Callable[[Path, str], Iterator[Placed]]
    """the file, and its name for messages"""
    count: Callable[[Path], int] = lambda path: 0
    """how many rows a file has, if it says so itself; else 0"""


def format_of(path: Path) -> Format | None:
    """The kind of a file by its suffix, before ``.gz`` or ``.zst`` for those that are text; None if unknown."""
    name = path.name.lower()
    packed = next((suffix for suffix in _COMPRESSED if name.endswith(suffix)), "")
    suffix = Path(name.removesuffix(packed)).suffix
    return _TEXT.get(suffix) or (None if packed else _BINARY.get(suffix))


def kind(value: Any) -> str:
    """What a value of a row is, in words for a message: ``null``, ``a number``, ``a list``."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "text", bytes: "bytes", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def unreadable(name: str, error: OSError) -> SepoError:
    return SepoError(f"{name} cannot be read: {error.strerror or error}", hint="check the file and its permissions")


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
    try:
        with _opened(path) as file:
            yield file.readline().removeprefix(codecs.BOM_UTF8)
            yield from file
    except EOFError as error:
        raise SepoError(f"{name}: the gzip data ends too early", hint=_DAMAGED_HINT) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SepoError(f"{name}: damaged gzip data: {one_line(error)}", hint=_DAMAGED_HINT) from error
    except OSError as error:
        if error.errno is not None:
            raise unreadable(name, error) from error
        # Arrow's own, which have no number.
        raise SepoError(f"{name}: damaged zstd data: {one_line(error)}", hint=_DAMAGED_HINT) from error


def _opened(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".zst":
            return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), 1 << 16)
    return path.open("rb")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SepoError(f"{where}: not UTF-8 at byte {error.start + 1}", hint=_UTF8_HINT) from error


def _parse(text: str, name: str, *, first_line: int) -> Any:
    try:
        # Without the last newline, an end that comes too early is told of the line it is on.
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        place = f"{name}:{first_line + error.lineno - 1}"
        raise SepoError(f"{place}: broken JSON: {error.msg} (column {error.colno})", hint=_JSON_HINT) from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets in brackets in brackets.
        problem = next(iter(str(error).splitlines()))
        raise SepoError(f"{name}:{first_line}: broken JSON: {problem}", hint=_JSON_HINT) from error


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SepoError(f"{where}: {kind(row)}, not an object", hint=_JSON_HINT)
    return row


def _csv_rows(path: Path, name: str) -> Iterator[Placed]:
    """Rows of texts under the names of the first line; every row has to have as many fields as there are names."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(_csv_lines(path, name), strict=True)
    names: list[str] = []
    while True:
        # A field may hold line ends: a row is told of the line it starts on.
        where = f"{name}:{reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise SepoError(f"{where}: broken CSV: {one_line(error)}", hint=_CSV_HINT) from error
        if fields is None:
            return
        if not names:
            names = _header(fields, where)
        elif fields:
            if len(fields) != len(names):
                counts = f"{len(fields)} {'field' if len(fields) == 1 else 'fields'}, but {len(names)} columns"
                raise SepoError(f"{where}: broken CSV: {counts}", hint=_CSV_HINT)
            yield where, dict(zip(names, fields, strict=True))


def _csv_lines(path: Path, name: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, name), start=1):
        where = f"{name}:{number}"
        if b"\0" in line:
            # UTF-16 without its mark is UTF-8 full of these.
            raise SepoError(f"{where}: a NUL byte", hint=_UTF8_HINT)
        yield _text(line, where)


def _header(fields: list[str], where: str) -> list[str]:
    faulty = next((field for field in fields if not field.strip() or fields.count(field) > 1), None)
    if faulty is not None:
        problem = f'two columns are called "{faulty}"' if faulty.strip() else "a column has no name"
        raise SepoError(f"{where}: {problem}", hint="the first line of a CSV file names its columns")
    return fields


def _parquet_rows(path: Path, name: str) -> Iterator[Placed]:
    def batches() -> Iterator[Any]:
        # With a buffer size, a column of a row group is not read whole.
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:
            yield from file.iter_batches(batch_size=_ROWS_AT_ONCE)

    return _batch_rows(batches(), name, "Parquet")


def _arrow_rows(path: Path, name: str) -> Iterator[Placed]:
    """An Arrow IPC file, or the stream that `datasets` writes; the suffix is the same for both."""

    def batches() -> Iterator[Any]:
        with pa.OSFile(str(path)) as source:
            for batch in _ipc_batches(source):
                # Wrong offsets would crash the process when the texts are taken out.
                batch.validate(full=True)
                yield from (batch.slice(start, _ROWS_AT_ONCE) for start in range(0, batch.num_rows, _ROWS_AT_ONCE))

    return _batch_rows(batches(), name, "Arrow")


def _parquet_count(path: Path) -> int:
    with pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def _arrow_count(path: Path) -> int:
    # Of a file that is mapped, nothing is read but the heads of its batches.
    with pa.memory_map(str(path)) as source:
        return sum(batch.num_rows for batch in _ipc_batches(source))


def _ipc_batches(source: Any) -> Iterator[Any]:
    if source.read(6) == b"ARROW1":
        source.seek(0)
        with pa.ipc.open_file(source) as reader:
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        return
    source.seek(max(0, source.size() - len(_END_OF_STREAM)))
    # A stream that was cut between two batches reads without complaint.
    if source.read() != _END_OF_STREAM:
        raise pa.ArrowInvalid("the stream ends too early")
    source.seek(0)
    with pa.ipc.open_stream(source) as reader:
        yield from reader


def _batch_rows(batches: Iterator[Any], name: str, format_name: str) -> Iterator[Placed]:
    number = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                yield f"{name} row {number}", row
                number += 1
    except UnicodeDecodeError as error:
        raise SepoError(f"{name}: not UTF-8 after row {number}", hint="save its texts as UTF-8") from error
    except (pa.ArrowException, OSError) as error:
        if "Invalid UTF8" in str(error):
            raise SepoError(f"{name}: not UTF-8 after row {number}", hint="save its texts as UTF-8") from error
        raise SepoError(f"{name}: damaged {format_name} data: {one_line(error)}", hint=_DAMAGED_HINT) from error


_TEXT: Final = {
    ".jsonl": Format("JSON Lines", _json_lines),
    ".ndjson": Format("JSON Lines", _json_lines),
    ".json": Format("JSON", _json_rows),
    ".csv": Format("CSV", _csv_rows),
}
_BINARY: Final = {
    ".parquet": Format("Parquet", _parquet_rows, _parquet_count),
    ".arrow": Format("Arrow", _arrow_rows, _arrow_count),
}
