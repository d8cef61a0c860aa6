"""Tokenised pairs in files that are mapped into memory: a data set that does not fit there can still be indexed.

A table is a folder of two files without headers, both in the order of the data set:

============  =========================================================================================
ids.bin       int32: of every pair its prompt, its chosen and its rejected ids
pairs.bin     one `PAIR` record a pair: its number, where its ids start, their lengths, two hashes
============  =========================================================================================

What is asked of all pairs (who is too long, who shares a prompt) is answered by the small file alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from stages.tokens.cache import DamagedError, NewFolder
from stages.types import Ids, TokenPair, content_hash, hash_ids

PAIR: Final = np.dtype(
    [
        ("pair_id", "<i8"),
        ("start", "<i8"),
        ("prompt_hash", "<u8"),
        ("content_hash", "<u8"),
        ("lengths", "<i4", (3,)),
    ]
)
_ID: Final = np.dtype("<i4")
_IDS: Final = "ids.bin"
_PAIRS: Final = "pairs.bin"


class Chunk(NamedTuple):
    """Some pairs on their way into a table."""

    pairs: NDArray[Any]
    """(n,) of `PAIR`, with starts from 0"""
    ids: Ids


class TokenTable(Sequence[TokenPair]):
    """A table, opened. A pair's ids are views into the file: read-only, and gone from memory when nobody looks."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            DamagedError: a file is missing, was cut, or is not of this table.
        """
        self._pairs = _mapped(folder / _PAIRS, PAIR)
        self._ids = _mapped(folder / _IDS, _ID)
        ends = self._pairs["start"] + self.lengths.sum(axis=1, dtype=np.int64)
        if not np.array_equal(np.append(self._pairs["start"], len(self._ids)), np.append(0, ends)):
            raise DamagedError(f"{folder}: the lengths do not add up")

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of prompt, chosen and rejected response, (n, 3)."""
        lengths: NDArray[np.int32] = self._pairs["lengths"]
        return lengths

    @property
    def pair_ids(self) -> NDArray[np.int64]:
        """(n,)"""
        numbers: NDArray[np.int64] = self._pairs["pair_id"]
        return numbers

    @property
    def prompt_hashes(self) -> NDArray[np.uint64]:
        """Hash of the prompt's ids, (n,): equal for pairs of one prompt."""
        hashes: NDArray[np.uint64] = self._pairs["prompt_hash"]
        return hashes

    @property
    def content_hashes(self) -> NDArray[np.uint64]:
        """Hash of all ids and where each part ends, (n,): equal for pairs that differ in nothing but their number."""
        hashes: NDArray[np.uint64] = self._pairs["content_hash"]
        return hashes

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, place: int) -> TokenPair: ...
    @overload
    def __getitem__(self, place: slice) -> list[TokenPair]: ...
    def __getitem__(self, place: int | slice) -> TokenPair | list[TokenPair]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        pair = self._pairs[place]
        prompt, chosen, rejected = pair["lengths"].tolist()
        ids = self._ids[pair["start"] : pair["start"] + prompt + chosen + rejected]
        return TokenPair(int(pair["pair_id"]), ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :])

    def __iter__(self) -> Iterator[TokenPair]:
        return (self[place] for place in range(len(self)))


class TableWriter:
    """Writes a table piece by piece."""

    def __init__(self, folder: NewFolder) -> None:
        self._ids = folder.open(_IDS)
        self._pairs = folder.open(_PAIRS)
        self._written = 0

    def write(self, chunk: Chunk) -> None:
        chunk.pairs["start"] += self._written
        self._pairs.write(chunk.pairs.tobytes())
        self._ids.write(chunk.ids.tobytes())
        self._written += len(chunk.ids)


def chunk_of(pairs: Iterable[TokenPair]) -> Chunk:
    """Pairs as the bytes that go into the files."""
    records, parts, start = [], [np.empty(0, _ID)], 0
    for pair in pairs:
        ids = [np.ascontiguousarray(part, _ID) for part in pair[1:]]
        lengths = [len(part) for part in ids]
        records.append((pair.pair_id, start, hash_ids(ids[0]), content_hash(pair), lengths))
        parts += ids
        start += sum(lengths)
    return Chunk(np.array(records, PAIR), np.concatenate(parts))


def _mapped(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    try:
        if path.stat().st_size == 0:
            return np.empty(0, kind)
        # A memmap costs more for every view of it than the array that it is.
        return np.memmap(path, kind, mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: {error}") from error
