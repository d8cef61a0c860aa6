"""A data set as token pairs, before any limit on their length: made once, and kept for whoever asks next.

    rows --> Pair or Dropped --> chunks --> ids --> a `TokenTable` in the cache (`stages.tokens.cache`)

Nothing here holds more than a few chunks of a data set, however long it is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.data.layouts import read_conversations, read_pairs
from stages.data.read import count_rows, dataset_hash, refuse_changed
from stages.reporting import Reporter, Task
from stages.store.files import hash_json, json_text
from stages.store.shape import parse_json
from stages.tokens.cache import DamagedError, NewFolder, cached, filling
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import code_fingerprint
from stages.tokens.table import TableWriter, TokenTable
from stages.tokens.workers import encode_all
from stages.types import Dropped, Pair

__all__ = ["Reason", "TokenTable", "Tokenised", "tokenised_conversations", "tokenised_pairs"]

EXAMPLES: Final = 5
_SUMMARY: Final = "summary.json"
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
    for loss in encoder.losses:
        reporter.warn(loss)
    said: list[str] = []

    def say_layout(words: str) -> None:
        # What the columns were taken for: a wrong guess has to be seen, also where nothing is read again.
        if not said:
            reporter.say(f"{dataset}: {words}")
        said.append(words)

    content = dataset_hash(dataset)

    def make(folder: NewFolder) -> None:
        # Where the cache cannot be written, this is done again elsewhere.
        reading.remarks.clear()
        items = reading.items(on_layout=say_layout)
        with reporter.task(f"read {dataset}", reading.total, "rows") as task:
            tally = _write(items, encoder, folder, task)
        refuse_changed(dataset, content)
        remarks = [_remark(words, rows, tally["read"]) for words, rows in reading.remarks.items()]
        summary = tally | {"layout": said[-1], "remarks": remarks, "dataset": dataset}
        folder.write(_SUMMARY, json_text(summary).encode())

    key = hash_json([reading.key, content, encoder.fingerprint, code_fingerprint()])
    found = cached(key.removeprefix("sha256:"), _open, make, name=dataset, reporter=reporter)
    if not said:
        say_layout(found.layout)
    for remark in found.remarks:
        reporter.warn(f"{dataset}: {remark}")
    return found


def _write(items: Items, encoder: Encoder, folder: NewFolder, task: Task) -> dict[str, Any]:
    """Write the table; returns what became of the rows."""
    read, dropped = 0, dict[str, Reason]()
    with filling():
        table = TableWriter(folder)
    with closing(encode_all(items, encoder)) as chunks:
        for encoded in chunks:
            with filling():
                table.write(encoded.chunk)
            for row in encoded.dropped:
                _count(dropped, row.reason, row.pair_id)
            read += encoded.read
            task.advance(encoded.read)
    return {"read": read, "dropped": {reason: asdict(rows) for reason, rows in dropped.items()}}


def _count(counted: dict[str, Reason], reason: str, row: int) -> None:
    before = counted.get(reason, Reason(0, []))
    examples = before.examples + [f"row {row}"] * (before.count < EXAMPLES)
    counted[reason] = Reason(before.count + 1, examples)


def _remark(words: str, rows: Reason, read: int) -> str:
    where = f"in {rows.count:,} of {read:,} rows {words} (first: {rows.examples[0]})"
    return f"{where}; such pairs may teach nothing, or the opposite"


def _open(folder: Path) -> Tokenised:
    try:
        summary = parse_json((folder / _SUMMARY).read_bytes())
        dropped = {reason: Reason(**counted) for reason, counted in summary["dropped"].items()}
        table = TokenTable(folder)
        if summary["read"] != len(table) + sum(reason.count for reason in dropped.values()):
            raise DamagedError(f"{folder}: the rows do not add up")
        return Tokenised(table, summary["read"], dropped, summary["layout"], summary["remarks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder}: {error}") from error
