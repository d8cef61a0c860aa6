"""Log-probs that were computed once: `sepo train-oracle` writes those of the reference, `sepo score` reads them;
`sepo train-policy` keeps its own for a run that goes on.

One Parquet file, a row a pair, found again by the hash of the pair's ids (`stages.types.content_hash`): it does not
matter from which data set, or in which order, the pairs come the next time.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.store.files import write_bytes
from stages.store.parquet import is_whole, parquet_bytes
from stages.types import PairLogps, TokenPair, content_hash

FILE: Final = "reference-logps.parquet"
START: Final = "start-logps.parquet"
"""under the model a policy starts from, where that is not the reference"""
_FLOATS: Final = pa.list_(pa.field("element", pa.float32(), nullable=False))
_SCHEMA: Final = pa.schema(
    [
        pa.field("content_hash", pa.uint64(), nullable=False),
        pa.field("chosen_logps", _FLOATS, nullable=False),
        pa.field("rejected_logps", _FLOATS, nullable=False),
    ]
)
_MODEL: Final = b"sepo.model"


class KnownLogps:
    """Log-probs of some pairs under one model, by the pairs' content."""

    def __init__(self, table: pa.Table) -> None:
        hashes = table["content_hash"].to_numpy()
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._columns = [table[name].combine_chunks() for name in ("chosen_logps", "rejected_logps")]

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, pair: TokenPair) -> PairLogps | None:
        """The log-probs of a pair's responses, if they are here."""
        wanted = np.uint64(content_hash(pair))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self) or self._hashes[place] != wanted:
            return None
        row = int(self._order[place])
        found = PairLogps(*(column[row].values.to_numpy() for column in self._columns))
        fits = len(found.chosen) == len(pair.chosen_ids) and len(found.rejected) == len(pair.rejected_ids)
        return found if fits else None


def write_logps(
    folder: Path, pairs: Iterable[TokenPair], logps: Iterable[PairLogps], model: str, name: str = FILE
) -> None:
    """Write what the model of this hash (`stages.models.folders.model_hash`) gave pairs, whole or not at all."""
    rows = list(zip(pairs, logps, strict=True))
    columns = {
        "content_hash": [content_hash(pair) for pair, _ in rows],
        "chosen_logps": [each.chosen for _, each in rows],
        "rejected_logps": [each.rejected for _, each in rows],
    }
    table = pa.Table.from_pydict(columns, schema=_SCHEMA.with_metadata({_MODEL: model}))
    write_bytes(folder / name, parquet_bytes(table))


def part_name(name: str, number: int) -> str:
    """Where the log-probs of some of the pairs wait until those of all are there."""
    return f".{name}.{number:05d}.part"


def forget_parts(folder: Path, name: str) -> None:
    """The whole file is written: its parts are of no more use."""
    for path in folder.glob(part_name(name, 0).replace("00000", "*")):
        path.unlink(missing_ok=True)


def read_logps(folder: Path, model: str, name: str = FILE) -> KnownLogps | None:
    """The log-probs under the model with this hash; None if none are there whole: they are computed again."""
    table = read_whole_table(folder / name)
    if table is None:
        return None
    metadata = table.schema.metadata or {}
    if metadata.get(_MODEL) != model.encode() or not table.schema.equals(_SCHEMA):
        return None
    return KnownLogps(table)


def read_whole_table(path: Path) -> pa.Table | None:
    """What `write_logps` wrote; None if there is none, or it is not that to the bit."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return pq.read_table(pa.BufferReader(data)) if is_whole(data) else None
