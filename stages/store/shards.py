"""A shard: ``ScoredPair`` rows as one Parquet file, checked when written and when read, and sealed.

A *seal* says what a shard's file has to be: its sha256, size and number of rows. While a run is unfinished the seals
stand beside the shards as small hidden files; the manifest of the finished run takes them in. A shard's seal is written
first, so a shard that is there without a seal, or is not what its seal says, is known to be none of ours.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.currency import PairLogps, PairWeights, ScoredPair, TokenPair
from stages.errors import SepoError
from stages.store.files import hash_open
from stages.store.manifest import FORMAT
from stages.store.place import Place

_IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))
_FLOATS = pa.list_(pa.field("element", pa.float32(), nullable=False))
REQUIRED: Final = ("pair_id", "prompt_ids", "chosen_ids", "rejected_ids", "chosen_scores", "rejected_scores")
SCHEMA: Final = pa.schema(
    [
        pa.field("pair_id", pa.int64(), nullable=False),
        pa.field("prompt_ids", _IDS, nullable=False),
        pa.field("chosen_ids", _IDS, nullable=False),
        pa.field("rejected_ids", _IDS, nullable=False),
        pa.field("chosen_scores", _FLOATS, nullable=False),
        pa.field("rejected_scores", _FLOATS, nullable=False),
        pa.field("chosen_reference_logps", _FLOATS),
        pa.field("rejected_reference_logps", _FLOATS),
    ]
)
WEIGHTS: Final = ("chosen_weights", "rejected_weights")
"""list<float32>, which another scorer may add: a weight for every response token"""
READ: Final = (*SCHEMA.names, *WEIGHTS)
REMEDY: Final = "run `sepo score` first, or let it finish"
DAMAGED: Final = "run the same `sepo score` again: it makes what is damaged anew, and keeps the rest"
ROWS_IN_MEMORY: Final = 1024
_NONE: Final[Mapping[str, str]] = {}


class Seal(NamedTuple):
    """What a shard's file has to be."""

    sha256: str
    """``sha256:...`` of all its bytes"""
    bytes: int
    rows: int


def shard_name(index: int) -> str:
    """``scores-00000.parquet`` and so on."""
    return f"scores-{index:05d}.parquet"


def seal_name(shard: str) -> str:
    """The hidden file beside a shard of an unfinished run."""
    return f".{shard}.seal"


