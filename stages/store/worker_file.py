"""What one of several workers knows of the shards that it wrote, for the one that finishes the run and reads none.

``.worker-3-of-16.statistics`` lies beside the shards until the manifest is written. One that is damaged, of another
run, or of a shard that has changed since, is as good as none: then the shards are read.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.store.checksums import Checksum
from stages.store.parquet import is_whole, parquet_bytes
from stages.store.place import Place, State
from stages.store.shape import parse_json

PATTERN: Final = re.compile(r"\.worker-\d+-of-\d+\.statistics")
FORMAT: Final = b"1"


class WorkerFile(NamedTuple):
    """What a worker wrote down."""

    checksums: dict[str, Checksum]
    """of its shards, by their names"""
    arrays: dict[str, NDArray[Any]]
    """one-dimensional, of numbers or texts"""


def write_worker_file(
    place: Place, worker: tuple[int, int], fingerprint: str, found: WorkerFile, states: Mapping[str, State]
) -> None:
    """Write it whole.

    Args:
        worker: its number, from 1, and how many there are.
        states: of its shards, as they lie there (`Place.states`).
    """
    shards = {name: {"checksum": checksum, "state": states[name]} for name, checksum in found.checksums.items()}
    table = pa.table({name: [array] for name, array in found.arrays.items()})
    said = {"sepo.format": FORMAT, "sepo.fingerprint": fingerprint, "sepo.shards": json.dumps(shards)}
    number, count = worker
    place.write(f".worker-{number}-of-{count}.statistics", parquet_bytes(table.replace_schema_metadata(said)))


def read_worker_files(place: Place, fingerprint: str, states: Mapping[str, State]) -> Iterator[WorkerFile]:
    """Those of a run that are whole and whose shards are as they were.

    Args:
        states: of all files of the folder.
    """
    for name in sorted(filter(PATTERN.fullmatch, states)):
        # A file of any shape may lie there.
        with suppress(OSError, pa.ArrowException, LookupError, TypeError, ValueError, AttributeError):
            data = place.read(name)
            if not is_whole(data):
                continue
            table = pq.read_table(pa.BufferReader(data))
            said = table.schema.metadata
            shards = parse_json(said[b"sepo.shards"])
            unchanged = all(states.get(shard) == tuple(each["state"]) for shard, each in shards.items())
            ours = (said[b"sepo.format"], said[b"sepo.fingerprint"].decode()) == (FORMAT, fingerprint)
            if ours and unchanged:
                checksums = {shard: each["checksum"] for shard, each in shards.items()}
                arrays = {
                    column: table[column][0].values.to_numpy(zero_copy_only=False) for column in table.column_names
                }
                yield WorkerFile(checksums, arrays)


def remove_worker_files(place: Place, names: Iterable[str]) -> None:
    """Remove all that are among the files of the folder, of whatever run."""
    for name in filter(PATTERN.fullmatch, names):
        place.delete(name)
