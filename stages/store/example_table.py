"""What training takes of the scored pairs of a run, mapped into memory: made once, by one process, for all.

Ids and scores stay where the rows are; here lie the weights of the tokens, and what a reference says of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from stages.store.files import writing
from stages.store.mapped import flat_lists, flat_values, in_block, open_shared, write_batches
from stages.store.shards import ROWS_IN_MEMORY
from stages.types import SIDES, Example, Joined, Lazy, PairLogps, PairWeights, PerToken, ReferenceSums, ScoredPair

_LISTS: Final = [f"{side}_{kind}" for kind in ("weights", "reference") for side in SIDES]
_SUMS: Final = [f"{side}_sum" for side in SIDES]
_SCHEMA: Final = pa.schema(
    [("row", pa.int64()), *((name, pa.large_list(pa.float32())) for name in _LISTS)]
    + [(name, pa.float64()) for name in _SUMS]
)


class ExampleTable(Lazy[Example]):
    """The examples of `write_examples`, opened.

    Args:
        rows: what the rule was given.
    """

    def __init__(self, path: Path, rows: Sequence[ScoredPair]) -> None:
        file = open_shared(path)
        self.summary = file.summary
        """what `write_examples` was given"""
        self._rows = rows
        self._blocks = [
            (
                batch["row"].to_numpy(),
                [(flat_values(batch[name]), batch[name].offsets.to_numpy()) for name in _LISTS],
                [batch[name].to_numpy(zero_copy_only=False) for name in _SUMS],
            )
            for batch in file.batches
        ]
        self._starts = np.cumsum([0, *(len(rows) for rows, _, _ in self._blocks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, index: int) -> Example:
        block, at = in_block(self._starts, index)
        rows, lists, sums = self._blocks[block]
        row = self._rows[int(rows[at])]
        cells: list[Any] = [
            None if values is None else values[offsets[at] : offsets[at + 1]] for values, offsets in lists
        ]
        # What is not known was written as a null, which is a NaN here.
        chosen, rejected = (float(each[at]) for each in sums)
        return Example(
            row.pair,
            PairWeights(*cells[:2]),
            None if np.isnan(chosen) else ReferenceSums(chosen, rejected),
            None if cells[2] is None else PerToken(PairLogps(*cells[2:]), row.scores),
        )


def write_examples(path: Path, joined: Iterable[Joined], summary: Mapping[str, Any]) -> None:
    """Write what an `ExampleTable` holds; `summary` is a JSON object, read once all of `joined` was drawn."""
    hint = "free the space: the weights lie there uncompressed while the run lasts"
    with writing(path, hint), path.open("wb") as file:
        write_batches(file, _SCHEMA, _batches(iter(joined)), summary)


def _batches(joined: Iterator[Joined]) -> Iterator[pa.RecordBatch]:
    while some := [*islice(joined, ROWS_IN_MEMORY)]:
        pairs: list[list[Any]] = [[each.weights for each in some], [each.token_reference for each in some]]
        lists = [[getattr(pair, side) for pair in kind] if kind[0] else None for kind in pairs for side in SIDES]
        sums = [[getattr(each.reference, side, None) for each in some] for side in SIDES]
        arrays = [
            pa.array([each.row for each in some], pa.int64()),
            *(pa.nulls(len(some), pa.large_list(pa.float32())) if each is None else flat_lists(each) for each in lists),
            *(pa.array(each, pa.float64()) for each in sums),
        ]
        yield pa.record_batch(arrays, schema=_SCHEMA)
