"""A shard: ``ScoredPair`` rows as one Parquet file, checked when written and when read.

A shard of ours says whose it is and which one of its run, and holds a sha256 of itself (`stages.store.parquet`): what a
killed run left is taken over only where all that is right. The manifest of a finished run has a `Checksum` of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import SepoError, borrowed
from stages.store.checksums import Checksum
from stages.store.files import hash_bytes
from stages.store.manifest import FORMAT
from stages.store.parquet import FLOATS, is_whole, parquet_bytes
from stages.store.place import Place
from stages.store.rows import READ, SCHEMA, WEIGHTS, as_columns, check_row, refuse_other_columns, rows_of
from stages.types import SIDES, Floats, ScoredPair

REMEDY: Final = "run `sepo score` first, or let it finish"
DAMAGED: Final = "run the same `sepo score` again: it makes what is damaged anew, and keeps the rest"
ROWS_IN_MEMORY: Final = 1024
RAW: Final = ("chosen_raw_scores", "rejected_raw_scores")
"""list<float32>, scores as they were measured, where others stand in their place"""
_NONE: Final[Mapping[str, Any]] = {}


class OwnShard(NamedTuple):
    """A whole shard of this run, which has been read."""

    checksum: Checksum
    notes: dict[str, str]
    """its key-value metadata"""
    parquet: pq.ParquetFile

    def rows(self) -> list[ScoredPair]:
        """Each one checked."""
        where, columns = self.notes["sepo.shard"], [name for name in READ if name in self.parquet.schema_arrow.names]
        batches = self.parquet.iter_batches(ROWS_IN_MEMORY, columns=columns)
        return [row for batch in batches for row in rows_of(batch, where, None)]


def shard_name(index: int) -> str:
    """``scores-00000.parquet`` and so on."""
    return f"scores-{index:05d}.parquet"


def write_shard(
    place: Place,
    name: str,
    rows: list[ScoredPair],
    fingerprint: str,
    tokenizer: str,
    notes: Mapping[str, str] = _NONE,
    beside: Mapping[str, Sequence[Any]] = _NONE,
) -> Checksum:
    """Check the rows and write them as one shard, whole or not at all; returns what the file is.

    Args:
        tokenizer: hash of the token->id map the ids are of (`stages.tokens.fingerprint.vocabulary_hash`).
        notes: what else the shard shall say of itself, as key-value metadata.
        beside: further columns of list<float32>, an array each row, such as `RAW`; with them go the rows' weights.
    """
    for row in rows:
        check_row(row, name)
    said = {"sepo.format": str(FORMAT), "sepo.fingerprint": fingerprint, "sepo.tokenizer": tokenizer}
    schema = SCHEMA.with_metadata({**said, "sepo.shard": name, **notes})
    table = pa.Table.from_pydict(as_columns(rows), schema=schema)
    added = dict(beside)
    if beside and any(row.weights for row in rows):
        added |= zip(WEIGHTS, ([getattr(row.weights, side, None) for row in rows] for side in SIDES), strict=True)
    for column, values in added.items():
        table = table.append_column(pa.field(column, FLOATS), pa.array(values, FLOATS))
    data = parquet_bytes(table)
    place.write(name, data)
    return {"sha256": hash_bytes([data]), "bytes": len(data), "rows": len(rows)}


def own_shard(place: Place, name: str, fingerprint: str) -> OwnShard | None:
    """A shard that this run wrote under this name; None where there is none, or another one, or it is not whole."""
    try:
        data = place.read(name)
        if not is_whole(data):
            return None
        parquet = pq.ParquetFile(pa.BufferReader(data))
    except (OSError, pa.ArrowException):
        return None
    notes = {key.decode(): value.decode() for key, value in (parquet.schema_arrow.metadata or {}).items()}
    if (notes.get("sepo.fingerprint"), notes.get("sepo.shard")) != (fingerprint, name):
        return None
    checksum: Checksum = {"sha256": hash_bytes([data]), "bytes": len(data), "rows": parquet.metadata.num_rows}
    return OwnShard(checksum, notes, parquet)


def read_shard(
    place: Place,
    name: str,
    fingerprint: str,
    checksum: Checksum | None = None,
    *,
    tokenizer: str | None = None,
    ids_below: int | None = None,
) -> Iterator[ScoredPair]:
    """The rows of a shard, each one checked by what is known.

    A damaged file, one of another run or tokenizer, other columns and a row that contradicts itself are a `SepoError`.

    Args:
        checksum: what the file has to be, if somebody said it.
        ids_below: number of ids of the tokenizer.
    """
    for batch in shard_batches(place, name, fingerprint, checksum, tokenizer=tokenizer):
        yield from rows_of(batch, name, ids_below)


def shard_batches(
    place: Place, name: str, fingerprint: str, checksum: Checksum | None = None, *, tokenizer: str | None = None
) -> Iterator[pa.RecordBatch]:
    """A shard whose file and columns are checked, but not its cells: it and a thousand rows are in memory at a time.

    Args:
        tokenizer: hash of the token->id map.
    """
    where = place.at(name)
    with borrowed(f"cannot read {where}", DAMAGED):
        data = place.read(name)
        if checksum is not None and (hash_bytes([data]), len(data)) != (checksum["sha256"], checksum["bytes"]):
            raise SepoError(f"{where} is damaged: its checksum is not the manifest's", hint=DAMAGED)
        parquet = pq.ParquetFile(pa.BufferReader(data))
        schema = parquet.schema_arrow
    if _said(schema, "sepo.fingerprint") != fingerprint:
        raise SepoError(f"{where} is of another run than its folder's manifest", hint=REMEDY)
    if tokenizer is not None and _said(schema, "sepo.tokenizer") != tokenizer:
        raise SepoError(f"{where} is of another tokenizer than its folder's manifest says", hint=REMEDY)
    refuse_other_columns(where, schema)
    columns = [column for column in READ if column in schema.names]
    batches = parquet.iter_batches(ROWS_IN_MEMORY, columns=columns)
    while batch := _next_of(batches, where):
        yield batch


def read_beside(place: Place, name: str, columns: Sequence[str]) -> list[Floats] | None:
    """Flat values of further columns of a shard whose rows have been read; None if it lacks one."""
    with borrowed(f"cannot read {place.at(name)}", DAMAGED):
        parquet = pq.ParquetFile(pa.BufferReader(place.read(name)))
        if not {*columns} <= {*parquet.schema_arrow.names}:
            return None
        table = parquet.read(columns=[*columns])
        return [table[column].combine_chunks().flatten().to_numpy().astype(np.float32) for column in columns]


def _next_of(batches: Iterator[pa.RecordBatch], where: str) -> pa.RecordBatch | None:
    with borrowed(f"cannot read {where}", DAMAGED):
        return next(batches, None)


def _said(schema: pa.Schema, key: str) -> str:
    return str((schema.metadata or {}).get(key.encode(), b"").decode(errors="replace"))
