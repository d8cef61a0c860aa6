"""Parquet files that hold a sha256 of all their other bytes.

It stands between the pages and the footer, where Parquet reads nothing: whoever reads Parquet reads these files too,
and one that is cut off or altered in a single bit is known to be, without a second file that says so.
"""

import hashlib
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.store.files import CHUNK_BYTES

_DIGEST: Final = hashlib.sha256().digest_size
_TAIL: Final = 8
"""bytes at the end of a Parquet file: the length of its footer, and PAR1"""


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as such a file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    footer = len(data) - _TAIL - int.from_bytes(data[-_TAIL:][:4], "little")
    whole: bytes = data[:footer] + hashlib.sha256(data).digest() + data[footer:]
    return whole


def is_whole(file: Any) -> bool:
    """Whether an open `pyarrow.NativeFile` is, to the bit, what `parquet_bytes` made; all of it is read.

    Raises:
        OSError: it cannot be read.
    """
    size = file.size()
    if size < _TAIL + _DIGEST:
        return False
    file.seek(size - _TAIL)
    at = size - _TAIL - int.from_bytes(file.read(4), "little") - _DIGEST
    if at < 0:
        return False
    file.seek(0)
    digest = hashlib.sha256()
    while at:
        chunk = file.read(min(CHUNK_BYTES, at))
        if not chunk:
            return False
        digest.update(chunk)
        at -= len(chunk)
    written = file.read(_DIGEST)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    file.seek(0)
    return bool(digest.digest() == written)
