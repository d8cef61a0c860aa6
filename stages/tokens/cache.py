"""The cache of what takes long to make, such as the ids of a data set: one file an entry.

An entry is called ``KEY-CHECKSUM``: a hash of all that decides its content, and the sha256 of its bytes. These are
hashed on their way to the disk and whenever they are read; an entry that does not fit its name is made again, and where
none can be written the run goes on without one.

A writer holds the lock ``KEY.lock`` and fills ``KEY.tmp``. A temporary file whose lock is free was left by a writer
that was killed, and is removed by the next one.
"""

import functools
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakSet

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from stages.errors import SepoError
from stages.reporting import Reporter
from stages.store.files import cache_folder, hash_file, hash_json, make_durable

Found = TypeVar("Found")
Arrays = dict[str, NDArray[Any]]
ENTRY: Final = re.compile(r"[0-9a-f]{64}-[0-9a-f]{64}")
TEMPORARY: Final = re.compile(r"[0-9a-f]{64}\.tmp")
KINDS: Final = {
    "ids of data sets": ENTRY,
    "measurements of models": ENTRY,
    "unfinished entries": TEMPORARY,
    "locks": re.compile(r"(hashes/)?[0-9a-f]{64}\.lock"),
    "hashes of large files": re.compile(r"hashes/(\.[0-9a-f]{64}\.json\.\d+-[0-9a-f]{8}\.tmp|[0-9a-f]{64}\.json)"),
    "finished commands": re.compile(r"finished/(\.[0-9a-f]{64}\.\d+-[0-9a-f]{8}\.tmp|[0-9a-f]{64})"),
}
"""what sepo keeps in the cache's folder, and how its files are named from there"""
_told: Final[WeakSet[Reporter]] = WeakSet()
"""who knows already that the cache cannot be written"""


class KeptFile(NamedTuple):
    """A file of ours in the cache."""

    path: Path
    kind: str
    """of `KINDS`"""
    key: str
    """of the entry that it is, or belongs to; empty where it is none"""
    size: int
    used: float
    """`last_used`"""


def kept_files(folder: Path) -> list[KeptFile]:
    """All files of ours in the cache's folder; none where it is not there, and none to which a link leads."""
    found, real = [], folder.resolve()
    for path in sorted([*folder.glob("*"), *folder.glob("hashes/*"), *folder.glob("finished/*")]):
        name = path.relative_to(folder).as_posix()
        kind = next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(name)), None)
        with suppress(FileNotFoundError):
            if kind is not None and path.is_file() and path.resolve() == real / name:
                kind = "measurements of models" if KINDS[kind] is ENTRY and _holds_arrays(path) else kind
                key = name[:64] if "/" not in name else ""
                found.append(KeptFile(path, kind, key, path.stat().st_size, last_used(path)))
    return found


def last_used(path: Path) -> float:
    """When a file was made or read, as far as the file system keeps that, in seconds since 1970."""
    state = path.stat()
    return max(state.st_mtime, state.st_atime)


def _holds_arrays(entry: Path) -> bool:
    """Whether it is one of `cached_arrays`; looking at it is no use of it."""
    with suppress(PermissionError):
        file = os.open(entry, os.O_RDONLY | getattr(os, "O_NOATIME", 0))
        with open(file, "rb") as opened:
            return opened.read(2) == b"PK"
    return False


class UnwritableError(Exception):
    """A folder cannot be written to, or does not keep what is written."""


