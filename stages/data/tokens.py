"""A data set as token pairs, before any limit on their length: made once, and kept for whoever asks next.

    rows --> Pair or Dropped --> chunks --> ids --> a `TokenTable` in the cache (`stages.data.cache`)

Nothing here holds more than a few chunks of a data set, however long it is.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

from stages.currency import Dropped, Pair
from stages.data.cache import cached
from stages.data.encode import Encoder
from stages.data.fingerprint import code_fingerprint
from stages.data.layouts import read_conversations, read_pairs
from stages.data.read import dataset_hash
from stages.data.table import DamagedError, TableWriter, TokenTable
from stages.data.workers import Encoded, encode_all
from stages.reporting import Reporter
from stages.store.files import hash_json, write_json

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


def tokenised_pairs(dataset: str, encoder: Encoder, *, columns: Mapping[str, str], reporter: Reporter) -> Tokenised:
    """A preference data set (files or a hub name) as ids.

    Args:
        columns: which column of the data set stands for which of ours, as in ``{"prompt": "question"}``.

    Raises:
        SepoError: the data set cannot be read, or trusted; see `stages.data.layouts.read_pairs`.
    """
    names = dict(columns)
    return _tokenised(
        dataset,
        encoder,
        ["pairs", names],
        lambda on_layout: read_pairs(dataset, names, on_layout=on_layout),
        reporter,
    )


def tokenised_conversations(dataset: str, encoder: Encoder, *, reporter: Reporter) -> Tokenised:
    """A data set for SFT as ids, without rejected responses: every answer is a pair.

    Raises:
        SepoError: the data set cannot be read, or trusted; see `stages.data.layouts.read_conversations`.
    """
    return _tokenised(
        dataset,
        encoder,
        ["conversations"],
        lambda on_layout: read_conversations(dataset, on_layout=on_layout),
        reporter,
    )


def _tokenised(
    dataset: str,
    encoder: Encoder,
    reading: list[object],
    read: Callable[[Callable[[str], None]], Items],
    reporter: Reporter,
) -> Tokenised:
    """What the cache has of the data set, or else makes of it now. Args: reading: what tells `read` from others."""
    said: list[str] = []

    def say_layout(words: str) -> None:
        # What the columns were taken for: a wrong guess has to be seen, also where nothing is read again.
        if not said:
            reporter.say(f"{dataset}: {words}")
        said.append(words)

    def make(folder: Path) -> None:
        tally = _write(read(say_layout), encoder, folder, dataset, reporter)
        write_json(folder / _SUMMARY, tally | {"layout": said[-1], "dataset": dataset})

    key = hash_json([*reading, dataset_hash(dataset), encoder.fingerprint, code_fingerprint()])
    found = cached(key.removeprefix("sha256:"), _open, make, name=dataset, reporter=reporter)
    if not said:
        say_layout(found.layout)
    return found


def _write(items: Items, encoder: Encoder, folder: Path, name: str, reporter: Reporter) -> dict[str, object]:
    """Write the table; returns what became of the rows."""
    read, dropped = 0, dict[str, Reason]()
    with TableWriter.into(folder) as table, reporter.task(f"read {name}", 0, "rows") as task:
        for encoded in encode_all(items, encoder):
            table.write(encoded.chunk)
            _count(dropped, encoded)
            read += encoded.read
            task.advance(encoded.read)
    return {"read": read, "dropped": {reason: asdict(rows) for reason, rows in dropped.items()}}


def _count(dropped: dict[str, Reason], encoded: Encoded) -> None:
    for row in encoded.dropped:
        before = dropped.get(row.reason, Reason(0, []))
        examples = before.examples + [f"row {row.pair_id}"] * (before.count < EXAMPLES)
        dropped[row.reason] = Reason(before.count + 1, examples)


def _open(folder: Path) -> Tokenised:
    try:
        summary = json.loads((folder / _SUMMARY).read_bytes())
        dropped = {reason: Reason(**counted) for reason, counted in summary["dropped"].items()}
        table = TokenTable(folder)
        if summary["read"] != len(table) + sum(reason.count for reason in dropped.values()):
            raise DamagedError(f"{folder}: the rows do not add up")
        return Tokenised(table, summary["read"], dropped, summary["layout"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder}: {error}") from error
