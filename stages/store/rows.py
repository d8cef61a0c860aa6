"""The rows of a shard: what each column holds, and what a row has to be, whoever wrote it."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

from stages.errors import SepoError
from stages.store.manifest import FORMAT
from stages.types import Floats, Ids, PairLogps, PairWeights, ScoredPair, TokenPair

_IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))
_FLOATS = pa.list_(pa.field("element", pa.float32(), nullable=False))
SIDES: Final = ("chosen", "rejected")
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
_HIGHEST_ID: Final = (1 << 31) - 1
_REMEDY: Final = "see the README on writing scores yourself"
_BEYOND: Final = "ids are rows of the token->id map that the manifest names by its hash and size"


def refuse_other_columns(where: str, schema: pa.Schema) -> None:
    """Refuse columns that are not those of `SCHEMA`.

    Any width of integers will do for ids, and of numbers for scores; they are read as int32, if they all fit, and as
    float32. So will large lists. Nothing else is taken for what it is not: a float is no id.

    Raises:
        SepoError: a column is missing, there twice, or of another type; or the shard is of another format.
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
    if name == "pair_id":
        return bool(pa.types.is_integer(found))
    if not pa.types.is_list(found) and not pa.types.is_large_list(found):
        return False
    of_floats = pa.types.is_floating(found.value_type) and not name.endswith("_ids")
    return bool(of_floats or pa.types.is_integer(found.value_type))


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
    """The rows of a batch whose columns fit, each one checked.

    Args:
        ids_below: number of ids of the tokenizer, if it is known.

    Raises:
        SepoError: a row contradicts itself.
    """
    columns = {name: _arrays(batch.column(name)) for name in batch.schema.names if name in READ}
    for index in range(batch.num_rows):
        row = _row({name: values[index] for name, values in columns.items()}, where, ids_below)
        check_row(row, where)
        yield row


def _arrays(column: pa.Array) -> list[Any]:
    """A column as one numpy array (or None) a row, without a Python object for every token."""
    if pa.types.is_integer(column.type):
        return list(column.to_pylist())
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return [values[offsets[i] : offsets[i + 1]] if valid[i] else None for i in range(len(column))]


def _row(cell: dict[str, Any], where: str, ids_below: int | None) -> ScoredPair:
    prefix = f"{where}: pair {cell['pair_id']}"
    found: dict[str, Any] = {
        name: _ids(value, name, prefix, ids_below) if name.endswith("_ids") else _floats(value)
        for name, value in cell.items()
        if name != "pair_id"
    }
    reference = None
    if found.get("chosen_reference_logps") is not None and found.get("rejected_reference_logps") is not None:
        reference = PairLogps(found["chosen_reference_logps"], found["rejected_reference_logps"])
    pair = TokenPair(cell["pair_id"], found["prompt_ids"], found["chosen_ids"], found["rejected_ids"])
    weights = None
    if any(found.get(name) is not None for name in WEIGHTS):
        weights = PairWeights(*(found.get(name) for name in WEIGHTS))  # type: ignore[arg-type]  # checked with the row
    return ScoredPair(pair, PairLogps(found["chosen_scores"], found["rejected_scores"]), reference, weights)


def _ids(values: Any, name: str, prefix: str, below: int | None) -> Ids | Any:
    """A cell of ids as int32; None stays None."""
    if values is None or len(values) == 0:
        return values
    # numpy has no null among integers: such a column comes as floats.
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise SepoError(f"{prefix} has a null in {name}", hint="every token has an id")
    highest = int(np.max(values))
    if highest > _HIGHEST_ID or (below is not None and highest >= below):
        bound = _HIGHEST_ID + 1 if below is None else below
        raise SepoError(f"{prefix} has the id {highest:,} in {name}, where all are below {bound:,}", hint=_BEYOND)
    if values.dtype == np.int32:
        return values
    # What is below the least int32 must not come out above 0.
    return np.where(values < 0, -1, values).astype(np.int32)


def _floats(values: Any) -> Floats | Any:
    """A cell of numbers as float32; None stays None. A null has become a NaN, and what is too large an infinity."""
    with np.errstate(over="ignore"):
        return None if values is None else values.astype(np.float32, copy=False)


def check_row(row: ScoredPair, where: str) -> None:
    """Refuse a row whose parts do not fit together."""
    pair = row.pair
    prefix = f"{where}: pair {pair.pair_id}"
    if pair.pair_id is None or not 0 <= pair.pair_id < 1 << 63:
        raise SepoError(f"{prefix} has no row number for a pair_id", hint="number the rows of the data set from 0")
    parts: dict[str, Any] = {name: getattr(pair, name) for name in SCHEMA.names[1:4]}
    parts |= {f"{side}_scores": getattr(row.scores, side) for side in SIDES}
    for name, values in parts.items():
        if values is None or len(values) == 0:
            raise SepoError(f"{prefix} has no {name}", hint="a row needs a prompt and two responses, all scored")
        if name.endswith("_ids") and np.min(values) < 0:
            raise SepoError(f"{prefix} has a negative id in {name}", hint="ids are rows of the token->id map")
    for side in SIDES:
        for what in ("scores", "reference", "weights"):
            if getattr(row, what) is not None:
                _check_side(prefix, side, parts[f"{side}_ids"], getattr(getattr(row, what), side), what)


def _check_side(prefix: str, side: str, ids: Any, values: Any, what: str) -> None:
    name = f"{side}_{'reference_logps' if what == 'reference' else what}"
    if values is None:
        raise SepoError(f"{prefix} has no {name}", hint="give weights for both responses of a row, or for none")
    if len(values) != len(ids):
        message = f"{prefix} has {len(ids)} {side}_ids and {len(values)} {name}"
        raise SepoError(message, hint="every response token needs exactly one value")
    if not np.isfinite(values).all():
        index = int(np.argmin(np.isfinite(values)))
        message = f"{prefix} has a {name} that is not finite, at token {index}"
        raise SepoError(message, hint="look at that pair; a model in half precision may overflow")
    if what == "weights" and np.min(values) < 0:
        message = f"{prefix} has a negative weight in {name}, at token {int(np.argmin(values))}"
        raise SepoError(message, hint="0 leaves a token out")
