"""Scores of one tokenizer's tokens as scores of another one's, over the text that both cut up.

A token's score is spread evenly over its characters; a token of the other tokenizer takes what lies on its own::

    one      the |splendid| lake|.|end
    other    the| splen|did |lake.|end

What is conserved is the sum over every stretch between two borders that both tokenizers have, and so that of the whole
response. The end of turn is a stretch of its own, one character wide, behind the last character.
"""

import numpy as np
from numpy.typing import NDArray

from stages.types import Floats

Borders = NDArray[np.float64]
"""(tokens,) where each token ends, in characters from the beginning of the text; never falling"""


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
