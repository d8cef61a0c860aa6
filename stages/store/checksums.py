"""What files have to be: checksums beside them or in the manifest of their run, and in a JSON file one of itself.

A folder of its own has a list of checksums that also says whose it is. The files of a run stand in its manifest with
their size and their time of change too: a large one that has both still is not read again to be believed.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from stages.errors import one_line
from stages.store.files import hash_file, hash_json, json_text, make_durable, write_json
from stages.store.shape import parse_json

FILE: Final = "checksums.json"
CHECKSUM: Final = "checksum"
"""the key under which a JSON object has one of itself"""
ALWAYS_HASHED: Final = 1 << 26
"""bytes; what is larger is hashed only where it was written again, moved to another disk, or is an input"""
_OURS: Final = b'{\n  "'
_MAKER: Final = "made_by"


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
    found = parse_json((folder / FILE).read_bytes())
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


def checksums_of(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What files of a folder are now, for a manifest."""
    found = {}
    for name in names:
        state = (folder / name).stat()
        found[name] = {"sha256": hash_file(folder / name), "bytes": state.st_size, "modified": state.st_mtime_ns}
    return found


def altered_in(folder: Path, checksums: Mapping[str, Mapping[str, Any]], *, hash_all: bool = False) -> str:
    """The first file that is not what its checksum is of, or is not there; nothing if there is none.

    Args:
        hash_all: hash also a large file whose size and time of change are those of the one that was written.
    """
    for name, wanted in checksums.items():
        try:
            state = (folder / name).stat()
            untouched = state.st_size > ALWAYS_HASHED and state.st_mtime_ns == wanted["modified"] and not hash_all
            if state.st_size != wanted["bytes"] or not (untouched or hash_file(folder / name) == wanted["sha256"]):
                return name
        except OSError:
            return name
    return ""


def vouched(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of what it says, but for who made it."""
    return {**value, CHECKSUM: _checksum(json.loads(json_text(dict(value))))}


def is_altered(data: bytes, found: Mapping[str, Any]) -> bool:
    """Whether a file that holds an object is not as `vouched` and `write_json` left it.

    Whoever writes a file of ours anew, in a form of their own, vouches for it.
    """
    return CHECKSUM in found and data.startswith(_OURS) and found[CHECKSUM] != _checksum(found)


def _checksum(value: Mapping[str, Any]) -> str:
    return hash_json({key: each for key, each in value.items() if key not in (CHECKSUM, _MAKER)})
