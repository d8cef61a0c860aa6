"""Parquet files that hold a sha256 of all their other bytes.

It stands between the pages and the footer, where Parquet reads nothing: whoever reads Parquet reads these files too,
and one that is cut off or altered in a single bit is known to be, without a second file that says so.
"""

import hashlib
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

_DIGEST: Final = hashlib.sha256().digest_size
_TAIL: Final = 8
"""bytes at the end of a Parquet file: the length of its footer, and PAR1"""


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as such a file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    footer = _footer_start(data)
    return data[:footer] + hashlib.sha256(data).digest() + data[footer:]


def is_whole(data: bytes) -> bool:
    """Whether the bytes of a file are, to the bit, what `parquet_bytes` made."""
    footer = _footer_start(data)
    if footer < _DIGEST:
        return False
    view = memoryview(data)
    digest = hashlib.sha256(view[: footer - _DIGEST])
    digest.update(view[footer:])
    return digest.digest() == view[footer - _DIGEST : footer]


def _footer_start(data: bytes) -> int:
    return len(data) - _TAIL - int.from_bytes(data[-_TAIL:][:4], "little")
