"""A finished folder of token scores: its manifest, and its shards in order.

A foreign scorer needs the first six columns, the three metadata keys and a ``manifest.json``; checksums are optional.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.currency import ScoredPair, longest
from stages.errors import SepoError
from stages.reporting import Reporter
from stages.store.manifest import read_manifest
from stages.store.place import Place, place_of
from stages.store.shards import (
    REMEDY,
    Seal,
    as_seal,
    keeps_seal,
    read_shard,
    seal_name,
    shard_name,
    tokenizer_of,
)

MADE_BY: Final = ("score", "project-scores")
"""the stages that write scores; a foreign scorer names the first"""
NEEDED: Final = (("fingerprint",), ("files",), ("counts", "kept"), ("tokenizer", "vocabulary"))
"""what `train-policy` takes from the manifest, as paths of keys"""


class Scores(NamedTuple):
    """A finished folder of scores, opened."""

    folder: Place
    manifest: dict[str, Any]
    shards: list[str]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def rows_of(self, shard: str) -> Iterator[ScoredPair]:
        """The rows of one shard, as `rows`."""
        if tokenizer_of(self.folder, shard) != self.manifest["tokenizer"]["vocabulary"]:
            where = self.folder.at(shard)
            raise SepoError(f"{where} is of another tokenizer than its folder's manifest says", hint=REMEDY)
        yield from read_shard(self.folder, shard, self.fingerprint, seals_of(self.manifest).get(shard))

    def rows(self) -> Iterator[ScoredPair]:
        """Every row in data-set order, a part of one shard in memory at a time; checksums are compared on the way."""
        count = 0
        for name in self.shards:
            for row in self.rows_of(name):
                count += 1
                yield row
        if count != self.manifest["counts"]["kept"]:
            kept = self.manifest["counts"]["kept"]
            raise SepoError(f"{self.folder} holds {count:,} pairs, its manifest says {kept:,}", hint=REMEDY)

    def rows_within(self, max_length: int, reporter: Reporter) -> tuple[list[ScoredPair], int]:
        """The rows whose pairs are at most so long, and how many others there are.

        Raises:
            SepoError: there is none.
        """
        kept: list[ScoredPair] = []
        too_long = 0
        with reporter.task(f"read {self.folder}", self.manifest["counts"]["kept"], "pairs") as task:
            for row in self.rows():
                task.advance()
                if longest(row.pair) > max_length:
                    too_long += 1
                else:
                    kept.append(row)
        if not kept:
            raise SepoError(
                f"{self.folder}: all {too_long:,} pairs are longer than {max_length:,} tokens",
                hint="raise --max-length",
            )
        return kept, too_long


def open_scores(folder: str | Path) -> Scores:
    """Open a finished folder of scores.

    Raises:
        SepoError: no manifest, a manifest of another stage, or shards that are not there.
    """
    place = place_of(folder)
    manifest = read_manifest(place, MADE_BY, f"{REMEDY}; see the README on writing scores yourself", NEEDED)
    there = place.names()
    missing = [name for name in manifest["files"] if name not in there]
    if missing:
        raise SepoError(f"{place} lacks {missing[0]} and {len(missing) - 1} more shards", hint=REMEDY)
    return Scores(place, manifest, manifest["files"])


def seals_of(manifest: dict[str, Any]) -> dict[str, Seal]:
    """The seals in a manifest, by shard; a foreign scorer may have none."""
    shards = manifest.get("shards")
    found = {name: as_seal(value) for name, value in shards.items()} if isinstance(shards, dict) else {}
    return {name: seal for name, seal in found.items() if seal is not None}


def sound(place: Place, manifest: dict[str, Any]) -> bool:
    """Whether every shard of a finished run of ours is there, to the bit.

    Where it is not, the manifest will go, and its seals move back beside the shards: what is whole is not made again.
    """
    seals = seals_of(manifest)
    if all(keeps_seal(place, name, seals.get(name)) for name in manifest.get("files", [])):
        return True
    for name, seal in seals.items():
        place.write_json(seal_name(name), seal._asdict())
    return False


def missing_shards(place: Place, count: int) -> list[str]:
    """Of `count` shards, the names of those that are not there with their seal."""
    there = place.names()
    names = [shard_name(index) for index in range(count)]
    return [name for name in names if name not in there or seal_name(name) not in there]


def sweep_seals(place: Place) -> None:
    """Remove the seals beside the shards: the manifest holds them now."""
    for name in place.names():
        if name.endswith(".seal"):
            place.delete(name)
