"""Arrow files that are mapped into memory: arrays that do not fit there can still be looked up.

They are written once, batch by batch and uncompressed. What is read from a mapped batch are read-only views into the
file, which the system drops from memory when nobody looks and processes of one host share. Who goes through all of a
file reads it batch by batch, and nothing stays.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.errors import borrowed
from stages.store.files import json_text
from stages.store.shape import parse_json


def write_batches(file: Any, schema: pa.Schema, batches: Iterable[pa.RecordBatch], summary: Mapping[str, Any]) -> None:
    """Write batches to a file that is open, and a JSON object about them, read once all of them were drawn."""
    with pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
        writer.write_batch(pa.RecordBatch.from_pylist([], schema), custom_metadata={"summary": json_text(summary)})


class MappedFile:
    """What `write_batches` wrote, opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        reader = pa.ipc.open_file(pa.memory_map(os.fsencode(path)))
        self.batches: list[pa.RecordBatch] = [*_batches(reader)]
        """the last one is empty"""
        metadata = reader.get_batch_with_custom_metadata(len(self.batches) - 1).custom_metadata
        self.summary: dict[str, Any] = parse_json(metadata[b"summary"])
        """what `write_batches` was given"""

    def read(self) -> Iterator[pa.RecordBatch]:
        """The batches once more, each of them read when it is asked for."""
        with pa.OSFile(os.fsencode(self._path)) as file:
            yield from _batches(pa.ipc.open_file(file))


def open_shared(path: Path) -> MappedFile:
    """The file that another process has written; one that cannot be read here is a `SepoError`."""
    hint = "the output folder has to lie on a disk that all processes share; run the same again"
    with borrowed(f"cannot read {path}", hint):
        return MappedFile(path)


def _batches(reader: pa.ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    return map(reader.get_batch, range(reader.num_record_batches))


def in_block(starts: NDArray[np.int64], index: int) -> tuple[int, int]:
    """The block that holds a row, and which of its rows it is; `starts` are the first rows of the blocks."""
    block = int(np.searchsorted(starts, index, side="right")) - 1
    return block, index - int(starts[block])


def list_array(values: NDArray[Any], offsets: NDArray[np.int64]) -> pa.Array:
    """Flat values as a column of lists: row i is ``values[offsets[i]:offsets[i + 1]]``."""
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))


def flat_values(column: pa.Array) -> NDArray[Any] | None:
    """The values of `list_array`, as a view; None of nulls."""
    return None if column.null_count else column.values.to_numpy()


def flat_lists(arrays: Sequence[NDArray[Any]]) -> pa.Array:
    """Arrays of one type as a column of lists."""
    return list_array(np.concatenate(arrays), np.cumsum([0, *map(len, arrays)], dtype=np.int64))
