"""A data set as token pairs: made once without a limit on their length, cached, and then cut to the limit asked for.

    rows --> Pair or Dropped --> batches --> ids --> a `TokenTable` in the cache (`stages.tokens.cache`) --> `KeptPairs`

Every row that was left out is counted by reason. The tokenizer works on a batch with all cores.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.data.layouts import read_conversations, read_pairs
from stages.data.read import count_rows, dataset_hash, refuse_changed
from stages.errors import SepoError
from stages.reporting import Reporter, Task, counted
from stages.tokens.cache import NewFile, cached
from stages.tokens.encode import NO_ROOM, SAME_WHEN_CUT, Encoder, truncate
from stages.tokens.fingerprint import code_fingerprint
from stages.tokens.table import TokenTable, write_table
from stages.types import Dropped, Lazy, Pair, TokenPair, longest

BATCH_ROWS: Final = 512
BATCH_CHARACTERS: Final = 1 << 20
"""a row may have megabytes"""
EXAMPLES: Final = 3
_LONGER: Final = "longer than "
_OF_LENGTH: Final = (_LONGER, NO_ROOM, SAME_WHEN_CUT)
"""how the reasons begin for which a limit drops a pair"""
Items = Iterator[Pair | Dropped]


@dataclass
class Counts:
    """What became of the rows of a data set."""

    read: int = 0
    """rows, or in SFT data answers"""
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    """pairs kept with a response cut"""
    tokens: Counter[str] = field(default_factory=Counter)
    """prompt, chosen and rejected tokens of what was kept"""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """the first rows that were dropped for a reason, such as ``row 17`` (from 0, as in `Pair.pair_id`)"""

    def as_json(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "truncated": self.truncated,
            "tokens": dict(self.tokens),
        }

    def __str__(self) -> str:
        """``1,500 rows = 1,478 kept + 22 dropped (12 empty response, 10 longer than max_length)``."""
        text = f"{counted(self.read, 'row')} = {self.kept:,} kept + {self.dropped.total():,} dropped"
        reasons = [f"{count:,} {reason}" for reason, count in self.dropped.most_common()]
        text += f" ({', '.join(reasons)})" if reasons else ""
        return text + (f"; {self.truncated:,} of those kept were cut" if self.truncated else "")

    def drop(self, reason: str, row: int) -> None:
        self.dropped[reason] += 1
        if self.dropped[reason] <= EXAMPLES:
            self.examples.setdefault(reason, []).append(f"row {row}")


class LengthLimit(NamedTuple):
    """How long a pair may be, and what becomes of a longer one."""

    max_length: int
    """most tokens of prompt and longer response together"""
    overlong: str = "drop"
    """drop the pair, truncate the ends of its responses, or error: refuse the data set"""


class Tokenised(NamedTuple):
    """A data set as token pairs of any length."""

    pairs: TokenTable
    counts: Counts
    """the rows that were read, and those that gave no pair"""
    layout: str
    """in words"""
    remarks: list[str]
    """what is odd about pairs that were not dropped, and about how many, in words for a warning"""


class KeptPairs(Lazy[TokenPair]):
    """The pairs of a table that a limit keeps, cut to it on the way out."""

    def __init__(self, table: TokenTable, indices: NDArray[np.int64], max_length: int) -> None:
        self._table, self._indices, self._max_length = table, indices, max_length

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def response_tokens(self) -> NDArray[np.int64]:
        """How many there are in both responses of each pair, (n,)."""
        prompts, *responses = self._table.lengths[self._indices].T.astype(np.int64)
        kept: NDArray[np.int64] = np.minimum(responses, self._max_length - prompts).sum(0)
        return kept

    def at(self, index: int) -> TokenPair:
        pair = self._table[int(self._indices[index])]
        cut = pair if longest(pair) <= self._max_length else truncate(pair, self._max_length)
        assert isinstance(cut, TokenPair)
        return cut


def load_pairs(
    dataset: str,
    encoder: Encoder,
    limit: LengthLimit,
    *,
    columns: Mapping[str, str] | None = None,
    sft: bool = False,
    reporter: Reporter,
) -> tuple[KeptPairs, Counts]:
    """The pairs of a data set that a limit keeps, at least one, and what became of all rows; see `tokenised`."""
    found = tokenised(dataset, encoder, columns=columns, sft=sft, reporter=reporter)
    pairs, counts = apply_limit(limit, found, dataset)
    reporter.say(f"{dataset}: {counts}")
    refuse_empty(counts, dataset)
    return pairs, counts


def tokenised(
    dataset: str, encoder: Encoder, *, columns: Mapping[str, str] | None = None, sft: bool = False, reporter: Reporter
) -> Tokenised:
    """What the cache has of a data set, or else makes of it now.

    Args:
        dataset: files or a hub name; see `stages.data.sources`.
        columns: which column of the data set stands for which of ours, as in ``{"prompt": "question"}``.
        sft: not preferences but conversations are read; every answer is a pair without a rejected response.
    """
    if encoder.ignored_arguments:
        unknown = ", ".join(encoder.ignored_arguments)
        reporter.warn(f"the chat template does not know {unknown}: --chat-template-kwargs changes nothing there")
    said: list[str] = []

    def say_layout(words: str) -> None:
        # What the columns were taken for: a wrong guess has to be seen, also where nothing is read again.
        if not said:
            reporter.say(f"{dataset}: {words}")
        said.append(words)

    def read(remarks: Counts) -> Items:
        if sft:
            return read_conversations(dataset, names, on_layout=say_layout)
        return read_pairs(dataset, names, on_layout=say_layout, on_remark=remarks.drop)

    content, names = dataset_hash(dataset), dict(columns or {})

    def write(file: NewFile) -> None:
        counts, remarks, summary = Counts(), Counts(), dict[str, Any]()
        # Where the cache cannot be written, this is done again elsewhere.
        encoder.changed_texts()

        def batches() -> Iterator[list[TokenPair]]:
            with reporter.task(f"read {dataset}", 0 if sft else count_rows(dataset), "rows") as task:
                yield from _encoded(read(remarks), encoder, counts, task)
            refuse_changed(dataset, content)
            summary.update(read=counts.read, dropped=counts.dropped, examples=counts.examples)
            summary.update(layout=said[-1], remarks=_in_words(remarks, counts.read) + encoder.changed_texts())

        write_table(file, batches(), summary)

    key = ["ids", "conversations" if sft else "pairs", names, content, encoder.fingerprint, code_fingerprint()]
    found = cached(key, _open, write, name=dataset, reporter=reporter)
    if not said:
        say_layout(found.layout)
    for remark in found.remarks:
        reporter.warn(f"{dataset}: {remark}")
    return found


def _in_words(remarks: Counts, read: int) -> list[str]:
    """What was odd about rows that are not dropped, each with how many of all that were read."""
    return [
        f"in {count:,} of {read:,} rows {words} (first: {remarks.examples[words][0]});"
        " such pairs may teach nothing, or the opposite"
        for words, count in remarks.dropped.items()
    ]


def _encoded(items: Items, encoder: Encoder, counts: Counts, task: Task) -> Iterator[list[TokenPair]]:
    """The pairs of every batch as ids."""
    for batch in _batches(items):
        encoded = encoder.encode_all([item for item in batch if isinstance(item, Pair)])
        lost = [item for item in (*batch, *encoded) if isinstance(item, Dropped)]
        for row in sorted(lost, key=lambda row: row.pair_id):
            counts.drop(row.reason, row.pair_id)
        yield [item for item in encoded if isinstance(item, TokenPair)]
        counts.read += len(batch)
        task.advance(len(batch))


def _batches(items: Items) -> Iterator[list[Pair | Dropped]]:
    """Items together, bounded in number and in text."""
    batch: list[Pair | Dropped] = []
    characters = 0
    for item in items:
        batch.append(item)
        if isinstance(item, Pair):
            characters += len(item.chosen) + len(item.rejected) + sum(len(turn["content"]) for turn in item.prompt)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _open(entry: Path) -> Tokenised:
    table = TokenTable(entry)
    found = table.summary
    counts = Counts(read=found["read"], dropped=Counter(found["dropped"]), examples=found["examples"])
    return Tokenised(table, counts, found["layout"], found["remarks"])


def apply_limit(limit: LengthLimit, found: Tokenised, name: str) -> tuple[KeptPairs, Counts]:
    """The pairs that a limit keeps, if any, and what became of all rows of the data set of this name."""
    counts = copy.deepcopy(found.counts)
    prompts, chosen, rejected = found.pairs.lengths.T
    keep = prompts + np.maximum(chosen, rejected) <= limit.max_length
    for index in np.flatnonzero(~keep):
        shortened = shorten(found.pairs[int(index)], limit, name)
        if isinstance(shortened, Dropped):
            counts.drop(shortened.reason, shortened.pair_id)
        else:
            counts.truncated += 1
            keep[index] = True
    counts.kept = int(keep.sum())
    counts.tokens = _tokens(found.pairs.lengths[keep], limit.max_length)
    return KeptPairs(found.pairs, np.flatnonzero(keep), limit.max_length), counts


def refuse_empty(counts: Counts, name: str) -> None:
    """Stop where no pair is left; the hint is by the reason that took most of the rows."""
    if not counts.kept:
        [(most, _)] = counts.dropped.most_common(1) or [("", 0)]
        other = "see the reasons: the data or the chat template has to change"
        hint = "--max-length may be too low" if most.startswith(_OF_LENGTH) else other
        raise SepoError(f"{name}: no pair is left: {counts}", hint=hint)


def refuse_dropped(counts: Counts, name: str) -> None:
    """Stop where a row was dropped, for whatever reason: what ``--strict`` asks for."""
    if counts.dropped:
        reasons = [
            f"{count:,} {reason}" + (f" (first: {counts.examples[reason][0]})" if reason in counts.examples else "")
            for reason, count in counts.dropped.most_common()
        ]
        raise SepoError(
            f"{name}: {counts.dropped.total():,} of {counts.read:,} rows would be dropped: {', '.join(reasons)}",
            hint="repair or remove these rows (row 0 is the first), or leave out --strict",
        )


def refuse_recorded(counts: Any, name: str) -> None:
    """The same by the counts in the manifest of a finished run."""
    if isinstance(counts, dict) and isinstance(counts.get("dropped"), dict):
        refuse_dropped(Counts(read=counts.get("read", 0), dropped=Counter(counts["dropped"])), name)


def shorten(pair: TokenPair, limit: LengthLimit, name: str) -> TokenPair | Dropped:
    """What becomes of a pair that is too long."""
    if limit.overlong == "error":
        raise SepoError(
            f"{name}: pair {pair.pair_id} has {longest(pair):,} tokens, more than max_length {limit.max_length:,}",
            hint="raise --max-length, or choose --overlong drop or --overlong truncate",
        )
    if limit.overlong == "truncate":
        return truncate(pair, limit.max_length)
    return Dropped(pair.pair_id, f"{_LONGER}{limit.max_length:,} tokens")


def _tokens(lengths: NDArray[np.int32], max_length: int) -> Counter[str]:
    """Tokens by side, the responses cut to the limit."""
    prompts, chosen, rejected = lengths.T
    room = max_length - prompts
    sides = {"prompt": prompts, "chosen": np.minimum(chosen, room), "rejected": np.minimum(rejected, room)}
    return Counter({side: int(tokens.sum(dtype=np.int64)) for side, tokens in sides.items()})
