"""Which part of a text each of its tokens is."""

from collections.abc import Callable, Sequence
from typing import Final

UNFINISHED: Final = "\ufffd"
"""what a decoder writes for bytes that are no character, or not yet"""
_LONGEST: Final = 16
"""tokens after which bytes are taken for what will never become a character"""


def text_parts(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """Each token's part of the text of all; alone, some would lose a blank or be no character.

    Of several tokens that make one character together the last one has it, and the others have nothing. A token is
    decoded behind the one before it, so that time rises with the number of tokens and not with its square.
    """
    parts, before = [], ""
    first = begin = 0
    """of the tokens decoded, and of those behind the last whole character"""
    for end in range(1, len(ids) + 1):
        text = decode([*ids[first:end]])
        finished = text.rstrip(UNFINISHED)
        parts.append(finished[len(before) :])
        # A byte that begins a character can make all bytes before it unreadable, until the character is whole.
        before = max(before, finished, key=len)
        if text == finished or end - begin >= _LONGEST:
            first, begin = max(begin, end - _LONGEST), end
            before = decode([*ids[first:end]])
    return parts
