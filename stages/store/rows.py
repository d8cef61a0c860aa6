"""The rows of a shard: what each column holds, and what a row has to be, whoever wrote it."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

from stages.errors import SepoError
from stages.store.manifest import FORMAT
from stages.store.parquet import FLOATS, IDS
from stages.types import SIDES, Ids, PairLogps, PairWeights, ScoredPair, TokenPair

REQUIRED: Final = ("pair_id", "prompt_ids", "chosen_ids", "rejected_ids", "chosen_scores", "rejected_scores")
SCHEMA: Final = pa.schema(
    [
        pa.field("pair_id", pa.int64(), nullable=False),
        pa.field("prompt_ids", IDS, nullable=False),
        pa.field("chosen_ids", IDS, nullable=False),
        pa.field("rejected_ids", IDS, nullable=False),
        pa.field("chosen_scores", FLOATS, nullable=False),
        pa.field("rejected_scores", FLOATS, nullable=False),
        pa.field("chosen_reference_logps", FLOATS),
        pa.field("rejected_reference_logps", FLOATS),
    ]
)
WEIGHTS: Final = ("chosen_weights", "rejected_weights")
"""list<float32>, which another scorer may add: a weight for every response token"""
KL: Final = ("chosen_kl", "rejected_kl")
"""list<float32>, nats, which `sepo score --center` adds: KL(reference || oracle) at every response token"""
READ: Final = (*SCHEMA.names, *WEIGHTS)
ID_BOUND: Final = 1 << 31
_REMEDY: Final = "docs/scores-format.md says what a folder of scores holds"


def refuse_other_columns(where: str, schema: pa.Schema) -> None:
    """Refuse columns that are not those of `SCHEMA`.

    Any width of integers will do for ids, and of numbers for scores; they are read as int32, if they all fit, and as
    float32. So will large lists. Nothing else is taken for what it is not: a float is no id.
    """
    form = (schema.metadata or {}).get(b"sepo.format", str(FORMAT).encode())
    if form != str(FORMAT).encode():
        said = form.decode(errors="replace")
        raise SepoError(f"{where} is of format {said}, and this sepo reads format {FORMAT}", hint=_REMEDY)
    for name in READ:
        count = schema.names.count(name)
        if count > 1:
            raise SepoError(f"{where} has {count} columns {name}", hint=_REMEDY)
        if not count and name in REQUIRED:
            raise SepoError(f"{where} has no column {name}", hint=f"a shard needs the columns {', '.join(REQUIRED)}")
        if count and not _fits(schema.field(name).type, name):
            found, wanted = schema.field(name).type, _named(name)
            raise SepoError(f"{where}: column {name} is {found}, not {wanted}", hint=_REMEDY)


def _fits(found: pa.DataType, name: str) -> bool:
    if name != "pair_id":
        if not pa.types.is_list(found) and not pa.types.is_large_list(found):
            return False
        found = found.value_type
    return bool(pa.types.is_integer(found) or (pa.types.is_floating(found) and not name.endswith(("_id", "_ids"))))


def _named(name: str) -> str:
    return "int64" if name == "pair_id" else "list<int32>" if name.endswith("_ids") else "list<float32>"


def as_columns(rows: list[ScoredPair]) -> dict[str, list[Any]]:
    """Rows as the columns of `SCHEMA`."""
    columns = {name: [getattr(row.pair, name) for row in rows] for name in SCHEMA.names[:4]}
    for side in SIDES:
        columns[f"{side}_scores"] = [getattr(row.scores, side) for row in rows]
        columns[f"{side}_reference_logps"] = [getattr(row.reference, side, None) for row in rows]
    return columns


def rows_of(batch: pa.RecordBatch, where: str, ids_below: int | None) -> Iterator[ScoredPair]:
    """The rows of a batch whose columns fit, each one checked; all ids are below `ids_below`, where that is known."""
    columns = {name: _arrays(batch[name]) for name in batch.schema.names if name in READ}
    absent = [None] * len(batch)
    for pair_id, *cells in zip(*(columns.get(name, absent) for name in READ), strict=True):
        # What is too large for a float32 becomes an infinity.
        with np.errstate(over="ignore"):
            values: list[Any] = [None if cell is None else cell.astype(np.float32, copy=False) for cell in cells[3:]]
        scores, reference, weights = values[:2], values[2:4], values[4:]
        row = ScoredPair(
            TokenPair(pair_id, *cells[:3]),
            PairLogps(*scores),
            None if any(each is None for each in reference) else PairLogps(*reference),
            None if all(each is None for each in weights) else PairWeights(*weights),
        )
        check_row(row, where, ids_below)
        yield row._replace(pair=TokenPair(pair_id, *(ids.astype(np.int32, copy=False) for ids in cells[:3])))


def _arrays(column: pa.Array) -> list[Any]:
    """A column as one numpy array (or None) a row, without a Python object for every token; a null is a NaN there."""
    if pa.types.is_integer(column.type):
        return list(column.to_pylist())
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return [values[offsets[i] : offsets[i + 1]] if valid[i] else None for i in range(len(column))]


def check_row(row: ScoredPair, where: str, ids_below: int | None = None) -> None:
    """Refuse a row whose parts do not fit together; arguments as `rows_of`."""
    pair = row.pair
    prefix = f"{where}: pair {pair.pair_id} has"
    if pair.pair_id is None or not 0 <= pair.pair_id < 1 << 63:
        raise SepoError(f"{prefix} no row number for a pair_id", hint="number the rows of the data set from 0")
    for name, ids in zip(SCHEMA.names[1:4], pair.parts, strict=True):
        _check_ids(prefix, name, ids, min(ids_below or ID_BOUND, ID_BOUND))
    for what, sides in (("scores", row.scores), ("reference_logps", row.reference), ("weights", row.weights)):
        for side, ids, values in zip(SIDES, pair.parts[1:], sides or (), strict=sides is not None):
            _check_values(prefix, side, what, ids, values)


def _check_ids(prefix: str, name: str, ids: Any, below: int) -> None:
    if ids is None or len(ids) == 0:
        raise SepoError(f"{prefix} no {name}", hint="a row needs a prompt and two responses")
    if ids.dtype.kind == "f" and np.isnan(ids).any():
        raise SepoError(f"{prefix} a null in {name}", hint="every token has an id")
    if np.min(ids) < 0:
        raise SepoError(f"{prefix} a negative id in {name}", hint="ids are rows of the token->id map")
    if np.max(ids) >= below:
        raise SepoError(
            f"{prefix} the id {int(np.max(ids)):,} in {name}, where all are below {below:,}",
            hint="ids are rows of the token->id map that the manifest names by its hash and size",
        )


def _check_values(prefix: str, side: str, what: str, ids: Ids, values: Any) -> None:
    name = f"{side}_{what}"
    if values is None or len(values) == 0:
        raise SepoError(f"{prefix} no {name}", hint="every response has scores; give weights for both, or for none")
    if len(values) != len(ids):
        said = f"{len(ids)} {side}_ids and {len(values)} {name}"
        raise SepoError(f"{prefix} {said}", hint="every response token needs exactly one value")
    finite = np.isfinite(values)
    if not finite.all():
        said = f"a {name} that is not finite, at token {np.argmin(finite)}"
        raise SepoError(f"{prefix} {said}", hint="look at that pair; a model in half precision may overflow")
    if what == "weights" and np.min(values) < 0:
        said = f"a negative weight in {name}, at token {np.argmin(values)}"
        raise SepoError(f"{prefix} {said}", hint="0 leaves a token out")
