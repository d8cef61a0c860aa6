"""Where tokenised data sets and parts of evaluations are kept: a folder each, named by a hash of all that decides its
content, with the checksums of its files.

A folder appears under its name when it is whole. Until then it is a temporary one, which its writer holds locked: what
nobody holds was left by a writer that was killed, and is removed by the next one.

The disk is not trusted. A file is hashed on its way there, and once more when its folder is opened; a folder that is
not what was written is made again, and where none can be written the run goes on without one.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self, TypeVar
from weakref import WeakSet

from stages.errors import SepoError
from stages.reporting import Reporter
from stages.store.checksums import fault_in, read_checksums, write_checksums
from stages.store.files import make_durable

Found = TypeVar("Found")
Read = Callable[[Path], Found]
_TEMPORARY: Final = re.compile(r"\.[0-9a-f]{64}\.[a-z0-9_]+\.tmp")
_told: Final[WeakSet[Reporter]] = WeakSet()
"""who knows already that the cache cannot be written"""


class DamagedError(Exception):
    """What a folder holds is not what was written there."""


class UnwritableError(Exception):
    """A folder cannot be written to, or does not keep what is written."""


class NewFile:
    """A file that is being written; what comes in is hashed before the disk has it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)

    def close(self) -> str:
        """Wait until the disk has it; returns ``sha256:...`` of what came in."""
        with self._file:
            make_durable(self._file)
        return f"sha256:{self._digest.hexdigest()}"

    def drop(self) -> None:
        """Let go of a file that is closed already, or of no more use."""
        with suppress(OSError):
            self._file.close()


class NewFolder:
    """A folder that is being made; its files are closed when the block ends, however it does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, NewFile] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.drop()

    def open(self, name: str) -> NewFile:
        """A file in it, open until the whole folder is made."""
        self._files[name] = NewFile(self.path / name)
        return self._files[name]

    def write(self, name: str, data: bytes) -> None:
        with filling():
            self.open(name).write(data)

    def close(self, key: str) -> None:
        with filling():
            write_checksums(self.path, key, {name: file.close() for name, file in self._files.items()})


@contextmanager
def filling() -> Iterator[None]:
    """Around what writes into a new folder: an error of the system is that folder's, and not that of what is read."""
    try:
        yield
    except (OSError, SepoError) as error:
        cause = error.__cause__ if isinstance(error, SepoError) else error
        raise UnwritableError(getattr(cause, "strerror", None) or str(error)) from error


def cache_folder() -> Path:
    """``$SEPO_CACHE``, else ``$XDG_CACHE_HOME/sepo``, else ``~/.cache/sepo``."""
    own, shared = os.environ.get("SEPO_CACHE"), os.environ.get("XDG_CACHE_HOME")
    place = own or os.path.join(shared or "~/.cache", "sepo")
    return Path(os.path.expanduser(place))


def cached(key: str, read: Read[Found], make: Callable[[NewFolder], None], *, name: str, reporter: Reporter) -> Found:
    """What is kept under `key`; where there is nothing whole, it is made first.

    A cache that cannot be written costs the next stage its time, and not this one its run.

    Args:
        key: the sha256 of all that decides what `make` writes, in hexadecimal digits.
        read: opens a folder, which may go away while it is open; raises `DamagedError` where it is not whole.
        make: writes into an empty folder; what it raises is its own fault, but for `UnwritableError`.
        name: of the data set, for messages.

    Raises:
        SepoError: what `make` raises, or there is no place at all to write to.
    """
    entry = cache_folder() / key
    if os.path.lexists(entry):
        try:
            return _opened(entry, key, read)
        except DamagedError:
            reporter.say(f"{name}: what the cache holds of it is damaged, and is made again")
            shutil.rmtree(entry, ignore_errors=True)
    try:
        with _temporary(entry) as folder:
            found = _made(folder, key, read, make)
            try:
                _publish(folder, entry)
            except OSError as error:
                _say_unwritable(entry.parent, error.strerror or str(error), name, reporter)
            return found
    except UnwritableError as error:
        _say_unwritable(entry.parent, str(error), name, reporter)
    return _made_for_now(key, read, make)


def _opened(folder: Path, key: str, read: Read[Found]) -> Found:
    fault = fault_in(folder)
    if fault or read_checksums(folder)["run"] != key:
        raise DamagedError(f"{folder}: {fault or 'made for another key'}")
    return read(folder)


def _made(folder: Path, key: str, read: Read[Found], make: Callable[[NewFolder], None]) -> Found:
    """
    Raises:
        UnwritableError: also where what was written is not what is there now.
    """
    with NewFolder(folder) as new:
        make(new)
        new.close(key)
    try:
        return _opened(folder, key, read)
    except DamagedError as error:
        raise UnwritableError("what was written there is damaged") from error


def _made_for_now(key: str, read: Read[Found], make: Callable[[NewFolder], None]) -> Found:
    try:
        with filling():
            folder = tempfile.TemporaryDirectory(prefix="sepo-", ignore_cleanup_errors=True)
        with folder as path:
            return _made(Path(path), key, read, make)
    except UnwritableError as error:
        raise SepoError(
            f"cannot write to {tempfile.gettempdir()}: {error}",
            hint="free the space, or set SEPO_CACHE to a folder that has room",
        ) from error


def _say_unwritable(folder: Path, reason: str, name: str, reporter: Reporter) -> None:
    if reporter not in _told:
        _told.add(reporter)
        reporter.say(f"{name}: what was made of it is not kept: {folder} cannot be written: {reason}")


@contextmanager
def _temporary(entry: Path) -> Iterator[Path]:
    """A new folder beside `entry`, locked, that is gone in the end unless it was given another name."""
    with filling():
        entry.parent.mkdir(parents=True, exist_ok=True)
        _sweep(entry.parent)
        temporary, lock = _locked(entry)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _locked(entry: Path) -> tuple[Path, int]:
    """A new folder and the lock on it; one that was swept before it was locked is made again."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", suffix=".tmp", dir=entry.parent))
        with suppress(FileNotFoundError):
            lock = os.open(temporary, os.O_RDONLY)
            # Where the file system knows no locks nobody sweeps.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if temporary.exists():
                return temporary, lock
            os.close(lock)


def _sweep(folder: Path) -> None:
    """Remove the temporary folders of killed writers, which nobody holds; whatever else lies there stays."""
    for left in folder.iterdir():
        if not _TEMPORARY.fullmatch(left.name):
            continue
        with suppress(OSError):
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _publish(temporary: Path, entry: Path) -> None:
    try:
        temporary.rename(entry)
    except OSError:
        # Another process was faster: what it made is the same.
        if not entry.is_dir():
            raise
