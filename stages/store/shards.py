"""A shard: ``ScoredPair`` rows as one Parquet file, checked when written and when read.

A shard of ours says whose it is and which one of its run, and holds a sha256 of itself (`stages.store.parquet`): what a
killed run left is taken over only where all that is right. The manifest of a finished run has a `Checksum` of each.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import SepoError, borrowed
from stages.store.files import hash_open
from stages.store.manifest import FORMAT
from stages.store.parquet import is_whole, parquet_bytes
from stages.store.place import Place
from stages.store.rows import READ, SCHEMA, as_columns, check_row, refuse_other_columns, rows_of
from stages.types import ScoredPair

REMEDY: Final = "run `sepo score` first, or let it finish"
DAMAGED: Final = "run the same `sepo score` again: it makes what is damaged anew, and keeps the rest"
ROWS_IN_MEMORY: Final = 1024
_NONE: Final[Mapping[str, str]] = {}


class Checksum(NamedTuple):
    """What a shard's file has to be."""

    sha256: str
    """``sha256:...`` of all its bytes"""
    bytes: int
    rows: int

    def fits(self, file: Any) -> bool:
        """Whether an open file is that to the bit."""
        return file.size() == self.bytes and hash_open(file) == self.sha256


class OwnShard(NamedTuple):
    """A whole shard of this run."""

    checksum: Checksum
    notes: dict[str, str]
    """its key-value metadata"""


def shard_name(index: int) -> str:
    """``scores-00000.parquet`` and so on."""
    return f"scores-{index:05d}.parquet"


def write_shard(
    place: Place, name: str, rows: list[ScoredPair], fingerprint: str, tokenizer: str, notes: Mapping[str, str] = _NONE
) -> None:
    """Check the rows and write them as one shard, whole or not at all.

    Args:
        fingerprint: of the run that makes the shard.
        tokenizer: hash of the token->id map the ids are of (`stages.tokens.fingerprint.vocabulary_hash`).
        notes: what else the shard shall say of itself, as key-value metadata.

    Raises:
        SepoError: lengths differ or a score is not finite, naming the pair; or the place cannot be written.
    """
    for row in rows:
        check_row(row, name)
    said = {
        "sepo.format": str(FORMAT),
        "sepo.fingerprint": fingerprint,
        "sepo.tokenizer": tokenizer,
        "sepo.shard": name,
    }
    table = pa.Table.from_pydict(as_columns(rows), schema=SCHEMA.with_metadata(said | dict(notes)))
    place.write(name, parquet_bytes(table))


def own_shard(place: Place, name: str, fingerprint: str) -> OwnShard | None:
    """A shard that this run wrote under this name; None where there is none, or another one, or it is not whole."""
    try:
        with place.open(name) as file:
            if not is_whole(file):
                return None
            parquet = pq.ParquetFile(file)
            notes = {key.decode(): value.decode() for key, value in (parquet.schema_arrow.metadata or {}).items()}
            if (notes.get("sepo.fingerprint"), notes.get("sepo.shard")) != (fingerprint, name):
                return None
            rows = parquet.metadata.num_rows
            file.seek(0)
            return OwnShard(Checksum(hash_open(file), file.size(), rows), notes)
    except (OSError, pa.ArrowException):
        return None


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
            if checksum is not None and not checksum.fits(file):
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
