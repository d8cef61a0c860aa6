"""A file of preference pairs, NAME.jsonl, and its record beside it, NAME.manifest.json.

The record holds the hash of the pairs, and is there a moment before them: pairs that are there are whole, and a record
without them is of a run that was killed.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from stages.configs import PairConfig, content_defaults, content_settings
from stages.errors import SepoError
from stages.store.checksums import with_checksum
from stages.store.files import hash_file, make_durable, probe_writable, sweep_writes, write_json, write_whole
from stages.store.manifest import Input, differences, identity_of, load_manifest
from stages.store.place import place_of
from stages.store.protect import refuse_own_input_file

REMEDY: Final = "choose another --output"


def manifest_of(pairs: Path) -> Path:
    """Where the record of a file of pairs is."""
    return pairs.with_name(f"{pairs.stem}.manifest.json")


def claim_pairs(
    stage: str, config: PairConfig, inputs: Mapping[str, Input]
) -> tuple[Path, dict[str, Any], dict[str, Any] | None]:
    """The file, what was asked for, and the record of the same pairs if they are there; else they may be written.

    What no run of ours wrote, or another one, is refused, and so is an input.
    """
    pairs, defaults = Path(config.output).expanduser(), content_defaults(type(config))
    identity = identity_of(stage, content_settings(config), inputs, defaults)
    record = manifest_of(pairs)
    for file in (pairs, record):
        refuse_own_input_file(file, inputs, REMEDY)
    found = load_manifest(place_of(record.parent), record.name) if os.path.lexists(record) else None
    is_there = os.path.lexists(pairs)
    if found is None and is_there:
        raise SepoError(f"{pairs} is there already, and was not made by `sepo pair`", hint=REMEDY)
    if found is not None and found.get("stage") != identity["stage"]:
        raise SepoError(f"{record} is there already, and is of no pairs", hint=REMEDY)
    if found is not None and is_there:
        differing = differences(found, identity, defaults)
        whole = pairs.is_file() and hash_file(pairs) == found.get("checksums", {}).get(pairs.name, {}).get("sha256")
        if whole and not differing:
            return pairs, identity, found
        if not config.overwrite:
            problem = f"holds other pairs: {'; '.join(differing)}" if differing else "is not as it was written"
            raise SepoError(f"{pairs} {problem}", hint=f"{REMEDY}, or replace it with --overwrite")
    probe_writable(pairs.parent, REMEDY)
    for left in (pairs, record):
        sweep_writes(left)
    return pairs, identity, None


def write_pairs(pairs: Path, rows: Iterable[Mapping[str, Any]], manifest: Callable[[], dict[str, Any]]) -> None:
    """Write rows as they come, and their record, which `manifest` gives once the last one has come."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            make_durable(file)
        checksums = {pairs.name: {"bytes": temporary.stat().st_size, "sha256": hash_file(temporary)}}
        write_json(manifest_of(pairs), with_checksum(manifest() | {"files": [pairs.name], "checksums": checksums}))

    write_whole(pairs, write)
