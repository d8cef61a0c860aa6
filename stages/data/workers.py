"""Pairs to ids, a chunk at a time."""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from stages.currency import Dropped, Pair, TokenPair
from stages.data.encode import Encoder
from stages.data.table import Chunk, chunk_of

ROWS_AT_ONCE: Final = 512
CHARACTERS_AT_ONCE: Final = 1 << 20

Items = Iterable[Pair | Dropped]


class Encoded(NamedTuple):
    """What became of some rows."""

    read: int
    chunk: Chunk
    dropped: list[Dropped]


def encode_all(items: Items, encoder: Encoder) -> Iterator[Encoded]:
    """Every item, in order, in chunks."""
    return (encode_chunk(chunk, encoder) for chunk in _chunks(items))


def encode_chunk(items: list[Pair | Dropped], encoder: Encoder) -> Encoded:
    encoded = [item if isinstance(item, Dropped) else encoder.encode(item) for item in items]
    kept = chunk_of(item for item in encoded if isinstance(item, TokenPair))
    return Encoded(len(items), kept, [item for item in encoded if isinstance(item, Dropped)])


def _chunks(items: Items) -> Iterator[list[Pair | Dropped]]:
    """Items together, bounded in number and in text: a row may have megabytes."""
    chunk: list[Pair | Dropped] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += _size(item)
        if len(chunk) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _size(item: Pair | Dropped) -> int:
    if isinstance(item, Dropped):
        return 0
    return len(item.chosen) + len(item.rejected) + sum(len(turn["content"]) for turn in item.prompt)
