"""Token scores on disk: Parquet shards of ``ScoredPair`` rows, checked when written and when read.

A foreign scorer needs the first six columns, the three metadata keys and a ``manifest.json``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.currency import PairLogps, ScoredPair, TokenPair
from stages.errors import SepoError
from stages.store.files import write_whole
from stages.store.manifest import FORMAT, read_manifest

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
NEEDED: Final = (("fingerprint",), ("files",), ("counts", "kept"), ("tokenizer", "vocabulary"))
"""what `train-policy` takes from the manifest, as paths of keys"""
REMEDY: Final = "run `sepo score` first, or let it finish"


class Scores(NamedTuple):
    """A finished folder of scores, opened."""

    folder: Path
    manifest: dict[str, Any]
    shards: list[Path]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def rows(self) -> Iterator[ScoredPair]:
        """Every row in data-set order, one shard in memory at a time."""
        count = 0
        for path in self.shards:
            _refuse_other_tokenizer(path, self.manifest["tokenizer"]["vocabulary"])
            for row in read_shard(path, self.fingerprint):
                count += 1
                yield row
        if count != self.manifest["counts"]["kept"]:
            kept = self.manifest["counts"]["kept"]
            raise SepoError(f"{self.folder} holds {count:,} pairs, its manifest says {kept:,}", hint=REMEDY)


def _refuse_other_tokenizer(path: Path, vocabulary: str) -> None:
    found = (_read_schema(path).metadata or {}).get(b"sepo.tokenizer", b"").decode()
    if found != vocabulary:
        raise SepoError(f"{path} is of another tokenizer than its folder's manifest says", hint=REMEDY)


def shard_name(index: int) -> str:
    """``scores-00000.parquet`` and so on."""
    return f"scores-{index:05d}.parquet"


def open_scores(folder: Path) -> Scores:
    """Open a finished folder of scores.

    Raises:
        SepoError: no manifest, a manifest of another stage, or shards that are not there.
    """
    manifest = read_manifest(folder, "score", REMEDY)
    for path in NEEDED:
        if _lookup(manifest, path) is None:
            name = ".".join(path)
            raise SepoError(f"{folder}/manifest.json has no {name}", hint="see the README on writing scores yourself")
    shards = [folder / name for name in manifest["files"]]
    missing = [path.name for path in shards if not path.exists()]
    if missing:
        raise SepoError(f"{folder} lacks {missing[0]} and {len(missing) - 1} more shards", hint=REMEDY)
    return Scores(folder, manifest, shards)


def _lookup(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def write_shard(path: Path, rows: list[ScoredPair], fingerprint: str, tokenizer: str) -> None:
    """Check the rows and write them as one shard, whole or not at all.

    Args:
        fingerprint: of the run that makes the shard.
        tokenizer: hash of the token->id map the ids are of (`stages.model.folders.vocabulary_hash`).

    Raises:
        SepoError: lengths differ or a score is not finite, naming the pair.
    """
    for row in rows:
        _check(row, path.name)
    metadata = {"sepo.format": str(FORMAT), "sepo.fingerprint": fingerprint, "sepo.tokenizer": tokenizer}
    table = pa.Table.from_pydict(_columns(rows), schema=SCHEMA.with_metadata(metadata))
    write_whole(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def shard_matches(path: Path, fingerprint: str) -> bool:
    """Whether `path` is a readable shard of the run with this fingerprint."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return metadata.get(b"sepo.fingerprint") == fingerprint.encode()


def read_shard(path: Path, fingerprint: str) -> Iterator[ScoredPair]:
    """The rows of a shard, each one checked.

    Raises:
        SepoError: not Parquet, of another run, without a needed column, or a row that contradicts itself.
    """
    table = _read_table(path)
    found = (table.schema.metadata or {}).get(b"sepo.fingerprint", b"").decode()
    if found != fingerprint:
        raise SepoError(f"{path} is of another run than its folder's manifest", hint=REMEDY)
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise SepoError(f"{path} has no column {missing[0]}", hint=f"a shard needs the columns {', '.join(REQUIRED)}")
    for batch in table.to_batches():
        columns = {name: _arrays(batch.column(name)) for name in batch.schema.names if name in SCHEMA.names}
        for index in range(batch.num_rows):
            row = _row(columns, index)
            _check(row, path.name)
            yield row


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


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from error


def _read_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> SepoError:
    return SepoError(f"cannot read {path}: {str(error).splitlines()[0]}", hint=f"delete it; {REMEDY}")


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
    return ScoredPair(pair, PairLogps(cell["chosen_scores"], cell["rejected_scores"]), reference)


def _check(row: ScoredPair, where: str) -> None:
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


def _check_side(prefix: str, side: str, ids: Any, values: Any, what: str) -> None:
    if len(values) != len(ids):
        message = f"{prefix} has {len(ids)} {side}_ids and {len(values)} {side}_{what}"
        raise SepoError(message, hint="every response token needs exactly one value")
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        message = f"{prefix} has a {side}_{what} that is not finite, at token {place}"
        raise SepoError(message, hint="look at that pair; a model in half precision may overflow")
