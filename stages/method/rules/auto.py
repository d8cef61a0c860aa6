"""A share of its own for every response."""

from itertools import chain

import numpy as np

from stages.method.selection import CUT_TIES, Evidence, Mask, Selection, by_side, cuts_ties, never_empty, signed
from stages.types import Floats


def auto(evidence: Evidence, *, auto_share: float) -> Selection:
    """the fewest tokens that hold a share of their response's reward, none of them within the scorer's noise

    Why: a fixed k takes noise where few tokens matter and leaves reward where many do. The paper's own picture of a
    good k is its Figure 1, the share of a response's reward that the top k tokens hold (0.8 of it at about 0.3 of the
    tokens); so that share is what is given, and k follows for each response. A token's reward is how far its score
    is beyond the scorer's noise (99th percentile of its measured error, 0 if nothing was measured), on the side that
    is wanted: up in a chosen response, down in a rejected one. Others have none: their sign could be chance. Where
    no token has any, the best one is taken.
    """
    noise = evidence.noise or 0.0
    keys = [signed(row.scores) for row in evidence.rows]
    sides = [[key.chosen for key in keys], [key.rejected for key in keys]]
    (chosen, few), (rejected, more) = (
        never_empty([_fewest(key, noise, auto_share) for key in side], side) for side in sides
    )
    empty = few + more
    notes = {"responses with no token beyond the noise, whose best one was taken": empty} if empty else {}
    ties = sum(cuts_ties(key, mask) for key, mask in zip(chain(*sides), chain(chosen, rejected), strict=True))
    if ties:
        notes[CUT_TIES] = ties
    if evidence.noise is None:
        notes["pairs whose scorer did not measure its noise, which was taken to be 0"] = len(keys)
    return Selection(by_side(chosen, rejected), notes)


def _fewest(keys: Floats, noise: float, share: float) -> Mask:
    """The fewest tokens whose keys beyond the noise sum up to a share of all such; ties go to the earlier token."""
    beyond = np.maximum(keys.astype(np.float64) - noise, 0.0)
    order = np.argsort(-beyond, kind="stable")
    sums = np.cumsum(beyond[order])
    mask = np.zeros(len(keys), bool)
    if sums[-1] > 0:
        # Rounding must not ask for a token more than the sum needs.
        mask[order[: int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12))) + 1]] = True
    return mask & (beyond > 0)
