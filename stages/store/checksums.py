"""What files have to be: checksums in the manifest of their run, in a list beside them, or in the JSON file itself."""

import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from stages.errors import one_line
from stages.store.files import (
    LARGE_BYTES,
    MOST_JSON_BYTES,
    hash_bytes,
    hash_file,
    hash_json,
    json_text,
    make_durable,
    read_regular,
    write_json,
)
from stages.store.place import Place
from stages.store.shape import parse_json

FILE: Final = "checksums.json"
CHECKSUM: Final = "checksum"
"""the key under which a JSON object has one of itself"""
_OURS: Final = b'{\n  "'
_MAKER: Final = "made_by"


def write_checksums(folder: Path, fingerprint: str) -> None:
    """Wait until the disk has every file of a folder, and write down the run they are of and what is in them.

    Of a large one that is its size, which costs no reading.
    """
    files: dict[str, str | int] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb+") as file:
            make_durable(file)
        size = path.stat().st_size
        files[str(path.relative_to(folder))] = size if size > LARGE_BYTES else hash_file(path)
    write_json(folder / FILE, {"run": fingerprint, "files": files})


def read_checksums(folder: Path) -> dict[str, Any]:
    """``run`` and ``files``, as they were written; OSError, ValueError or KeyError where none can be read."""
    found = parse_json(read_regular(folder / FILE, MOST_JSON_BYTES))
    if not isinstance(found, dict) or not isinstance(found["files"], dict):
        raise ValueError(f"{FILE} holds no checksums")
    return {"run": found["run"], "files": found["files"]}


def fault_in(folder: Path) -> str:
    """What is wrong with a folder; nothing if all its files are as they were written."""
    try:
        files = read_checksums(folder)["files"]
        return next((name for name, wanted in files.items() if not _is_as_written(folder / name, wanted)), "")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return one_line(error)


def _is_as_written(path: Path, wanted: str | int) -> bool:
    if isinstance(wanted, str):
        return hash_file(path) == wanted
    if path.stat().st_size != wanted:
        return False
    if not zipfile.is_zipfile(path):
        return True
    # What torch saves is a zip file: it holds a CRC-32 of every tensor, which torch itself does not look at.
    with zipfile.ZipFile(path) as file:
        return file.testzip() is None


def unlisted_in(folder: Path) -> list[str]:
    """The files of a sound folder that nobody vouches for; hidden ones belong to a file system or a desktop."""
    listed = read_checksums(folder)["files"]
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name for name in names if name not in {*listed, FILE} and not Path(name).name.startswith(".")]


class Checksum(TypedDict):
    """What the bytes of a file are, for a manifest."""

    sha256: str
    """``sha256:...``"""
    bytes: int
    rows: NotRequired[int]
    """of a shard of scores"""


def checksum_of(place: Place, name: str) -> Checksum:
    """What a file is now; OSError where there is none."""
    if place.local is None:
        data = place.read(name)
        return {"sha256": hash_bytes([data]), "bytes": len(data)}
    return {"sha256": hash_file(place.local / name), "bytes": (place.local / name).stat().st_size}


def altered_in(place: Place, checksums: Mapping[str, Checksum]) -> list[str]:
    """The files that are not what their checksums are of, or are not there."""
    altered = []
    for name, wanted in checksums.items():
        with suppress(OSError):
            found = checksum_of(place, name)
            if (found["sha256"], found["bytes"]) == (wanted["sha256"], wanted["bytes"]):
                continue
        altered.append(name)
    return altered


def checksums_below(checksums: Mapping[str, Checksum], name: str) -> dict[str, Checksum]:
    """Of all files those in a folder; the empty name is that of the folder that holds all."""
    return {each: checksum for each, checksum in checksums.items() if not name or each.startswith(f"{name}/")}


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of what it says, but for who made it."""
    return {**value, CHECKSUM: _checksum(json.loads(json_text(dict(value))))}


def is_altered(data: bytes, found: Mapping[str, Any]) -> bool:
    """Whether a file that holds an object is not as `with_checksum` and `write_json` left it.

    Whoever writes a file of ours anew, in a form of their own, vouches for it.
    """
    return CHECKSUM in found and data.startswith(_OURS) and found[CHECKSUM] != _checksum(found)


def _checksum(value: Mapping[str, Any]) -> str:
    return hash_json({key: each for key, each in value.items() if key not in (CHECKSUM, _MAKER)})
