"""Log-probs that were computed once: `sepo train-oracle` writes those of the reference, `sepo score` reads them;
`sepo train-policy` keeps its own for a run that goes on.

One Parquet file, a row a pair, found again by the hash of the pair's ids (`stages.types.content_hash`): it does not
matter from which data set, or in which order, the pairs come the next time.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.store.files import write_whole
from stages.store.mapped import in_block
from stages.store.parquet import FLOATS, is_whole_file, write_parquet
from stages.types import Floats, PairLogps, TokenPair, content_hash

FILE: Final = "reference-logps.parquet"
START: Final = "start-logps.parquet"
"""under the model a policy starts from, where that is not the reference"""
_SCHEMA: Final = pa.schema(
    [
        pa.field("content_hash", pa.uint64(), nullable=False),
        pa.field("chosen_logps", FLOATS, nullable=False),
        pa.field("rejected_logps", FLOATS, nullable=False),
    ]
)
_MODEL: Final = b"sepo.model"
GROUP_PAIRS: Final = 1024
"""pairs of a row group, which are read together"""
_GROUPS_IN_MEMORY: Final = 4
"""pairs are asked for in about the order they were written in, perhaps from two or three places in turn"""


class KnownLogps:
    """Log-probs of some pairs under one model, by the pairs' content.

    Their hashes are held in memory, 16 bytes a pair; log-probs are read as they are asked for, a row group at a time.
    """

    def __init__(self, parquet: pq.ParquetFile) -> None:
        hashes = _hashes_in(parquet)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        metadata = parquet.metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._parquet = parquet
        self._columns_of = lru_cache(_GROUPS_IN_MEMORY)(self._read)

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, pair: TokenPair) -> PairLogps | None:
        """The log-probs of a pair's responses, if they are here."""
        wanted = np.uint64(content_hash(pair))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self) or self._hashes[place] != wanted:
            return None
        row = int(self._order[place])
        group, at = in_block(self._starts, row)
        found = PairLogps(*(values[ends[at] : ends[at + 1]] for values, ends in self._columns_of(group)))
        fits = len(found.chosen) == len(pair.chosen_ids) and len(found.rejected) == len(pair.rejected_ids)
        return found if fits else None

    def _read(self, group: int) -> list[tuple[Floats, NDArray[np.int32]]]:
        table = self._parquet.read_row_group(group, ["chosen_logps", "rejected_logps"])
        columns = (column.combine_chunks() for column in table.columns)
        return [(column.values.to_numpy(), column.offsets.to_numpy()) for column in columns]


def write_logps(
    folder: Path, pairs: Iterable[TokenPair], logps: Iterable[PairLogps], model: str, name: str = FILE
) -> None:
    """Write what the model of this hash (`stages.models.folders.model_hash`) gave pairs, whole or not at all."""
    schema = _SCHEMA.with_metadata({_MODEL: model})

    def tables() -> Iterator[pa.Table]:
        rows = zip(pairs, logps, strict=True)
        while some := [*islice(rows, GROUP_PAIRS)]:
            columns = {
                "content_hash": [content_hash(pair) for pair, _ in some],
                "chosen_logps": [each.chosen for _, each in some],
                "rejected_logps": [each.rejected for _, each in some],
            }
            yield pa.Table.from_pydict(columns, schema=schema)

    write_whole(folder / name, lambda path: write_parquet(path, schema, tables()))


def part_name(name: str, number: int) -> str:
    """Where the log-probs of some of the pairs wait until those of all are there."""
    return f".{name}.{number:05d}.part"


def forget_parts(folder: Path, name: str) -> None:
    """The whole file is written: its parts are of no more use."""
    for path in folder.glob(part_name(name, 0).replace("00000", "*")):
        path.unlink(missing_ok=True)


def read_logps(folder: Path, model: str, name: str = FILE) -> KnownLogps | None:
    """The log-probs under the model with this hash; None if none are there whole: they are computed again."""
    parquet = _open(folder / name)
    if parquet is None or (parquet.schema_arrow.metadata or {}).get(_MODEL) != model.encode():
        return None
    return KnownLogps(parquet) if parquet.schema_arrow.equals(_SCHEMA) else None


def read_hashes(path: Path) -> NDArray[np.uint64] | None:
    """The `content_hash` of every pair, in the order in which `write_logps` was given them; None as in `read_logps`."""
    parquet = _open(path)
    return None if parquet is None else _hashes_in(parquet)


def _hashes_in(parquet: pq.ParquetFile) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = parquet.read(["content_hash"])["content_hash"].to_numpy()
    return found


def _open(path: Path) -> pq.ParquetFile | None:
    try:
        with path.open("rb") as file:
            whole = is_whole_file(file)
        # It stays open: a file that takes its place meanwhile is not read instead.
        return pq.ParquetFile(path) if whole else None
    except OSError:
        return None
