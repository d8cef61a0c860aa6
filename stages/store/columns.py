"""Rows of a shard as flat columns, for who looks at many tokens: no Python object for a row or a token.

Shapes: ``P`` rows; ``T`` tokens of a side in all of them.
"""

from typing import NamedTuple

from numpy.typing import NDArray

from stages.types import Floats, Ids


class Side(NamedTuple):
    """The chosen or the rejected responses of some rows."""

    ids: Ids
    """(T,)"""
    scores: Floats
    """(T,)"""
    offsets: NDArray
    """(P + 1,): response i is ``[offsets[i]:offsets[i + 1]]``"""
    reference: Floats | None
    """(T,) log-probs, NaN in a row that has none; None where no row has any"""
    weights: Floats | None
    """(T,) as `reference`"""


class ScoreColumns(NamedTuple):
    """Some rows that follow each other."""

    start: int
    """row number in the folder of the first one, from 0"""
    pair_ids: NDArray
    """(P,)"""
    prompt_ids: Ids
    """flat"""
    prompt_offsets: NDArray
    """(P + 1,)"""
    chosen: Side
    rejected: Side
