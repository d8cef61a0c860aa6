"""A bound on the score instead of a share of the tokens."""

from stages.method.selection import Evidence, Selection, by_side, never_empty, signed


def threshold(evidence: Evidence, *, threshold: float) -> Selection:
    """scores of at least T in chosen responses, of at most -T in rejected ones

    A response without such a token keeps its best one (its worst, if rejected): a pair is a comparison of two.
    """
    keys = [signed(row.scores) for row in evidence.rows]
    chosen, few = never_empty([key.chosen >= threshold for key in keys], [key.chosen for key in keys])
    rejected, more = never_empty([key.rejected >= threshold for key in keys], [key.rejected for key in keys])
    empty = few + more
    notes = {"responses with no token beyond the threshold, whose best one was taken": empty} if empty else {}
    return Selection(by_side(chosen, rejected), notes)
