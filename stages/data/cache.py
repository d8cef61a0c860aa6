"""Where tokenised data sets and parts of evaluations are kept: a folder each, named by a hash of all that decides its
content.

A folder appears under its name when it is whole. Until then it is a temporary one, which its writer holds locked: what
nobody holds was left by a writer that was killed, and is removed by the next one.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from stages.data.table import DamagedError
from stages.errors import SepoError
from stages.reporting import Reporter

Found = TypeVar("Found")


def cache_folder() -> Path:
    """``$SEPO_CACHE``, else ``$XDG_CACHE_HOME/sepo``, else ``~/.cache/sepo``."""
    own, shared = os.environ.get("SEPO_CACHE"), os.environ.get("XDG_CACHE_HOME")
    place = own or os.path.join(shared or "~/.cache", "sepo")
    return Path(os.path.expanduser(place))


def cached(
    key: str, read: Callable[[Path], Found], make: Callable[[Path], None], *, name: str, reporter: Reporter
) -> Found:
    """What is kept under `key`; where there is nothing whole, it is made first.

    A cache that cannot be written costs the next stage its time, and not this one its run.

    Args:
        key: the hash of all that decides what `make` writes.
        read: opens a folder, which may go away while it is open; raises `DamagedError` where it is not whole.
        make: writes into an empty folder.
        name: of the data set, for messages.

    Raises:
        SepoError: what `make` raises, or there is no place at all to write to.
    """
    entry = cache_folder() / key
    if entry.exists():
        try:
            return read(entry)
        except DamagedError:
            reporter.say(f"{name}: what the cache holds of it is damaged, and is made again")
            shutil.rmtree(entry, ignore_errors=True)
    try:
        with _temporary(entry.parent) as folder:
            make(folder)
            found = read(folder)
            _publish(folder, entry)
            return found
    except OSError as error:
        reason = error.strerror or error
        reporter.say(f"{name}: what was made of it is not kept: {entry.parent} cannot be written: {reason}")
    return _made_for_now(read, make)


def _made_for_now(read: Callable[[Path], Found], make: Callable[[Path], None]) -> Found:
    try:
        with tempfile.TemporaryDirectory(prefix="sepo-") as folder:
            make(Path(folder))
            return read(Path(folder))
    except OSError as error:
        raise SepoError(
            f"cannot write to {tempfile.gettempdir()}: {error.strerror or error}",
            hint="free the space, or set SEPO_CACHE to a folder that has room",
        ) from error


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, locked, that is gone in the end unless it was given another name."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder))
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _sweep(folder: Path) -> None:
    """Remove the temporary folders that nobody holds."""
    for left in folder.glob(".*.tmp"):
        lock = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _publish(temporary: Path, entry: Path) -> None:
    try:
        temporary.rename(entry)
    except OSError:
        # Another process was faster: what it made is the same.
        if not entry.is_dir():
            raise
