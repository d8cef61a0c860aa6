"""A data set as numbered rows, and its hash. `stages.data.sources` says what a name stands for.

Nothing here knows what the columns mean, only that a row is an object. Rows come as a stream, whatever the source.
"""

import functools
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from stages.data.files import Wanted
from stages.data.sources import ALL_ROWS, File, Source, choose_split, find_source
from stages.data.text_files import Placed, unreadable
from stages.errors import SepoError, borrowed, one_line
from stages.store.files import hash_bytes, hash_file


class Row(NamedTuple):
    """One row of a data set."""

    number: int
    """from 0, also in a slice: a row keeps its number; blank lines of a JSON Lines file do not count"""
    where: str
    """for messages: ``pairs.jsonl:17`` is a line, from 1; ``pairs.parquet row 16`` is a row of that file, from 0"""
    columns: dict[str, Any]


def read_rows(dataset: str, wanted: Wanted = list) -> Iterator[Row]:
    """Every row of `dataset`, in its order, as a stream; columns that are not `wanted` may be without their value."""
    source = find_source(dataset)
    empty = True
    for number, (where, columns) in (_file_rows if source.files else _hub_rows)(source, wanted):
        empty = False
        yield Row(number, where, columns)
    if empty:
        raise SepoError(f"{dataset}: no rows", hint="give a data set with at least one row")


def dataset_hash(dataset: str) -> str:
    """``sha256:<hex>`` of what decides the rows.

    Of one file its bytes; of several their names (from the folder that holds them all) and bytes, in the order they
    are read; of a hub data set its rows as canonical JSON. A slice enters with its bounds.
    """
    source = find_source(dataset)
    if not source.files:
        # A column that sepo does not read may hold what JSON has no type for, such as a date.
        line = functools.partial(json.dumps, sort_keys=True, separators=(",", ":"), default=str)
        found = hash_bytes(line(row.columns).encode() + b"\n" for row in read_rows(dataset))
    elif len(source.files) == 1:
        found = _file_hash(source.files[0])
    else:
        root = os.path.commonpath([file.path.parent for file in source.files])
        found = _joined_hash(*((os.path.relpath(file.path, root), _file_hash(file)) for file in source.files))
    if source.rows != ALL_ROWS:
        found = _joined_hash((found, source.rows.start, source.rows.stop))
    return found


def refuse_changed(dataset: str, before: str) -> None:
    """Refuse files that are others now than when `before`, their hash, was taken; those of the hub never change."""
    if find_source(dataset).files and dataset_hash(dataset) != before:
        raise SepoError(
            f"{dataset} was written to while it was read", hint="wait until it is whole, then run the same again"
        )


def count_rows(dataset: str) -> int:
    """How many rows `read_rows` will give, where Parquet files say so themselves; else 0."""
    source = find_source(dataset)
    try:
        total = sum(pq.read_metadata(file.path).num_rows for file in source.files)
    except Exception:
        # Of another kind, or damaged: who reads the rows will tell what is wrong, and where.
        return 0
    return len(range(total)[source.rows])


def load_split(source: str, split: str | None) -> tuple[str, Any]:
    """Name and rows (a `datasets.Dataset`) of a split of whatever `datasets.load_dataset` takes; see `choose_split`."""
    try:
        from datasets import load_dataset

        splits = load_dataset(source)
    except Exception as error:
        # This one says no more than that something went wrong; what went wrong is its cause.
        told = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        raise SepoError(
            f"{source} cannot be loaded from the hub: {one_line(told or error)}",
            hint="check the name, the network and `hf auth login`, or give a .jsonl, .json or .parquet file",
        ) from error
    found = choose_split(source, list(splits), split)
    return found, splits[found]


def _file_rows(source: Source, wanted: Wanted) -> Iterator[tuple[int, Placed]]:
    placed = itertools.chain.from_iterable(file.format.rows(file.path, file.name, wanted) for file in source.files)
    return itertools.islice(enumerate(placed), source.rows.start, source.rows.stop)


def _hub_rows(source: Source, wanted: Wanted) -> Iterator[tuple[int, Placed]]:
    split, rows = load_split(source.name, source.split)
    unread = dict.fromkeys(rows.column_names)
    numbers = range(len(rows))[source.rows]
    rows = rows.select_columns(list(wanted(rows.column_names)) or rows.column_names)
    chosen = iter(rows.select(numbers) if numbers else ())
    for number in numbers:
        where = f"{source.name}:{split} row {number}"
        with borrowed(f"{where} cannot be read", hint="store text as text, and turns as lists"):
            row = next(chosen)
        yield number, (where, unread | row)


def _file_hash(file: File) -> str:
    try:
        return hash_file(file.path)
    except OSError as error:
        raise unreadable(file.name, error) from error


def _joined_hash(*parts: tuple[Any, ...]) -> str:
    return hash_bytes(json.dumps(part).encode() + b"\n" for part in parts)
