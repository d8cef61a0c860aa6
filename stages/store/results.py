"""The file of an evaluation, and the tables of single pairs and samples beside it. The JSON file is written last."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import SepoError
from stages.store.files import probe_writable, write_json, write_whole
from stages.store.manifest import differences

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
        if found.get("fingerprint") == identity["fingerprint"] and all(part.exists() for part in _tables(path, found)):
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
    """Write a report, and each table as ``NAME.TABLE.parquet`` beside ``NAME.json``."""
    path = Path(output).expanduser()
    report = report | {"files": [f"{path.stem}.{name}.parquet" for name, columns in tables.items() if columns]}
    for name, columns in tables.items():
        if columns:
            _write_table(path.with_name(f"{path.stem}.{name}.parquet"), columns)
    write_json(path, report)


def _tables(path: Path, report: dict[str, Any]) -> list[Path]:
    return [path.with_name(str(name)) for name in report.get("files", [])]


def _write_table(path: Path, columns: Columns) -> None:
    table = pa.table(dict(columns))
    write_whole(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}