def write_shard(
    place: Place, name: str, rows: list[ScoredPair], fingerprint: str, tokenizer: str, notes: Mapping[str, str] = _NONE
) -> Seal:
    """Check the rows and write them as one sealed shard, whole or not at all.

    Args:
        fingerprint: of the run that makes the shard.
        tokenizer: hash of the token->id map the ids are of (`stages.model.folders.vocabulary_hash`).
        notes: what else the shard shall say of itself, as key-value metadata.

    Raises:
        SepoError: lengths differ or a score is not finite, naming the pair; or the place cannot be written.
    """
    for row in rows:
        check_row(row, name)
    metadata = {"sepo.format": str(FORMAT), "sepo.fingerprint": fingerprint, "sepo.tokenizer": tokenizer, **notes}
    table = pa.Table.from_pydict(_columns(rows), schema=SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    seal = Seal(hash_open(pa.BufferReader(data)), data.size, len(rows))
    place.write_json(seal_name(name), seal._asdict())
    place.write(name, data)
    return seal


def read_seal(place: Place, name: str) -> Seal | None:
    """The seal beside a shard, if there is a readable one."""
    try:
        return as_seal(json.loads(place.read(seal_name(name)).decode()))
    except (OSError, ValueError):
        return None


def as_seal(value: Any) -> Seal | None:
    """A seal from its JSON, or None where it is none, as in the manifest of a foreign scorer."""
    try:
        return Seal(str(value["sha256"]), int(value["bytes"]), int(value["rows"]))
    except (KeyError, TypeError, ValueError):
        return None


def keeps_seal(place: Place, name: str, seal: Seal | None) -> bool:
    """Whether a shard is there and is, to the bit, what its seal says."""
    try:
        with place.open(name) as file:
            return seal is not None and file.size() == seal.bytes and hash_open(file) == seal.sha256
    except OSError:
        return False


def shard_holds(place: Place, name: str, fingerprint: str, pair_ids: tuple[int, int], rows: int) -> bool:
    """Whether a shard keeps its seal, is of this run, and holds these rows.

    Args:
        pair_ids: of its first and its last row.
    """
    seal = read_seal(place, name)
    if seal is None or seal.rows != rows or not keeps_seal(place, name, seal):
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
    """The key-value metadata of a shard that keeps its seal and is of this run, else None."""
    if not keeps_seal(place, name, read_seal(place, name)):
        return None
    try:
        with place.open(name) as file:
            metadata = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    notes = {key.decode(): value.decode() for key, value in metadata.items()}
    return notes if notes.get("sepo.fingerprint") == fingerprint else None


def read_shard(place: Place, name: str, fingerprint: str, seal: Seal | None = None) -> Iterator[ScoredPair]:
    """The rows of a shard, each one checked, a thousand in memory at a time.

    Args:
        seal: what the file has to be, if somebody said it.

    Raises:
        SepoError: damaged, not Parquet, of another run, without a needed column, or a row that contradicts itself.
    """
    for batch in _batches(place, name, fingerprint, seal):
        columns = {name: _arrays(batch.column(name)) for name in batch.schema.names if name in READ}
        for index in range(batch.num_rows):
            row = _row(columns, index)
            check_row(row, name)
            yield row


def _batches(place: Place, name: str, fingerprint: str, seal: Seal | None) -> Iterator[pa.RecordBatch]:
    try:
        with place.open(name) as file:
            if seal is not None and (file.size() != seal.bytes or hash_open(file) != seal.sha256):
                raise SepoError(f"{place.at(name)} is damaged: its checksum is not the manifest's", hint=DAMAGED)
            file.seek(0)
            parquet = pq.ParquetFile(file)
            _refuse_foreign(place.at(name), parquet.schema_arrow, fingerprint)
            yield from parquet.iter_batches(batch_size=ROWS_IN_MEMORY)
    except (OSError, pa.ArrowException) as error:
        raise SepoError(f"cannot read {place.at(name)}: {str(error).splitlines()[0]}", hint=DAMAGED) from error


def _refuse_foreign(where: str, schema: pa.Schema, fingerprint: str) -> None:
    found = (schema.metadata or {}).get(b"sepo.fingerprint", b"").decode()
    if found != fingerprint:
        raise SepoError(f"{where} is of another run than its folder's manifest", hint=REMEDY)
    missing = [name for name in REQUIRED if name not in schema.names]
    if missing:
        raise SepoError(f"{where} has no column {missing[0]}", hint=f"a shard needs the columns {', '.join(REQUIRED)}")


def tokenizer_of(place: Place, name: str) -> str:
    """The hash of the token->id map that a shard says its ids are of.

    Raises:
        SepoError: not Parquet.
    """
    try:
        with place.open(name) as file:
            return str((pq.read_schema(file).metadata or {}).get(b"sepo.tokenizer", b"").decode())
    except (OSError, pa.ArrowException) as error:
        raise SepoError(f"cannot read {place.at(name)}: {str(error).splitlines()[0]}", hint=DAMAGED) from error


def _columns(rows: list[ScoredPair]) -> dict[str, list[Any]]:
    return {
        "pair_id": [row.pair.pair_id for row in rows],
        "prompt_ids": [row.pair.prompt_ids for row in rows],
        "chosen_ids": [row.pair.chosen_ids for row in rows],
        "rejected_ids": [row.pair.rejected_ids for row in rows],
        "chosen_scores": [row.scores.chosen for row in rows],
        "rejected_scores": [row.scores.rejected for row in rows],
        "chosen_reference_logps": [None if row.reference is None else row.reference.chosen for row in rows],
        "rejected_reference_logps": [None if row.reference is None else row.reference.rejected for row in rows],
    }


def _arrays(column: pa.Array) -> list[Any]:
    """A column as one numpy array (or None) a row, without a Python object for every token."""
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return list(column.to_pylist())
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return [values[offsets[i] : offsets[i + 1]] if valid[i] else None for i in range(len(column))]


def _row(columns: dict[str, list[Any]], index: int) -> ScoredPair:
    cell = {name: values[index] for name, values in columns.items()}
    reference = None
    if cell.get("chosen_reference_logps") is not None and cell.get("rejected_reference_logps") is not None:
        reference = PairLogps(cell["chosen_reference_logps"], cell["rejected_reference_logps"])
    pair = TokenPair(cell["pair_id"], cell["prompt_ids"], cell["chosen_ids"], cell["rejected_ids"])
    weights = None
    if any(cell.get(name) is not None for name in WEIGHTS):
        weights = PairWeights(cell.get(WEIGHTS[0]), cell.get(WEIGHTS[1]))  # type: ignore[arg-type]  # checked with the row
    return ScoredPair(pair, PairLogps(cell["chosen_scores"], cell["rejected_scores"]), reference, weights)


def check_row(row: ScoredPair, where: str) -> None:
    """Refuse a row whose parts do not fit together."""
    pair = row.pair
    prefix = f"{where}: pair {pair.pair_id}"
    parts: dict[str, Any] = {
        "prompt_ids": pair.prompt_ids,
        "chosen_ids": pair.chosen_ids,
        "rejected_ids": pair.rejected_ids,
    }
    parts |= {"chosen_scores": row.scores.chosen, "rejected_scores": row.scores.rejected}
    for name, values in parts.items():
        if values is None or len(values) == 0:
            raise SepoError(f"{prefix} has no {name}", hint="a row needs a prompt and two responses, all scored")
        if name.endswith("_ids") and np.min(values) < 0:
            raise SepoError(f"{prefix} has a negative id in {name}", hint="ids are rows of the token->id map")
    for side in ("chosen", "rejected"):
        _check_side(prefix, side, parts[f"{side}_ids"], getattr(row.scores, side), "scores")
        if row.reference is not None:
            _check_side(prefix, side, parts[f"{side}_ids"], getattr(row.reference, side), "reference_logps")
        if row.weights is not None:
            _check_weights(prefix, side, parts[f"{side}_ids"], getattr(row.weights, side))


def _check_weights(prefix: str, side: str, ids: Any, weights: Any) -> None:
    if weights is None:
        raise SepoError(f"{prefix} has no {side}_weights", hint="give weights for both responses of a row, or for none")
    _check_side(prefix, side, ids, weights, "weights")
    if np.min(weights) < 0:
        place = int(np.argmin(weights))
        raise SepoError(
            f"{prefix} has a negative weight in {side}_weights, at token {place}", hint="0 leaves a token out"
        )


def _check_side(prefix: str, side: str, ids: Any, values: Any, what: str) -> None:
    if len(values) != len(ids):
        message = f"{prefix} has {len(ids)} {side}_ids and {len(values)} {side}_{what}"
        raise SepoError(message, hint="every response token needs exactly one value")
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        message = f"{prefix} has a {side}_{what} that is not finite, at token {place}"
        raise SepoError(message, hint="look at that pair; a model in half precision may overflow")
