"""Tokenised pairs in an Arrow file that is mapped into memory: ids that do not fit there can still be indexed.

The numbers, lengths and hashes of all pairs (28 bytes a pair) are held in memory; what is asked of all of them (who is
too long, who shares a prompt) is answered without a look at the ids.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from stages.store.mapped import MappedFile, in_block, write_batches
from stages.tokens.cache import NewFile
from stages.types import Lazy, TokenPair, content_hash, hash_ids

_PARTS: Final = TokenPair._fields[1:]
_SCHEMA: Final = pa.schema(
    [("pair_id", pa.int64()), *((part, pa.list_(pa.int32())) for part in _PARTS)]
    + [(name, pa.uint64()) for name in ("prompt_hash", "content_hash")]
)


def write_table(file: NewFile, batches: Iterable[Sequence[TokenPair]], summary: Mapping[str, Any]) -> None:
    """Write pairs in the order of the data set, and a JSON object about them, read once all of them were drawn."""
    write_batches(file, _SCHEMA, map(_record_batch, batches), summary)


class TokenTable(Lazy[TokenPair]):
    """A table, opened. A pair's ids are read-only views into the file, and gone from memory when nobody looks."""

    def __init__(self, path: Path) -> None:
        file = MappedFile(path)
        batches = file.batches
        self.summary: dict[str, Any] = file.summary
        """what `write_table` was given"""
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._ids = [
            [(batch[part].offsets.to_numpy(), batch[part].values.to_numpy()) for part in _PARTS] for batch in batches
        ]
        self.lengths = np.concatenate([np.diff([ends for ends, _ in parts]).T for parts in self._ids]).astype(np.int32)
        """tokens of prompt, chosen and rejected response, (n, 3)"""
        table = pa.Table.from_batches(batches)
        self.pair_ids = table["pair_id"].to_numpy()
        """(n,) int64"""
        self.prompt_hashes = table["prompt_hash"].to_numpy()
        """hash of the prompt's ids, (n,) uint64: equal for pairs of one prompt"""
        self.content_hashes = table["content_hash"].to_numpy()
        """hash of all ids and where each part ends, (n,) uint64: equal for pairs that differ only in their number"""

    def __len__(self) -> int:
        return len(self.pair_ids)

    def at(self, index: int) -> TokenPair:
        batch, row = in_block(self._starts, index)
        ids = (values[ends[row] : ends[row + 1]] for ends, values in self._ids[batch])
        return TokenPair(int(self.pair_ids[index]), *ids)


def _record_batch(pairs: Sequence[TokenPair]) -> pa.RecordBatch:
    columns: list[list[Any]] = [[pair[part] for pair in pairs] for part in range(len(TokenPair._fields))]
    columns += [[hash_ids(pair.prompt_ids) for pair in pairs], [content_hash(pair) for pair in pairs]]
    return pa.record_batch(list(map(pa.array, columns, _SCHEMA.types)), schema=_SCHEMA)
