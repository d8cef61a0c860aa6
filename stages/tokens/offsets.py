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


class ResponseOffsets(NamedTuple):
    """A response as ids, its text as the author wrote it but for blanks around it, and where in that each id ends."""

    ids: Ids
    text: str
    ends: NDArray[np.float64]
    """(tokens,), in characters; an end of turn is a character of its own behind the text"""


class PairOffsets(NamedTuple):
    pair_id: int
    prompt_ids: Ids
    chosen: ResponseOffsets
    rejected: ResponseOffsets


def response_offsets(ids: Ids, written: str, offsets: Offsets, body: str, *, ended: bool) -> ResponseOffsets:
    """
    Args:
        written: the text of the ids, as the chat template wrote it.
        offsets: of each id in that text; of an end of turn that the text does not spell, its end.
        body: `written` without what the template writes behind every answer.
        ended: whether the last id is an end of turn.
    """
    text = body.strip()
    ends = np.clip(token_ends(offsets, len(written)) - body.index(text), 0, len(text))
    if ended:
        ends[-1] = len(text) + 1
    return ResponseOffsets(ids, text, ends)


def token_ends(offsets: Offsets, length: int) -> NDArray[np.float64]:
    """(tokens,) where each token ends if every one of `length` characters is of one token, or shared evenly."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    begun = np.bincount(starts, minlength=length + 1) - np.bincount(ends, minlength=length + 1)
    tokens = np.cumsum(begun)[:length]
    share = np.divide(1.0, tokens, out=np.zeros(length), where=tokens > 0)
    own = np.append(0.0, np.cumsum(share))
    lost = np.append(0, np.cumsum(tokens == 0))
    # A third, three times over, is to be the same end as one character.
    return np.round(np.cumsum(own[ends] - own[starts]) + np.maximum.accumulate(lost[starts]), 9)