class NewFile(io.RawIOBase):
    """A file that is being written; what comes in is hashed before the disk has it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._digest = hashlib.sha256()
        with _blaming_the_disk():
            self._file = path.open("wb")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        with _blaming_the_disk():
            return self._file.write(data)

    def finish(self) -> str:
        """Wait until the disk has it; returns the sha256 of what came in."""
        with _blaming_the_disk():
            make_durable(self._file)
            self._file.close()
        return self._digest.hexdigest()

    def drop(self) -> None:
        with suppress(OSError):
            self._file.close()


def cached(
    key: Any, read: Callable[[Path], Found], write: Callable[[NewFile], None], *, name: str, reporter: Reporter
) -> Found:
    """What the cache holds under a key; where there is nothing whole, it is made first.

    A cache that cannot be written costs the next stage its time, and not this one its run.

    Args:
        key: a JSON value that holds all that decides what `write` writes.
        read: opens an entry, which may be deleted while it is open.
        write: fills a new file; where the cache's disk fails, it is called again with a temporary one.
        name: of what the entry is made from, for messages.
    """
    folder, key = cache_folder(), hash_json(key).removeprefix("sha256:")
    try:
        with _blaming_the_disk():
            entry = _find(folder, key, name, reporter)
        if entry is None:
            with _locked(folder, key, name, reporter):
                # Whoever held the lock before may have made it.
                entry = _find(folder, key, name, reporter) or _make(folder, key, write)
        with suppress(FileNotFoundError):
            # But where it is removed at this moment.
            return read(entry)
    except UnwritableError as error:
        if reporter not in _told:
            _told.add(reporter)
            reporter.say(f"{name}: what was made of it is not cached: {folder} cannot be written: {error}")
    try:
        with _blaming_the_disk():
            temporary = tempfile.TemporaryDirectory(prefix="sepo-", ignore_cleanup_errors=True)
        with temporary as path:
            return read(_make(Path(path), key, write))
    except UnwritableError as error:
        hint = "free the space, or set SEPO_CACHE to a folder that has room"
        raise SepoError(f"cannot write to {tempfile.gettempdir()}: {error}", hint=hint) from error


def cached_arrays(key: Any, make: Callable[[], Arrays], *, name: str, reporter: Reporter) -> Arrays:
    """The same of arrays that took long to compute; arguments as `cached`."""
    # Written twice where the cache cannot be, and computed once.
    made = functools.cache(make)

    def write(file: NewFile) -> None:
        content = io.BytesIO()
        np.savez(content, **made())  # type: ignore[arg-type]
        file.write(content.getvalue())

    def read(entry: Path) -> Arrays:
        with np.load(entry, allow_pickle=False) as found:
            return dict(found)

    return cached(["arrays", key], read, write, name=name, reporter=reporter)


def _find(folder: Path, key: str, name: str, reporter: Reporter) -> Path | None:
    """The entry of a key; what bears its name and does not have its checksum is removed."""
    for entry in folder.glob(f"{key}-*"):
        with suppress(OSError):
            if hash_file(entry) == f"sha256:{entry.name.removeprefix(key + '-')}":
                return entry
        reporter.say(f"{name}: what the cache holds of it is damaged, and is made again")
        with suppress(OSError):
            entry.unlink()
    return None


def _make(folder: Path, key: str, write: Callable[[NewFile], None]) -> Path:
    temporary = folder / f"{key}.tmp"
    file = NewFile(temporary)
    try:
        write(file)
        checksum = file.finish()
        with _blaming_the_disk():
            if hash_file(temporary) != f"sha256:{checksum}":
                raise UnwritableError("what was written there is damaged")
            return temporary.rename(folder / f"{key}-{checksum}")
    finally:
        file.drop()
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def _locked(folder: Path, key: str, name: str, reporter: Reporter) -> Iterator[None]:
    """The cache's folder, in which nobody else makes the same entry."""
    lock = FileLock(folder / f"{key}.lock")
    with _blaming_the_disk():
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            reporter.say(f"{name}: another process is making this entry of the cache; waiting for {lock.lock_file}")
            lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed writers, whose locks nobody holds; whatever else lies there stays."""
    for left in folder.glob("*.tmp"):
        if TEMPORARY.fullmatch(left.name):
            with suppress(OSError), FileLock(left.with_suffix(".lock"), timeout=0):
                left.unlink()


@contextmanager
def _blaming_the_disk() -> Iterator[None]:
    """Around what writes an entry: an error of the system is the cache's, and not that of what is read."""
    try:
        yield
    except (OSError, SepoError) as error:
        cause = error.__cause__ if isinstance(error, SepoError) else error
        raise UnwritableError(getattr(cause, "strerror", None) or str(error)) from error
