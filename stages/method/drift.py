"""Drift: what DPO does to tokens that chosen and rejected responses share, which its loss cannot see.

Only the difference of two responses enters DPO's loss, so a token that both contain may move by any amount. A score
that is mostly drift ranks tokens by how common they are, not by how good they are.
"""

from typing import Final, NamedTuple

SHARED_TYPES: Final = 10
LIMIT: Final = 0.5
LIMIT_OF_ONE: Final = 2.0


class Drift(NamedTuple):
    """In nats."""

    median: float
    """of the first million scores"""
    spread: float
    """standard deviation of all scores"""
    shared: float
    """mean score of the token types that chosen and rejected responses share most"""
    worst_id: int
    """the one of those types whose mean is farthest from 0"""
    worst: float
    worst_token: str = ""
    """that type as text"""

    @property
    def large(self) -> bool:
        """Whether what both sides share moved by half the spread of all scores, or one such type by twice it."""
        together, alone = max(abs(self.median), abs(self.shared)), abs(self.worst)
        return together > LIMIT * self.spread or alone > LIMIT_OF_ONE * self.spread
