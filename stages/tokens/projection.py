"""Scores of one tokenizer's tokens as scores of another one's, over the text that both cut up.

A token's score is spread evenly over its characters; a token of the other tokenizer takes what lies on its own::

    one      the |splendid| lake|.|end
    other    the| splen|did |lake.|end

What is conserved is the sum over every stretch between two borders that both tokenizers have, and so that of the whole
response. The end of turn is a stretch of its own, one character wide, behind the last character.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.tokens.encode import SAME_WHEN_CUT, Encoder
from stages.tokens.offsets import ResponseOffsets
from stages.types import Dropped, Floats, Ids, Pair, PairLogps, ScoredPair, TokenPair

OTHER_TEXT: Final = "the data set's response is not the one that was scored"
OTHER_WRITING: Final = "the two chat templates write another answer"
NOTHING_SCORED: Final = "cut before the first letter"

Borders = NDArray[np.float64]
"""(tokens,) where each token ends, in characters from the beginning of the text; never falling"""


def project_pair(row: ScoredPair, pair: Pair | Dropped, scored: Encoder, wanted: Encoder) -> ScoredPair | Dropped:
    """A row of the scored tokens as one of the wanted tokenizer's, by way of its text."""
    if isinstance(pair, Dropped):
        return pair
    before, after = scored.offsets(pair), wanted.offsets(pair)
    if isinstance(before, Dropped):
        return Dropped(pair.pair_id, OTHER_TEXT)
    if isinstance(after, Dropped):
        return after
    chosen = _project_response(row.pair.chosen_ids, row.scores.chosen, before.chosen, after.chosen)
    rejected = _project_response(row.pair.rejected_ids, row.scores.rejected, before.rejected, after.rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        return Dropped(pair.pair_id, chosen if isinstance(chosen, str) else str(rejected))
    (chosen_ids, chosen_scores), (rejected_ids, rejected_scores) = chosen, rejected
    if np.array_equal(chosen_ids, rejected_ids):
        return Dropped(pair.pair_id, SAME_WHEN_CUT)
    ids = TokenPair(pair.pair_id, after.prompt_ids, chosen_ids, rejected_ids)
    return ScoredPair(ids, PairLogps(chosen_scores, rejected_scores), None)


def _project_response(
    ids: Ids, scores: Floats, scored: ResponseOffsets, wanted: ResponseOffsets
) -> tuple[Ids, Floats] | str:
    """A response's ids and scores in the other tokenizer, or why there are none; what was scored may have been cut."""
    count = len(ids)
    if not np.array_equal(ids, scored.ids[:count]):
        return OTHER_TEXT
    if scored.text != wanted.text:
        return OTHER_WRITING
    ends, others = scored.ends[:count], wanted.ends.copy()
    if ends[-1] == 0:
        return NOTHING_SCORED
    if count < len(scored.ids):
        # It did not end there, and the last of the other tokens may reach beyond the cut.
        others = others[: np.searchsorted(others, ends[-1]) + 1]
    others[-1] = max(others[-1], ends[-1])
    return wanted.ids[: len(others)], project(scores, ends, others)


def project(scores: Floats, borders: Borders, other_borders: Borders) -> Floats:
    """Scores of the tokens that end at `other_borders`.

    Args:
        scores: (n,) of the tokens that end at `borders`.
        borders: (n,), the last one above 0. A token without characters gives its score to the one before it that has
            some, and so never to the end of turn; where there is none before it, to the first.
        other_borders: (m,), the last one not before the last of `borders`. A token without characters gets 0.

    Returns:
        (m,), with the sum of `scores`, up to rounding to float32.
    """
    wide = np.flatnonzero(np.diff(borders, prepend=0.0) > 0)
    totals = np.cumsum(scores, dtype=np.float64)
    reached = totals[np.append(wide[1:], len(totals)) - 1]
    passed = np.interp(other_borders, np.append(0.0, borders[wide]), np.append(0.0, reached))
    projected: Floats = np.diff(passed, prepend=0.0).astype(np.float32)
    return projected
