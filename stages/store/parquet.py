"""Parquet files that hold a sha256 of all their other bytes.

It stands between the pages and the footer, where Parquet reads nothing: whoever reads Parquet reads these files too,
and one that is cut off or altered in a single bit is known to be, without a second file that says so.
"""

import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.store.files import make_durable

IDS: Final = pa.list_(pa.field("element", pa.int32(), nullable=False))
FLOATS: Final = pa.list_(pa.field("element", pa.float32(), nullable=False))
_DIGEST: Final = hashlib.sha256().digest_size
_TAIL: Final = 8
"""bytes at the end of a Parquet file: the length of its footer, and PAR1"""
_CHUNK: Final = 1 << 20


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as such a file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    footer = _footer_start(io.BytesIO(data), len(data))
    return data[:footer] + hashlib.sha256(data).digest() + data[footer:]


def write_parquet(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """The same of tables that do not fit into memory together; each is a row group."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        end = file.seek(0, os.SEEK_END)
        footer = _footer_start(file, end)
        file.seek(footer)
        rest = file.read()
        file.seek(footer)
        file.write(digest + rest)
        make_durable(file)


def is_whole(data: bytes) -> bool:
    """Whether the bytes of a file are, to the bit, what `parquet_bytes` made."""
    return is_whole_file(io.BytesIO(data))


def is_whole_file(file: BinaryIO) -> bool:
    """The same of a file, which is read in constant memory."""
    end = file.seek(0, os.SEEK_END)
    footer = _footer_start(file, end)
    if footer < _DIGEST:
        return False
    digest = hashlib.sha256()
    for start, stop in ((0, footer - _DIGEST), (footer, end)):
        file.seek(start)
        for at in range(start, stop, _CHUNK):
            digest.update(file.read(min(_CHUNK, stop - at)))
    file.seek(footer - _DIGEST)
    return digest.digest() == file.read(_DIGEST)


def _footer_start(file: BinaryIO, end: int) -> int:
    """Where the footer of a file of `end` bytes begins; below 0 where it has none."""
    file.seek(max(0, end - _TAIL))
    return end - _TAIL - int.from_bytes(file.read(4), "little")
