"""The currency of the data border: what a preference pair is as text and as token ids."""

from typing import NamedTuple

Message = dict[str, str]
"""A turn of a conversation: ``{"role": "user", "content": "..."}``."""


class Pair(NamedTuple):
    """One row of a preference data set, as text.

    `prompt` is a list of messages that ends where an answer is expected (a string prompt is one user message);
    `chosen` and `rejected` are the texts of the two answers. In an SFT data set `rejected` is empty.
    """

    pair_id: int
    """row number in the data set it was read from, from 0, before anything was dropped"""
    prompt: list[Message]
    chosen: str
    rejected: str


class Dropped(NamedTuple):
    """A row that cannot be used, and why, in the words that the counts will show."""

    pair_id: int
    reason: str


class TokenPair(NamedTuple):
    """One pair as token ids. A response includes its end-of-turn token if it has one."""

    pair_id: int
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
