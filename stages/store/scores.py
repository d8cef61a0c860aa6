"""A finished folder of token scores: its manifest, and its shards in order.

A foreign scorer needs the first six columns, the three metadata keys and a ``manifest.json``; checksums are optional.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.errors import SepoError
from stages.reporting import counted
from stages.store.checksums import altered_in
from stages.store.columns import ScoreColumns, columns_of
from stages.store.manifest import FINISHED, read_manifest
from stages.store.place import Place, place_of
from stages.store.shards import REMEDY, read_shard, shard_batches
from stages.types import ScoredPair

MADE_BY: Final = ("score", "project-scores", "denoise")
"""the stages that write scores; a foreign scorer names the first"""
NEEDED: Final = ("fingerprint", "files", "counts.kept", "tokenizer.vocabulary")
"""what `train-policy` takes from the manifest, as paths of keys"""


class Scores(NamedTuple):
    """A finished folder of scores, opened."""

    folder: Place
    manifest: dict[str, Any]
    shards: list[str]
    ids_below: int | None = None
    """number of ids of the tokenizer, for who has it at hand: then no id may be beyond"""

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def rows_of(self, shard: str) -> Iterator[ScoredPair]:
        """The rows of one shard, as `rows`."""
        return read_shard(
            self.folder,
            shard,
            self.fingerprint,
            self.manifest.get("shards", {}).get(shard),
            tokenizer=self.manifest["tokenizer"]["vocabulary"],
            ids_below=self.ids_below,
        )

    def rows(self) -> Iterator[ScoredPair]:
        """Every row in data-set order, a part of one shard in memory at a time; checksums are compared on the way."""
        count = 0
        for name in self.shards:
            for row in self.rows_of(name):
                count += 1
                yield row
        self._refuse_other_count(count)

    def columns(self) -> Iterator[ScoreColumns]:
        """The same a thousand rows at a time, as flat columns."""
        count, vocabulary = 0, self.manifest["tokenizer"]["vocabulary"]
        for name in self.shards:
            checksum = self.manifest.get("shards", {}).get(name)
            for batch in shard_batches(self.folder, name, self.fingerprint, checksum, tokenizer=vocabulary):
                yield columns_of(batch, name, self.ids_below, count)
                count += len(batch)
        self._refuse_other_count(count)

    def _refuse_other_count(self, count: int) -> None:
        kept = self.manifest["counts"]["kept"]
        if count != kept:
            raise SepoError(f"{self.folder} holds {counted(count, 'pair')}, its manifest says {kept:,}", hint=REMEDY)


def open_scores(folder: str | Path | Place) -> Scores:
    """Open a finished folder of scores; one without a manifest of such a stage or without a shard is a `SepoError`."""
    place = place_of(folder)
    manifest = read_manifest(
        place, MADE_BY, f"{REMEDY}; docs/scores-format.md says what a folder of scores holds", NEEDED
    )
    there = place.names()
    missing = [name for name in manifest["files"] if name not in there]
    if missing:
        raise SepoError(f"{place} lacks {missing[0]} and {len(missing) - 1} more shards", hint=REMEDY)
    checksums = manifest.get("shards", {})
    without = [name for name in manifest["files"] if name not in checksums]
    if checksums and without:
        raise SepoError(f"{place.at(FINISHED)} has checksums, but none for {without[0]}", hint=REMEDY)
    return Scores(place, manifest, manifest["files"])


def is_sound(place: Place, manifest: dict[str, Any]) -> bool:
    """Whether every shard of a finished run of ours is there, to the bit."""
    checksums = manifest.get("shards", {})
    return {*manifest.get("files", [])} <= {*checksums} and not altered_in(place, checksums)
