"""Who may work in a folder: one run with an exclusive lock, or the workers of one run with shared ones.

A lock of the operating system on `.sepo.lock`: it ends with its process, however that ends, and reaches over a shared
file system that has such locks. Where there is none (an object store, a file system without locks, a folder that
cannot be written) nothing is kept out; then whole files, fingerprints and checksums alone keep every result right.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from stages.errors import SepoError

NAME: Final = ".sepo.lock"
PATIENCE_SECONDS: Final = 10.0
"""how long a worker waits for another one that is just claiming or leaving the folder"""


class Lock:
    """The hold of this process on a folder.

    Args:
        folder: None where no lock reaches.
        shared: whether other workers may share the folder once it is claimed.
    """

    def __init__(self, folder: Path | None, shared: bool) -> None:
        self._path = folder / NAME if folder is not None else None
        self._shared = shared
        self._file: int | None = None
        self.kind: int | None = None
        """fcntl.LOCK_EX: nobody else is at work; LOCK_SH: others may be; None: nothing is known"""

    def settle(self) -> None:
        """Once the folder is claimed: let other workers in, and hold it even if it was made anew."""
        if self._file is None or self._shared or not self._still_there():
            self.release(remove=False)
            self.wait_for(fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX)

    def release(self, *, remove: bool = True) -> None:
        """Let go; the last one to leave removes the file."""
        if self._file is None:
            return
        if self._path is not None and remove and self._lock(fcntl.LOCK_EX) and self._still_there():
            with suppress(OSError):
                self._path.unlink()
        os.close(self._file)
        self._file = self.kind = None

    def wait_for(self, *kinds: int) -> None:
        """Hold the folder in the first of these ways that can be."""
        deadline = time.monotonic() + (PATIENCE_SECONDS if self._shared else 0)
        while not any(map(self._try, kinds)):
            if time.monotonic() > deadline:
                raise SepoError(
                    f"another run is at work in {self._path and self._path.parent}",
                    hint="let it finish; several may share a folder as `--worker 1/2`, `--worker 2/2`",
                )
            time.sleep(0.05)

    def _try(self, kind: int) -> bool:
        """Open and lock the file of this moment; True too where there can be no lock."""
        if self._path is None:
            return True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            # The folder cannot be written: whoever writes next says why.
            return True
        locked = self._lock(kind)
        if locked and self._still_there():
            self.kind = kind
            return True
        os.close(self._file)
        self._file = None
        return locked is None

    def _lock(self, kind: int) -> bool | None:
        """Whether the open file could be locked; None where the file system knows no locks."""
        try:
            fcntl.lockf(int(self._file or 0), kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return None
        return True

    def _still_there(self) -> bool:
        """Whether the open file is still the one of that name: another process may have removed or moved it."""
        with suppress(OSError):
            return self._path is not None and os.path.samestat(os.fstat(int(self._file or 0)), self._path.stat())
        return False


@contextmanager
def locked(folder: Path | None, *, shared: bool = False) -> Iterator[Lock]:
    """A folder, held exclusively if nobody is at work there, or, as a worker, beside the other workers."""
    lock = Lock(folder, shared)
    lock.wait_for(fcntl.LOCK_EX, *([fcntl.LOCK_SH] if shared else []))
    try:
        yield lock
    finally:
        lock.release()
