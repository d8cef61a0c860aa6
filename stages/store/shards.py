"""A shard: ``ScoredPair`` rows as one Parquet file, checked when written and when read, with its checksum.

A `Checksum` says what a shard's file has to be: its sha256, size and number of rows. While a run is unfinished they
stand beside the shards as small hidden files; the manifest of the finished run takes them in. It is written before its
shard, so a shard that is there without one, or is not what it says, is known to be none of ours.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import SepoError, borrowed
from stages.store.files import hash_open
from stages.store.manifest import FINISHED, FORMAT
from stages.store.place import Place
from stages.store.rows import READ, SCHEMA, as_columns, check_row, refuse_other_columns, rows_of
from stages.store.shape import is_checksum, lookup, parse_json
from stages.types import ScoredPair

REMEDY: Final = "run `sepo score` first, or let it finish"
DAMAGED: Final = "run the same `sepo score` again: it makes what is damaged anew, and keeps the rest"
SUFFIX: Final = ".seal"
"""of the hidden file that holds a shard's checksum until there is a manifest"""
ROWS_IN_MEMORY: Final = 1024
_NONE: Final[Mapping[str, str]] = {}


class Checksum(NamedTuple):
    """What a shard's file has to be."""

    sha256: str
    """``sha256:...`` of all its bytes"""
    bytes: int
    rows: int


def shard_name(index: int) -> str:
    """``scores-00000.parquet`` and so on."""
    return f"scores-{index:05d}.parquet"


def checksum_name(shard: str) -> str:
    """The hidden file beside a shard of an unfinished run."""
    return f".{shard}{SUFFIX}"


def write_shard(
    place: Place, name: str, rows: list[ScoredPair], fingerprint: str, tokenizer: str, notes: Mapping[str, str] = _NONE
) -> Checksum:
    """Check the rows and write them as one shard with its checksum, whole or not at all.

    Args:
        fingerprint: of the run that makes the shard.
        tokenizer: hash of the token->id map the ids are of (`stages.models.folders.vocabulary_hash`).
        notes: what else the shard shall say of itself, as key-value metadata.

    Raises:
        SepoError: lengths differ or a score is not finite, naming the pair; or the place cannot be written.
    """
    for row in rows:
        check_row(row, name)
    metadata = {"sepo.format": str(FORMAT), "sepo.fingerprint": fingerprint, "sepo.tokenizer": tokenizer, **notes}
    table = pa.Table.from_pydict(as_columns(rows), schema=SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    checksum = Checksum(hash_open(pa.BufferReader(data)), data.size, len(rows))
    place.write_json(checksum_name(name), checksum._asdict())
    place.write(name, data)
    return checksum


def read_checksum(place: Place, name: str) -> Checksum | None:
    """What a shard has to be: a file beside it says so, or the manifest, once its run has finished."""
    # A worker that finishes the run writes the manifest before it sweeps what is beside the shards.
    for file, path in ((checksum_name(name), ()), (FINISHED, ("shards", name))):
        with suppress(OSError, ValueError):
            found = as_checksum(lookup(parse_json(place.read(file)), path))
            if found is not None:
                return found
    return None


def as_checksum(value: Any) -> Checksum | None:
    """A checksum from its JSON, or None where it is none."""
    return Checksum(value["sha256"], value["bytes"], value["rows"]) if is_checksum(value) else None


def is_whole(place: Place, name: str, checksum: Checksum | None) -> bool:
    """Whether a shard is there and is, to the bit, what its checksum says."""
    try:
        with place.open(name) as file:
            return checksum is not None and file.size() == checksum.bytes and hash_open(file) == checksum.sha256
    except OSError:
        return False


def shard_holds(place: Place, name: str, fingerprint: str, pair_ids: tuple[int, int], rows: int) -> bool:
    """Whether a shard is whole, of this run, and holds these rows.

    Args:
        pair_ids: of its first and its last row.
    """
    checksum = read_checksum(place, name)
    if checksum is None or checksum.rows != rows or not is_whole(place, name, checksum):
        return False
    try:
        with place.open(name) as file:
            parquet = pq.ParquetFile(file)
            ids = parquet.read(columns=["pair_id"]).column(0)
            metadata = parquet.schema_arrow.metadata or {}
    except (OSError, pa.ArrowException):
        return False
    found = (ids[0].as_py(), ids[-1].as_py(), len(ids))
    return metadata.get(b"sepo.fingerprint") == fingerprint.encode() and found == (*pair_ids, rows)


def read_notes(place: Place, name: str, fingerprint: str) -> dict[str, str] | None:
    """The key-value metadata of a shard that is whole and of this run, else None."""
    if not is_whole(place, name, read_checksum(place, name)):
        return None
    try:
        with place.open(name) as file:
            metadata = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    notes = {key.decode(): value.decode() for key, value in metadata.items()}
    return notes if notes.get("sepo.fingerprint") == fingerprint else None


def read_shard(
    place: Place, name: str, fingerprint: str, checksum: Checksum | None = None, ids_below: int | None = None
) -> Iterator[ScoredPair]:
    """The rows of a shard, each one checked, a thousand in memory at a time.

    Args:
        checksum: what the file has to be, if somebody said it.
        ids_below: number of ids of the tokenizer, if it is known.

    Raises:
        SepoError: damaged, not Parquet, of another run, columns of another kind, or a row that contradicts itself.
    """
    for batch in _batches(place, name, fingerprint, checksum):
        yield from rows_of(batch, name, ids_below)


def _batches(place: Place, name: str, fingerprint: str, checksum: Checksum | None) -> Iterator[pa.RecordBatch]:
    where = place.at(name)
    with ExitStack() as stack:
        with borrowed(f"cannot read {where}", DAMAGED):
            file = stack.enter_context(place.open(name))
            if checksum is not None and (file.size() != checksum.bytes or hash_open(file) != checksum.sha256):
                raise SepoError(f"{where} is damaged: its checksum is not the manifest's", hint=DAMAGED)
            file.seek(0)
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
        if _said(schema, "sepo.fingerprint") != fingerprint:
            raise SepoError(f"{where} is of another run than its folder's manifest", hint=REMEDY)
        refuse_other_columns(where, schema)
        with borrowed(f"cannot read {where}", DAMAGED):
            yield from parquet.iter_batches(ROWS_IN_MEMORY, columns=[name for name in READ if name in schema.names])


def _said(schema: pa.Schema, key: str) -> str:
    return str((schema.metadata or {}).get(key.encode(), b"").decode(errors="replace"))


def tokenizer_of(place: Place, name: str) -> str:
    """The hash of the token->id map that a shard says its ids are of.

    Raises:
        SepoError: not Parquet.
    """
    with borrowed(f"cannot read {place.at(name)}", DAMAGED), place.open(name) as file:
        return _said(pq.read_schema(file), "sepo.tokenizer")
