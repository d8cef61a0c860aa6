"""The file of an evaluation, and the tables of single pairs and samples beside it. The JSON file is written last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import SepoError
from stages.store.files import hash_file, probe_writable, write_json, write_whole
from stages.store.manifest import differences
from stages.store.shape import is_file_name, parse_json

Columns = Mapping[str, Any]
REMEDY = "choose another --output"


def claim_results(output: str | None, identity: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The report that `output` already holds, if it is the one that is asked for; else None, and it may be written.

    Raises:
        SepoError: it holds something else, or cannot be written.
    """
    if output is None:
        return None
    path = Path(output).expanduser()
    if path.exists():
        found = _load(path)
        if found.get("stage") != identity["stage"]:
            raise SepoError(f"{path} is there already, and is no evaluation", hint=REMEDY)
        if found.get("fingerprint") == identity["fingerprint"] and _tables_are_whole(path, found):
            return found
        if not overwrite and found.get("fingerprint") != identity["fingerprint"]:
            raise SepoError(
                f"{path} holds another evaluation: {'; '.join(differences(found, identity))}",
                hint=f"{REMEDY}, or replace it with --overwrite",
            )
    probe_writable(path.parent)
    return None


def read_results(path: Path, remedy: str) -> dict[str, Any]:
    """The report of a finished evaluation.

    Raises:
        SepoError: the file is none.
    """
    found = _load(path)
    if found.get("stage") != "evaluate" or not isinstance(found.get("models"), dict):
        raise SepoError(f"{path} is no evaluation", hint=remedy)
    return found


def write_results(output: str, report: dict[str, Any], tables: Mapping[str, Columns]) -> None:
    """Write a report, and each table as ``NAME.TABLE.parquet`` beside ``NAME.json``.

    A table without columns is not written, and that of the report which is replaced is removed.
    """
    path = Path(output).expanduser()
    before = _load(path).get("files", {})
    hashes = {}
    for name, columns in tables.items():
        file = path.with_name(f"{path.stem}.{name}.parquet")
        if columns:
            _write_table(file, columns)
            hashes[file.name] = hash_file(file)
        elif file.name in before:
            file.unlink(missing_ok=True)
    write_json(path, report | {"files": hashes})


def _tables_are_whole(path: Path, report: dict[str, Any]) -> bool:
    return "files" in report and all(
        path.with_name(name).is_file() and hash_file(path.with_name(name)) == wanted
        for name, wanted in report["files"].items()
    )


def _write_table(path: Path, columns: Columns) -> None:
    table = pa.table(dict(columns))
    write_whole(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _load(path: Path) -> dict[str, Any]:
    """What a file holds, if it can be a report: an object, whose files are beside it."""
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    files = found.get("files", {}) if isinstance(found, dict) else None
    return found if isinstance(files, dict) and all(map(is_file_name, files)) else {}
