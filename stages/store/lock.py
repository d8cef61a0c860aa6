"""Who may work in a folder: one run alone, or the workers of one run together.

A lock of the operating system on `.sepo.lock`, held by the process: it ends with its process, however that ends, and it
reaches over a shared file system that has such locks. Where there is none (an object store, a file system without
locks), nothing is kept out; then whole files, fingerprints and checksums alone keep every result right.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from stages.errors import SepoError
from stages.store.place import Place

NAME: Final = ".sepo.lock"
PATIENCE_SECONDS: Final = 10.0
"""how long a worker waits for another one that is just claiming or leaving the folder"""


class Lock:
    """The hold of this process on a folder.

    Args:
        several: whether other workers may share the folder once it is claimed.
    """

    def __init__(self, place: Place, several: bool) -> None:
        self._place = place
        self._several = several
        self._file: int | None = None
        self.alone = False
        """nobody else is at work, for certain: what killed runs left may be swept"""
        self.company = False
        """others are at work, for certain: nothing may be put aside under their feet"""

    def take(self) -> None:
        """Hold the folder alone if nobody else does, or, for a worker, beside the other workers.

        Raises:
            SepoError: another run is at work there.
        """
        patience = time.monotonic() + (PATIENCE_SECONDS if self._several else 0)
        while not self._try(fcntl.LOCK_EX) and not (self._several and self._try(fcntl.LOCK_SH)):
            if time.monotonic() > patience:
                raise self._busy()
            time.sleep(0.05)

    def settle(self) -> None:
        """Once the folder is claimed: let other workers in, and hold it even if it was made anew."""
        if self._place.local is None or (self._file is not None and not self._several and self._still_there()):
            return
        self.release(remove=False)
        patience = time.monotonic() + PATIENCE_SECONDS
        while not self._try(fcntl.LOCK_SH if self._several else fcntl.LOCK_EX):
            if time.monotonic() > patience:
                raise self._busy()
            time.sleep(0.05)

    def release(self, *, remove: bool = True) -> None:
        """Let go; the last one to leave removes the file."""
        if self._file is None:
            return
        if remove and self._lock(fcntl.LOCK_EX) and self._still_there():
            with suppress(OSError):
                self._path.unlink()
        os.close(self._file)
        self._file, self.alone, self.company = None, False, False

    @property
    def _path(self) -> Path:
        return Path(str(self._place.local)) / NAME

    def _try(self, kind: int) -> bool:
        """Open and lock the file of this moment; True too where there can be no lock."""
        if self._place.local is None:
            return True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            # The folder cannot be written: whoever writes next says why.
            return True
        locked = self._lock(kind)
        if locked is None:
            os.close(self._file)
            self._file = None
            return True
        if locked and self._still_there():
            self.alone, self.company = kind == fcntl.LOCK_EX, kind == fcntl.LOCK_SH
            return True
        os.close(self._file)
        self._file = None
        return False

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
            return os.path.samestat(os.fstat(int(self._file or 0)), self._path.stat())
        return False

    def _busy(self) -> SepoError:
        return SepoError(
            f"another run is at work in {self._place}",
            hint="let it finish; several may share a folder as `--worker 1/2`, `--worker 2/2`",
        )


@contextmanager
def held(place: Place, *, several: bool) -> Iterator[Lock]:
    """A folder, held for one run; see `Lock`."""
    lock = Lock(place, several)
    lock.take()
    try:
        yield lock
    finally:
        lock.release()
