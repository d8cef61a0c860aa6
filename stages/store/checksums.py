"""What the files of a folder have to be: a list of checksums beside them, which also says whose they are."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from stages.errors import one_line
from stages.store.files import hash_file, make_durable, write_json

FILE: Final = "checksums.json"


def write_checksums(folder: Path, owner: str, files: Mapping[str, str]) -> None:
    """
    Args:
        owner: what the files belong to, such as the fingerprint of a run.
        files: the sha256 of each, by its name in the folder.
    """
    write_json(folder / FILE, {"run": owner, "files": dict(files)})


def read_checksums(folder: Path) -> dict[str, Any]:
    """``run`` and ``files``, as they were written.

    Raises:
        OSError, ValueError, KeyError: there are none that can be read.
    """
    found = json.loads((folder / FILE).read_bytes())
    if not isinstance(found, dict) or not isinstance(found["files"], dict):
        raise ValueError(f"{FILE} holds no checksums")
    return {"run": found["run"], "files": found["files"]}


def durable_checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of files that are on the disk when this ends."""
    for name in names:
        with (folder / name).open("rb+") as file:
            make_durable(file)
    return {name: hash_file(folder / name) for name in names}


def fault_in(folder: Path) -> str:
    """What is wrong with a folder; nothing if all its files are as they were written."""
    try:
        files = read_checksums(folder)["files"]
        return next((name for name, wanted in files.items() if hash_file(folder / name) != wanted), "")
    except (OSError, ValueError, KeyError) as error:
        return one_line(error)


def unlisted_in(folder: Path) -> list[str]:
    """The files of a sound folder that nobody vouches for; hidden ones belong to a file system or a desktop."""
    listed = read_checksums(folder)["files"]
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name for name in names if name not in {*listed, FILE} and not Path(name).name.startswith(".")]
