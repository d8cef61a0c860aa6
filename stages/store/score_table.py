"""The scored pairs of a run, mapped into memory: read and checked once, by one process, for all that train on them.

The file is uncompressed, lies in the run's folder while the run lasts, and holds the pairs that are short enough.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from stages.errors import SepoError
from stages.reporting import Reporter, Task
from stages.store.alarms import Scale, alarms
from stages.store.columns import ScoreColumns, Side
from stages.store.files import writing
from stages.store.mapped import flat_values, in_block, list_array, open_shared, write_batches
from stages.store.scores import Scores
from stages.types import SIDES, Lazy, PairLogps, ScoredPair

_KINDS: Final = {"ids": pa.int32(), "scores": pa.float32(), "reference": pa.float32(), "weights": pa.float32()}
"""what `Side` holds, by name"""
_SCHEMA: Final = pa.schema(
    [("pair_id", pa.int64()), ("prompt_ids", pa.large_list(pa.int32()))]
    + [(f"{side}_{kind}", pa.large_list(value)) for side in SIDES for kind, value in _KINDS.items()]
)


class ScoreTable(Lazy[ScoredPair]):
    """The pairs of `write_score_table`, opened. Arrays are read-only views into the file."""

    def __init__(self, path: Path) -> None:
        self._file = open_shared(path)
        self._blocks = [_columns(batch) for batch in self._file.batches]
        self._starts = np.cumsum([0, *(len(block.pair_ids) for block in self._blocks)])
        summary = self._file.summary
        self.too_long: int = summary["too_long"]
        """pairs that were left out"""
        self.highest_id: int = summary["highest_id"]
        """of all tokens"""
        self.alarms: list[str] = summary["alarms"]
        """`stages.store.alarms.alarms` of the pairs that were kept"""
        self.referenced: bool = summary["referenced"]
        """whether every pair has reference log-probs"""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[ScoredPair]:
        for batch in self._file.read():
            yield from _columns(batch).rows()

    def at(self, index: int) -> ScoredPair:
        block, row = in_block(self._starts, index)
        [found] = self._blocks[block].rows(row, row + 1)
        return found


def write_score_table(scores: Scores, path: Path, max_length: int, reporter: Reporter) -> None:
    """Write the pairs of a folder that are at most so long, of which there must be one, as a `ScoreTable`."""
    count = scores.manifest["counts"]["kept"]
    scale, kept, highest, referenced = Scale(), 0, 0, True
    summary: dict[str, object] = {}

    def batches(task: Task) -> Iterator[pa.RecordBatch]:
        nonlocal kept, highest, referenced
        for columns in scores.columns():
            task.advance(len(columns.pair_ids))
            keep = columns.lengths <= max_length
            if not keep.any():
                continue
            short = columns.only(keep)
            sides = short.chosen, short.rejected
            scale.add(PairLogps(*(side.scores for side in sides)))
            highest = max(highest, *(int(ids.max()) for ids in (short.prompt_ids, *(side.ids for side in sides))))
            referenced = referenced and all(
                side.reference is not None and not np.isnan(side.reference).any() for side in sides
            )
            kept += len(short.pair_ids)
            yield _batch(short)
        summary.update(
            too_long=count - kept, highest_id=highest, alarms=alarms(scale, scores.manifest), referenced=referenced
        )

    hint = "free the space: the pairs lie there uncompressed while the run lasts"
    # Around the writing, so that it has ended when an error is said.
    with reporter.task(f"read {scores.folder}", count, "pairs") as task, writing(path, hint), path.open("wb") as file:
        write_batches(file, _SCHEMA, batches(task), summary)
    if not kept:
        problem = f"{scores.folder}: all {count:,} pairs are longer than {max_length:,} tokens"
        raise SepoError(problem, hint="raise --max-length")


def _batch(columns: ScoreColumns) -> pa.RecordBatch:
    arrays = [pa.array(columns.pair_ids), list_array(columns.prompt_ids, columns.prompt_offsets)]
    for side in (columns.chosen, columns.rejected):
        flat = [getattr(side, kind) for kind in _KINDS]
        nothing = pa.nulls(len(columns.pair_ids))
        arrays += [nothing if values is None else list_array(values, side.offsets) for values in flat]
    return pa.record_batch([each.cast(field.type) for each, field in zip(arrays, _SCHEMA, strict=True)], schema=_SCHEMA)


def _columns(batch: pa.RecordBatch) -> ScoreColumns:
    def side(name: str) -> Side:
        ids, scores, reference, weights = (batch[f"{name}_{kind}"] for kind in _KINDS)
        return Side(
            ids.values.to_numpy(),
            scores.values.to_numpy(),
            flat_values(reference),
            flat_values(weights),
            ids.offsets.to_numpy(),
        )

    prompts = batch["prompt_ids"]
    return ScoreColumns(
        0, batch["pair_id"].to_numpy(), prompts.values.to_numpy(), prompts.offsets.to_numpy(), *map(side, SIDES)
    )
