"""The rows of one local file: JSON Lines, JSON, CSV, TSV, Parquet or Arrow.

Everything streams. Nothing here knows what the columns mean. A file that cannot be trusted stops the run with its
place: a gap in the middle would shift the number of every later row.
"""

import csv
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data import text_files
from stages.data.json_files import json_lines, json_rows
from stages.data.text_files import COMPRESSED, DAMAGED_HINT, UTF8_HINT, Placed, lines
from stages.errors import SepoError, one_line
from stages.reporting import counted

Wanted = Callable[[list[str]], Collection[str]]
"""which of a file's columns to read"""

_ROWS_AT_ONCE: Final = 256
_CSV_HINT: Final = 'quote a field that holds a comma, a quote or a line end, and double its quotes: "so ""this"", then"'
_END_OF_STREAM: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Format(NamedTuple):
    """A kind of file and how its rows are read."""

    name: str
    rows: Callable[[Path, str, Wanted], Iterator[Placed]]
    """the file, its name for messages, and the columns to read; another one has no value, where that saves anything"""


def format_of(path: Path) -> Format | None:
    """The kind of a file by its suffix, before ``.gz`` or ``.zst`` for those that are text; None if unknown."""
    name = path.name.lower()
    packed = next((suffix for suffix in COMPRESSED if name.endswith(suffix)), "")
    suffix = Path(name.removesuffix(packed)).suffix
    return _TEXT.get(suffix) or (None if packed else _BINARY.get(suffix))


def _csv_rows(path: Path, name: str, delimiter: str) -> Iterator[Placed]:
    """Rows of texts under the names of the first line; every row has to have as many fields as there are names."""
    # A quote that is never closed would otherwise take the rest of the file into memory.
    csv.field_size_limit(text_files.LONGEST)
    reader = csv.reader(_csv_lines(path, name), delimiter=delimiter, strict=True)
    names: list[str] = []
    where = f"{name}:1"
    try:
        for fields in reader:
            if not names:
                names = _header(fields, where)
            elif fields:
                if len(fields) != len(names):
                    raise csv.Error(f"{counted(len(fields), 'field')}, but {len(names)} columns")
                yield where, dict(zip(names, fields, strict=True))
            # A field may hold line ends: a row is told of the line it starts on.
            where = f"{name}:{reader.line_num + 1}"
    except csv.Error as error:
        raise SepoError(f"{where}: broken CSV: {one_line(error)}", hint=_CSV_HINT) from error


def _csv_lines(path: Path, name: str) -> Iterator[str]:
    for where, line in lines(path, name):
        if "\0" in line:
            # UTF-16 without its mark is UTF-8 full of these.
            raise SepoError(f"{where}: a NUL byte", hint=UTF8_HINT)
        yield line


def _header(fields: list[str], where: str) -> list[str]:
    faulty = next((field for field in fields if not field.strip() or fields.count(field) > 1), None)
    if faulty is not None:
        problem = f'two columns are called "{faulty}"' if faulty.strip() else "a column has no name"
        raise SepoError(f"{where}: {problem}", hint="the first line of a CSV file names its columns")
    return fields


def _parquet_rows(path: Path, name: str, wanted: Wanted) -> Iterator[Placed]:
    def batches() -> Iterator[Any]:
        # With a buffer size, a column of a row group is not read whole.
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            read = _columns_read(names, wanted, name)
            for group in range(file.num_row_groups):
                found = file.metadata.row_group(group)
                sizes = (found.column(number).total_uncompressed_size for number in range(found.num_columns))
                rows = _rows_at_once(max(sizes, default=0))
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=read):
                    yield names, batch

    return _batch_rows(batches(), name, "Parquet")


def _arrow_rows(path: Path, name: str, wanted: Wanted) -> Iterator[Placed]:
    """An Arrow IPC file, or the stream that `datasets` writes; the suffix is the same for both."""

    def batches() -> Iterator[Any]:
        with pa.OSFile(str(path)) as source:
            for batch in _ipc_batches(source):
                names = batch.schema.names
                read = batch.select(_columns_read(names, wanted, name))
                # Wrong offsets would crash the process when the texts are taken out.
                read.validate(full=True)
                rows = _rows_at_once(read.nbytes)
                for start in range(0, read.num_rows, rows):
                    yield names, read.slice(start, rows)

    return _batch_rows(batches(), name, "Arrow")


def _rows_at_once(size: int) -> int:
    """How many rows to take out together of a part of a file whose values, each held once, have `size` bytes.

    Any row may have all of these bytes: a file can hold a value once and name it in every row.
    """
    return max(1, min(_ROWS_AT_ONCE, 8 * text_files.LONGEST // max(1, size)))


def _columns_read(names: list[str], wanted: Wanted, file: str) -> list[str]:
    """The columns of a file that are read: what another one holds is of no account."""
    asked = set(wanted(names))
    read = Counter(name for name in names if name in asked)
    twice = next((name for name, times in read.items() if times > 1), None)
    if twice is not None:
        raise SepoError(f'{file}: two columns are called "{twice}"', hint="rename one of them, or leave it out")
    return list(read)


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
    number, column = 0, ""
    try:
        for names, batch in batches:
            unread = dict.fromkeys(names)
            for part in _parts(batch):
                if part.nbytes > text_files.LONGEST:
                    problem = f"{name} row {number}: more than {text_files.LONGEST:,} bytes"
                    raise SepoError(problem, hint="shorten its texts, or leave the row out")
                values = {}
                for column in part.schema.names:
                    values[column] = part[column].to_pylist()
                column = ""
                for at in range(part.num_rows):
                    yield f"{name} row {number}", unread | {each: held[at] for each, held in values.items()}
                    number += 1
    except SepoError:
        raise
    except Exception as error:
        # A malformed file can make Arrow raise anything.
        if isinstance(error, UnicodeDecodeError) or "Invalid UTF8" in str(error):
            raise SepoError(f"{name}: not UTF-8 after row {number}", hint="save its texts as UTF-8") from error
        if column:
            # Nothing that Python knows: a date before year 1.
            problem = f'{name}: the column "{column}" cannot be read after row {number}: {one_line(error)}'
            raise SepoError(problem, hint="store text as text, and turns as lists") from error
        raise SepoError(f"{name}: damaged {format_name} data: {one_line(error)}", hint=DAMAGED_HINT) from error


def _parts(batch: Any) -> Iterator[Any]:
    """A batch with every value where it stands, whole; row by row where it is so large that one may be too long."""
    for at, column in enumerate(batch.columns):
        if pa.types.is_dictionary(column.type):
            batch = batch.set_column(at, batch.schema.names[at], column.dictionary_decode())
    if batch.nbytes <= text_files.LONGEST:
        yield batch
    else:
        yield from (batch.slice(row, 1) for row in range(batch.num_rows))


# Of text, nothing is saved by leaving columns out.
_JSON_LINES: Final = Format("JSON Lines", lambda path, name, wanted: json_lines(path, name))
_TEXT: Final = {
    ".jsonl": _JSON_LINES,
    ".ndjson": _JSON_LINES,
    ".json": Format("JSON", lambda path, name, wanted: json_rows(path, name)),
    ".csv": Format("CSV", lambda path, name, wanted: _csv_rows(path, name, ",")),
    ".tsv": Format("TSV", lambda path, name, wanted: _csv_rows(path, name, "\t")),
}
_BINARY: Final = {".parquet": Format("Parquet", _parquet_rows), ".arrow": Format("Arrow", _arrow_rows)}
