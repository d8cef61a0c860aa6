"""A data set as token pairs, before any limit on their length: made once, and cached for whoever asks next.

    rows --> Pair or Dropped --> batches --> ids --> a `TokenTable` in the cache (`stages.tokens.cache`)

Nothing here holds more than a batch of a data set, however long it is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.data.layouts import read_conversations, read_pairs
from stages.data.read import count_rows, dataset_hash, refuse_changed
from stages.reporting import Reporter, Task
from stages.tokens.cache import NewFile, cached
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import code_fingerprint
from stages.tokens.table import TokenTable, write_table
from stages.types import Dropped, Pair, TokenPair

__all__ = ["Reason", "TokenTable", "Tokenised", "tokenised_conversations", "tokenised_pairs"]

BATCH_ROWS: Final = 512
BATCH_CHARACTERS: Final = 1 << 20
"""a row may have megabytes"""
EXAMPLES: Final = 5
Items = Iterator[Pair | Dropped]


@dataclass(frozen=True)
class Reason:
    """Why rows were dropped."""

    count: int
    examples: list[str]
    """the first of them, such as ``row 17`` (from 0, as in `Pair.pair_id`)"""


class Tokenised(NamedTuple):
    """A data set as token pairs."""

    pairs: TokenTable
    read: int
    """rows, or in SFT data answers"""
    dropped: dict[str, Reason]
    """the rows that gave no pair, by reason, in the order in which the reasons were met"""
    layout: str
    """in words"""
    remarks: list[str]
    """what is odd about pairs that were not dropped, and about how many, in words for a warning"""


def tokenised_pairs(dataset: str, encoder: Encoder, *, columns: Mapping[str, str], reporter: Reporter) -> Tokenised:
    """A preference data set (files or a hub name) as ids.

    Args:
        columns: which column of the data set stands for which of ours, as in ``{"prompt": "question"}``.

    Raises:
        SepoError: the data set cannot be read, or trusted; see `stages.data.layouts.read_pairs`.
    """
    names = dict(columns)
    remarks: dict[str, Reason] = {}
    items = partial(read_pairs, dataset, names, on_remark=partial(_count, remarks))
    reading = _Reading(["pairs", names], items, count_rows(dataset), remarks)
    return _tokenised(dataset, encoder, reading, reporter)


def tokenised_conversations(dataset: str, encoder: Encoder, *, reporter: Reporter) -> Tokenised:
    """A data set for SFT as ids, without rejected responses: every answer is a pair.

    Raises:
        SepoError: the data set cannot be read, or trusted; see `stages.data.layouts.read_conversations`.
    """
    reading = _Reading(["conversations"], partial(read_conversations, dataset), total=0, remarks={})
    return _tokenised(dataset, encoder, reading, reporter)


class _Reading(NamedTuple):
    """How the rows of a data set are read."""

    key: list[object]
    """what tells this way of reading from others"""
    items: Callable[..., Items]
    """takes `on_layout`, as `read_pairs` does"""
    total: int
    """how many items there will be; 0: unknown"""
    remarks: dict[str, Reason]
    """by what is odd about them, the rows that are and are not dropped; filled while they are read"""


def _tokenised(dataset: str, encoder: Encoder, reading: _Reading, reporter: Reporter) -> Tokenised:
    """What the cache has of a data set, or else makes of it now."""
    if encoder.ignored_arguments:
        unknown = ", ".join(encoder.ignored_arguments)
        reporter.warn(f"the chat template does not know {unknown}: --chat-template-kwargs changes nothing there")
    said: list[str] = []

    def say_layout(words: str) -> None:
        # What the columns were taken for: a wrong guess has to be seen, also where nothing is read again.
        if not said:
            reporter.say(f"{dataset}: {words}")
        said.append(words)

    content = dataset_hash(dataset)

    def write(file: NewFile) -> None:
        # Where the cache cannot be written, this is done again elsewhere.
        reading.remarks.clear()
        encoder.changed_texts()
        summary: dict[str, Any] = {"dataset": dataset}

        def batches() -> Iterator[list[TokenPair]]:
            with reporter.task(f"read {dataset}", reading.total, "rows") as task:
                yield from _encoded(reading.items(on_layout=say_layout), encoder, summary, task)
            refuse_changed(dataset, content)
            summary["layout"] = said[-1]
            remarks = [_remark(words, rows, summary["read"]) for words, rows in reading.remarks.items()]
            summary["remarks"] = remarks + encoder.changed_texts()

        write_table(file, batches(), summary)

    key = ["ids", reading.key, content, encoder.fingerprint, code_fingerprint()]
    found = cached(key, _open, write, name=dataset, reporter=reporter)
    if not said:
        say_layout(found.layout)
    for remark in found.remarks:
        reporter.warn(f"{dataset}: {remark}")
    return found


def _encoded(items: Items, encoder: Encoder, summary: dict[str, Any], task: Task) -> Iterator[list[TokenPair]]:
    """The pairs of every batch as ids; at the end, what became of the rows stands in `summary`."""
    read, dropped = 0, dict[str, Reason]()
    for batch in _batches(items):
        encoded = encoder.encode_all([item for item in batch if isinstance(item, Pair)])
        lost = [item for item in (*batch, *encoded) if isinstance(item, Dropped)]
        for row in sorted(lost, key=lambda row: row.pair_id):
            _count(dropped, row.reason, row.pair_id)
        yield [item for item in encoded if isinstance(item, TokenPair)]
        read += len(batch)
        task.advance(len(batch))
    summary |= {"read": read, "dropped": {reason: asdict(rows) for reason, rows in dropped.items()}}


def _batches(items: Items) -> Iterator[list[Pair | Dropped]]:
    """Items together, bounded in number and in text; the tokenizer works on a batch with all cores."""
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


def _count(counted: dict[str, Reason], reason: str, row: int) -> None:
    before = counted.get(reason, Reason(0, []))
    examples = before.examples + [f"row {row}"] * (before.count < EXAMPLES)
    counted[reason] = Reason(before.count + 1, examples)


def _remark(words: str, rows: Reason, read: int) -> str:
    where = f"in {rows.count:,} of {read:,} rows {words} (first: {rows.examples[0]})"
    return f"{where}; such pairs may teach nothing, or the opposite"


def _open(entry: Path) -> Tokenised:
    table = TokenTable(entry)
    summary = table.summary
    dropped = {reason: Reason(**counted) for reason, counted in summary["dropped"].items()}
    return Tokenised(table, summary["read"], dropped, summary["layout"], summary["remarks"])
