"""Where the tokens of a response end, in characters of its text.

A tokenizer says of each token which characters it stands for. They need not tile the text: several tokens may make one
character together (bytes), which they then share evenly, and some characters may be of no token (blanks that a
tokenizer throws away), which then belong to the token behind them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.types import Ids

Offsets = Sequence[tuple[int, int]]
"""of each token, the first of its characters and the one behind its last"""
_DECIMALS = 9


class Located(NamedTuple):
    """A response as ids, its text as the author wrote it but for blanks around it, and where in that each id ends."""

    ids: Ids
    text: str
    borders: NDArray[np.float64]
    """(tokens,), in characters; an end of turn is a character of its own behind the text"""


class LocatedPair(NamedTuple):
    """A pair of located responses."""

    pair_id: int
    prompt_ids: Ids
    chosen: Located
    rejected: Located


def locate(ids: Ids, written: str, offsets: Offsets, body: str, *, ended: bool) -> Located:
    """
    Args:
        ids: of the response.
        written: the text that they are of, as the chat template wrote it.
        offsets: of each id in that text; of an end of turn that the text does not spell, its end.
        body: `written` without what the template writes behind every answer.
        ended: whether the last id is an end of turn.
    """
    text = body.strip()
    borders = np.clip(tile(offsets, len(written)) - body.index(text), 0, len(text))
    if ended:
        borders[-1] = len(text) + 1
    return Located(ids, text, borders)


def tile(offsets: Offsets, length: int) -> NDArray[np.float64]:
    """(tokens,) where each token ends if every one of `length` characters is of one token, or shared evenly."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    begun = np.bincount(starts, minlength=length + 1) - np.bincount(ends, minlength=length + 1)
    tokens = np.cumsum(begun)[:length]
    share = np.divide(1.0, tokens, out=np.zeros(length), where=tokens > 0)
    own = np.append(0.0, np.cumsum(share))
    lost = np.append(0, np.cumsum(tokens == 0))
    borders = np.cumsum(own[ends] - own[starts]) + np.maximum.accumulate(lost[starts])
    # A third, three times over, is to be the same border as one character.
    return np.round(borders, _DECIMALS)
