"""The file of an evaluation, and the tables of single pairs and samples beside it. The JSON file is written last."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.configs import content_defaults, content_settings
from stages.errors import SepoError
from stages.store.checksums import is_altered, with_checksum
from stages.store.files import (
    MOST_JSON_BYTES,
    hash_file,
    probe_writable,
    read_regular,
    sweep_writes,
    write_bytes,
    write_json,
    writing,
)
from stages.store.manifest import Input, differences, identity_of
from stages.store.parquet import parquet_bytes
from stages.store.protect import refuse_own_input_file
from stages.store.shape import is_file_name, parse_json

Columns = Mapping[str, Any]
TABLES: Final = ("pairs", "samples")
REMEDY: Final = "choose another --output"
_FINGERPRINT: Final = b"sepo.fingerprint"
_HOLDS: Final = {"evaluate": "models", "results": "benchmarks"}
"""by stage, where its report has its figures"""


def claim_results(
    stage: str, config: Any, inputs: Mapping[str, Input], tables: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a command was asked to make, and the report of it that is there already; without one it may be written.

    What is there and not an evaluation's, or another one's, is refused, and so is an input.

    Args:
        tables: those of `TABLES` that will be written beside it.
    """
    defaults, overwrite = content_defaults(type(config)), config.overwrite
    identity = identity_of(stage, content_settings(config), inputs, defaults)
    if config.output is None:
        return identity, None
    path = _path(config.output)
    beside = [file for name, file in zip(TABLES, _tables(path), strict=True) if name in tables]
    for file in (path, *beside):
        refuse_own_input_file(file, inputs, REMEDY)
    found = _load(path) if os.path.lexists(path) else None
    if found is not None and found.get("stage") != identity["stage"]:
        raise SepoError(f"{path} is there already, and is no evaluation", hint=REMEDY)
    differing = differences(found, identity, defaults) if found else []
    if found and not differing and _tables_are_whole(path, found):
        return identity, found
    if differing and not overwrite:
        raise SepoError(
            f"{path} holds another evaluation: {'; '.join(differing)}", hint=f"{REMEDY}, or replace it with --overwrite"
        )
    for table in beside:
        made_by = _made_by(table)
        ours = made_by is not None and (overwrite or made_by == identity["fingerprint"])
        if os.path.lexists(table) and not ours and table.name not in (found or {}).get("files", {}):
            raise SepoError(f"{table} is there already, and is not of this evaluation", hint=REMEDY)
    probe_writable(path.parent, REMEDY)
    for left in (path, *_tables(path)):
        sweep_writes(left)
    return identity, None


def read_results(path: Path, remedy: str, stages: tuple[str, ...] = ("evaluate",)) -> dict[str, Any]:
    """The report that one of these stages wrote."""
    found = _load(path)
    if found.get("stage") not in stages or not isinstance(found.get(_HOLDS[str(found["stage"])]), (dict, list)):
        raise SepoError(f"{path} is no evaluation", hint=remedy)
    return found


def write_results(output: str, report: dict[str, Any], tables: Sequence[Columns] = ()) -> None:
    """Write a report, and each of `TABLES` as ``NAME.TABLE.parquet`` beside ``NAME.json``.

    A table without columns is not written, and that of the report which is replaced is removed; without any, none is.
    """
    path = _path(output)
    before = _load(path).get("files", {})
    hashes = {}
    for file, columns in zip(_tables(path), tables or [{}] * len(TABLES), strict=True):
        if columns:
            table = pa.table(dict(columns)).replace_schema_metadata({_FINGERPRINT: str(report["fingerprint"])})
            write_bytes(file, parquet_bytes(table))
            hashes[file.name] = hash_file(file)
        elif file.name in before:
            with writing(file):
                file.unlink(missing_ok=True)
    write_json(path, with_checksum(report | {"files": hashes}))


def _path(output: str) -> Path:
    """Where a report is written; a link is followed, so that the file it leads to is the one that is replaced."""
    return Path(os.path.realpath(os.path.expanduser(output))) if os.path.islink(output) else Path(output).expanduser()


def _tables(path: Path) -> list[Path]:
    return [path.with_name(f"{path.stem}.{name}.parquet") for name in TABLES]


def _made_by(table: Path) -> str | None:
    """The fingerprint of the evaluation that wrote a table: one that was killed before its report lists none."""
    try:
        metadata = pq.read_schema(table).metadata or {}
    except (OSError, ValueError, pa.ArrowException):
        return None
    return metadata[_FINGERPRINT].decode(errors="replace") if _FINGERPRINT in metadata else None


def _tables_are_whole(path: Path, report: dict[str, Any]) -> bool:
    return "files" in report and all(
        path.with_name(name).is_file() and hash_file(path.with_name(name)) == wanted
        for name, wanted in report["files"].items()
    )


def _load(path: Path) -> dict[str, Any]:
    """What a file holds, if it can be a report: an object, whose files are beside it, not altered since."""
    try:
        data = read_regular(path, MOST_JSON_BYTES)
        found = parse_json(data)
    except (OSError, ValueError):
        return {}
    files = found.get("files", {}) if isinstance(found, dict) else None
    if files is not None and is_altered(data, found):
        raise SepoError(
            f"{path} is not as it was written: its checksum is of another text",
            hint="remove it, and the same command writes it again from what the cache keeps",
        )
    return found if isinstance(files, dict) and all(map(is_file_name, files)) else {}
