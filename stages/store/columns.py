"""Rows of a shard as flat columns, for who looks at many tokens: no Python object for a row or a token.

Shapes: ``P`` rows; ``T`` tokens of a side in all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.store.rows import ID_BOUND, READ, REQUIRED, rows_of
from stages.types import SIDES, Floats, Ids, PairLogps, PairWeights, ScoredPair, TokenPair

Offsets = NDArray[np.int64]


class Side(NamedTuple):
    """The chosen or the rejected responses of some rows."""

    ids: Ids
    """(T,)"""
    scores: Floats
    """(T,)"""
    reference: Floats | None
    """(T,) log-probs, NaN in a row that has none; None where no row has any"""
    weights: Floats | None
    """(T,) as `reference`"""
    offsets: Offsets
    """(P + 1,): response i is ``[offsets[i]:offsets[i + 1]]``"""

    @property
    def lengths(self) -> Offsets:
        """(P,) tokens of each response"""
        return np.diff(self.offsets)


class ScoreColumns(NamedTuple):
    """Some rows that follow each other."""

    start: int
    """row number in the folder of the first one, from 0"""
    pair_ids: NDArray[np.int64]
    """(P,)"""
    prompt_ids: Ids
    """flat"""
    prompt_offsets: Offsets
    """(P + 1,)"""
    chosen: Side
    rejected: Side

    @property
    def lengths(self) -> Offsets:
        """(P,) tokens of each pair's longer row, prompt included"""
        return np.diff(self.prompt_offsets) + np.maximum(self.chosen.lengths, self.rejected.lengths)

    def only(self, keep: NDArray[np.bool_]) -> "ScoreColumns":
        """Those of the rows (P,) that are to be kept, of which there is one."""
        if keep.all():
            return self
        rows = self.rows()
        return joined([rows[index] for index in np.flatnonzero(keep)], self.start)

    def rows(self, first: int = 0, end: int | None = None) -> list[ScoredPair]:
        """The same row by row, or those of some rows; arrays are views."""
        some = slice(first, None if end is None else end + 1)
        prompts = _views(self.prompt_ids, self.prompt_offsets[some])
        sides = self.chosen, self.rejected
        ids, scores, references, weights = (
            zip(*(_views(side[kind], side.offsets[some]) for side in sides), strict=True) for kind in range(4)
        )
        return [
            ScoredPair(
                TokenPair(pair_id, prompt, *pair_ids),
                PairLogps(*pair_scores),
                None if logps[0] is None else PairLogps(*logps),
                None if given[0] is None else PairWeights(*given),
            )
            for pair_id, prompt, pair_ids, pair_scores, logps, given in zip(
                self.pair_ids[first:end].tolist(), prompts, ids, scores, references, weights, strict=True
            )
        ]


def columns_of(batch: pa.RecordBatch, where: str, ids_below: int | None, start: int) -> ScoreColumns:
    """A batch whose columns fit, checked as `rows_of` checks its rows, which judges whatever looks odd here.

    Args:
        ids_below: number of ids of the tokenizer, if it is known.
        start: row number of the first row in the folder.

    Raises:
        SepoError: a row contradicts itself.
    """
    return _flat(batch, ids_below, start) or joined([*rows_of(batch, where, ids_below)], start)


def _flat(batch: pa.RecordBatch, ids_below: int | None, start: int) -> ScoreColumns | None:
    """The columns as Arrow holds them; None where a row may be faulty, or has what another one lacks."""
    pair_ids, below = batch["pair_id"], min(ids_below or ID_BOUND, ID_BOUND)
    names = [name for name in READ[1:] if name in batch.schema.names and batch[name].null_count < len(batch)]
    if {*REQUIRED[1:]} - {*names} or any(batch[name].null_count for name in ("pair_id", *names)):
        return None
    lists = {name: _list(batch[name]) for name in names}
    numbers = pair_ids.to_numpy()
    sides = [_side(lists, side, below) for side in SIDES]
    chosen, rejected = sides
    if chosen is None or rejected is None or not _are_ids(*lists["prompt_ids"], below):
        return None
    unequal = any((one is None) != (other is None) for one, other in zip(chosen, rejected, strict=True))
    if unequal or numbers.dtype == np.uint64 or numbers.min() < 0:
        return None
    prompt_ids, offsets = lists["prompt_ids"]
    prompt_ids = prompt_ids.astype(np.int32, copy=False)
    return ScoreColumns(start, numbers.astype(np.int64, copy=False), prompt_ids, offsets, chosen, rejected)


def _side(lists: Mapping[str, tuple[NDArray[Any], Offsets]], side: str, below: int) -> Side | None:
    """One side's columns; None where a row of it may be faulty."""
    ids, offsets = lists[f"{side}_ids"]
    columns = [lists.get(f"{side}_{kind}") for kind in ("scores", "reference_logps", "weights")]
    if not _are_ids(ids, offsets, below) or not all(
        each is None or np.array_equal(each[1], offsets) for each in columns
    ):
        return None
    with np.errstate(over="ignore"):
        floats = [None if each is None else each[0].astype(np.float32, copy=False) for each in columns]
    scores, reference, weights = floats
    if scores is None or not all(each is None or np.isfinite(each).all() for each in floats):
        return None
    if weights is not None and weights.min() < 0:
        return None
    return Side(ids.astype(np.int32, copy=False), scores, reference, weights, offsets)


def _list(column: pa.Array) -> tuple[NDArray[Any], Offsets]:
    """The values of a column of lists without nulls, flat, and where each row's begin; a null among them is a NaN."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0]


def _are_ids(ids: NDArray[Any], offsets: Offsets, below: int) -> bool:
    full = len(ids) > 0 and bool(np.diff(offsets).all()) and ids.dtype.kind != "f"
    return full and int(ids.min()) >= 0 and int(ids.max()) < below


def joined(rows: list[ScoredPair], start: int) -> ScoreColumns:
    """Rows as columns."""

    def side(name: str) -> Side:
        ids = [getattr(row.pair, f"{name}_ids") for row in rows]
        scores, reference, weights = (
            _filled([getattr(getattr(row, kind), name, None) for row in rows], ids)
            for kind in ("scores", "reference", "weights")
        )
        assert scores is not None
        return Side(np.concatenate(ids), scores, reference, weights, _offsets(ids))

    prompts = [row.pair.prompt_ids for row in rows]
    pair_ids = np.array([row.pair.pair_id for row in rows], np.int64)
    return ScoreColumns(start, pair_ids, np.concatenate(prompts), _offsets(prompts), side("chosen"), side("rejected"))


def _filled(values: list[Floats | None], ids: list[Ids]) -> Floats | None:
    """Values of rows that may have none, flat, NaN there; None where no row has any."""
    if all(each is None for each in values):
        return None
    nothing = [np.full(len(each), np.nan, np.float32) for each in ids]
    return np.concatenate([lack if each is None else each for each, lack in zip(values, nothing, strict=True)])


def _offsets(arrays: Sequence[NDArray[Any]]) -> Offsets:
    return np.cumsum([0, *map(len, arrays)], dtype=np.int64)


def _views(values: NDArray[Any] | None, offsets: Offsets) -> list[Any]:
    """Each row's values; None where it has none."""
    ends = offsets.tolist()
    if values is None:
        return [None] * (len(ends) - 1)
    lacks = np.isnan(values[offsets[:-1]]).tolist()
    return [None if lack else values[low:high] for lack, low, high in zip(lacks, ends, ends[1:], strict=False)]
