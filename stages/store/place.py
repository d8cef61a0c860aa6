"""A folder of files that may stand on this machine or on an object store, in the few words that a run needs.

A name such as ``runs/scores`` is local; a URI such as ``s3://bucket/scores`` is opened by pyarrow, with what it takes
from the environment (``AWS_ENDPOINT_URL``, keys, region) or from the URI's query. A file is never seen half-written: a
local one is renamed when whole, an object appears when its upload completes.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pyarrow import fs

from stages.configs import is_remote
from stages.errors import SepoError, borrowed
from stages.store.files import json_text, read_regular, write_bytes, writing

OBJECT_STORES: Final = ("s3", "gcs", "abfs")
"""file systems of pyarrow where an object appears only when its upload has completed"""
_HINT: Final = "check the name, your rights, the space and the network"


State = tuple[int | None, int | None]
"""bytes of a file and when it was written, in nanoseconds since 1970; None where the system does not say"""


class Place:
    """A folder and how to reach it.

    Args:
        name: as the user gave it, without keys; what messages and manifests say.
        local: the same folder as a path, if it is one.
    """

    def __init__(self, name: str, filesystem: Any, root: str, local: Path | None = None) -> None:
        self.name = name
        self.local = local
        self._fs = filesystem
        self._root = root.rstrip("/")

    def __str__(self) -> str:
        return self.name

    def at(self, name: str) -> str:
        """A file's full name, for messages."""
        return f"{self.name}/{name}"

    def names(self) -> set[str]:
        """The files and folders directly inside; none where there is no folder."""
        if self.local is None:
            return {*self.states()}
        with borrowed(f"cannot read {self}", _HINT), suppress(FileNotFoundError, NotADirectoryError):
            return {*os.listdir(self.local)}
        return set()

    def states(self) -> dict[str, State]:
        """The same, each with what tells it from another one of its name; by one listing."""
        if self.local is None:
            inside = fs.FileSelector(self._root, allow_not_found=True)
            with borrowed(f"cannot read {self}", _HINT):
                return {info.base_name: (info.size, info.mtime_ns) for info in self._fs.get_file_info(inside)}
        found: dict[str, State] = {}
        for name in self.names():
            # One may vanish meanwhile.
            with suppress(OSError):
                state = os.stat(self.local / name)
                found[name] = (state.st_size, state.st_mtime_ns)
        return found

    def files(self) -> Iterator[str]:
        """The files inside, by their names from here; on an object store those directly inside."""
        if self.local is None:
            yield from self.names()
            return
        for folder, _, names in os.walk(self.local):
            yield from (os.path.relpath(os.path.join(folder, name), self.local) for name in names)

    def has(self, name: str) -> bool:
        if self.local is not None:
            # Unlike pathlib's, it never raises: a name may be too long, or closed to us.
            return os.path.exists(self.local / name)
        with borrowed(f"cannot read {self}", _HINT):
            return bool(self._fs.get_file_info(self._path(name)).type != fs.FileType.NotFound)

    def may_have(self, name: str) -> bool:
        """Whether it is worth to try and read a file: an object store is not asked, since trying takes no longer."""
        return self.local is None or self.has(name)

    def read(self, name: str) -> bytes:
        """A whole file; OSError where there is none, or it cannot be read."""
        if self.local is not None:
            return read_regular(self.local / name)
        with self._fs.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole."""
        if self.local is not None:
            write_bytes(self.local / name, data)
            return
        # Elsewhere than on an object store a file could be seen growing: it is renamed when it is whole.
        grows = self._fs.type_name not in OBJECT_STORES
        written = self._path(f".{name}.tmp" if grows else name)
        with borrowed(f"cannot write {self.at(name)}", _HINT):
            if grows:
                self._fs.create_dir(self._root, recursive=True)
            with self._fs.open_output_stream(written) as stream:
                stream.write(data)
            if grows:
                self._fs.move(written, self._path(name))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file whole, keys in the order given; see `stages.store.files.json_text`."""
        self.write(name, (json_text(value, indent=2) + "\n").encode())

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        # Looked for first: a disk that is read-only refuses even to remove what is not there.
        if self.may_have(name):
            with borrowed(f"cannot remove {self.at(name)}", _HINT), suppress(FileNotFoundError):
                self._fs.delete_file(self._path(name))

    def replaced(self) -> "Place":
        """Where a run that is to be replaced waits until its replacement has finished."""
        if self.local is not None:
            return place_of(self.local.with_name(f".{self.local.name}.replaced"))
        parts = [text.rpartition("/") for text in (self.name, self._root)]
        name, root = (f"{head}/.{tail}.replaced" for head, _, tail in parts)
        return Place(name, self._fs, root)

    def move_to(self, other: "Place") -> None:
        """Take all that is here to another place on the same system, replacing what is there."""
        other.clear()
        if self.local is not None and other.local is not None:
            with writing(other.local):
                self.local.rename(other.local)
            return
        # What tells whose files these are goes last: a move that was cut off is begun again.
        for name in sorted(self.names(), key=lambda name: (name.startswith("manifest"), name)):
            with borrowed(f"cannot move {self.at(name)}", _HINT):
                self._fs.move(self._path(name), other._path(name))

    def clear(self) -> None:
        """Remove the folder with all that is in it."""
        if self.local is not None:
            shutil.rmtree(self.local, ignore_errors=True)
        elif self.names():
            with borrowed(f"cannot remove {self}", _HINT):
                self._fs.delete_dir(self._root)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def place_of(name: "str | Path | Place") -> Place:
    """The place that a name or URI means."""
    if isinstance(name, Place):
        return name
    if isinstance(name, Path) or not is_remote(name):
        local = _followed(os.path.expanduser(name))
        return Place(str(Path(name)), fs.LocalFileSystem(), str(local), local)
    with borrowed(f"cannot open {_without_keys(name)}", "such as s3://bucket/folder"):
        filesystem, root = fs.FileSystem.from_uri(_with_fewer_requests(name))
    return Place(_without_keys(name), filesystem, root)


def short_names(places: Sequence["Place | Path"]) -> list[str]:
    """The last part of each name; all of it where two would be the same."""
    full = [str(place).rstrip("/") for place in places]
    short = [os.path.basename(os.path.abspath(each)) for each in full]
    return [full[at] if short.count(each) > 1 else each for at, each in enumerate(short)]


def _followed(name: str) -> Path:
    """A folder by a name that it can be renamed by: a link is followed, once, and ``.`` is the folder that it means."""
    try:
        # Manifests and cards could not name it otherwise.
        name.encode()
    except UnicodeEncodeError as error:
        raise SepoError(f"the folder name {name!r} is not UTF-8", hint="give it another name") from error
    path = Path(name)
    return Path(os.path.realpath(path)) if os.path.islink(path) or path.name in ("", "..") else path


def _with_fewer_requests(uri: str) -> str:
    """On S3 a file that is written at once takes one request instead of three; it appears when it is whole, as ever."""
    asks = uri.startswith("s3://") and "allow_delayed_open" not in uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true" if asks else uri


def _without_keys(uri: str) -> str:
    """``s3://key:secret@bucket/folder?region=x`` as ``s3://bucket/folder``."""
    return re.sub(r"//[^/@]*@", "//", uri.partition("?")[0]).rstrip("/")
