"""Writing so that a file is either whole or absent, and hashing what was read."""

import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from stages.errors import SepoError, borrowed, one_line
from stages.reporting import without_keys
from stages.store.shape import parse_json

MOST_JSON_BYTES: Final = 1 << 26
LARGE_BYTES: Final = 1 << 26
FRESH_NS: Final = 2_000_000_000
"""a file that was written this recently may be written again at the same time of change: clocks of disks are coarse"""
PATIENCE_SECONDS: Final = 600.0
"""how long to wait for another process that reads the same file, before it is read here too"""
_HASHES: Final = "hashes"
"""the folder in the cache that remembers those of large files"""


def cache_folder() -> Path:
    """``$SEPO_CACHE``, else ``$XDG_CACHE_HOME/sepo``, else ``~/.cache/sepo``."""
    own, shared = os.environ.get("SEPO_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(os.path.expanduser(own or os.path.join(shared or "~/.cache", "sepo")))


def hash_bytes(chunks: Iterable[bytes]) -> str:
    """``sha256:...`` of the chunks, one behind the other."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def hash_file(path: Path) -> str:
    """``sha256:...`` of a file's bytes, read in constant memory.

    One that has not changed is not read again: by this process, or, if it is large, by any that has the same cache, of
    which one reads it while the others wait. Of a file in the cache of the hub the name is the hash.
    """
    return str(_hash_file(path, wait=True))


def hash_files(paths: Iterable[Path]) -> dict[Path, str]:
    """The same of several, in parts: what another process reads just now is asked for when the rest is known."""
    found = {path: _hash_file(path, wait=False) for path in paths}
    return {path: known or hash_file(path) for path, known in found.items()}


def _hash_file(path: Path, *, wait: bool) -> str | None:
    """None where another process reads it, and nobody is to wait for that."""
    real = os.path.realpath(path)
    blob = re.search(r"/(?:models|datasets)--[^/]+/blobs/([0-9a-f]{64})$", real)
    if blob:
        return f"sha256:{blob[1]}"
    state = _state(path)
    if (real, *state) in _remembered:
        return _remembered[real, *state]
    if state[1] <= LARGE_BYTES:
        return _read_and_hash(path, real, state)
    note = _note(real, state)
    found = _recall(note)
    if found is None:
        with _alone(note.with_suffix(".lock"), wait=wait) as alone:
            # Whoever held the lock before may have found it.
            found = (_recall(note) or _read_and_hash(path, real, state, note)) if alone else None
    return found


def _read_and_hash(path: Path, real: str, before: tuple[int, ...], note: Path | None = None) -> str:
    with path.open("rb") as file:
        found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    if before == _state(path) and time.time_ns() - before[-1] >= FRESH_NS:
        _remembered[real, *before] = found
        if note is not None:
            with suppress(SepoError, OSError):
                note.parent.mkdir(parents=True, exist_ok=True)
                write_json(note, {"sha256": found, "again": found})
    return found


@contextmanager
def _alone(lock: Path, *, wait: bool) -> Iterator[bool]:
    """Whether nobody else is in such a block meanwhile, or can be kept out of one; without waiting perhaps not."""
    # Imported where many bytes are about to be read: it takes a tenth of a second.
    from filelock import FileLock, Timeout

    held = FileLock(lock, timeout=PATIENCE_SECONDS if wait else 0)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        # Its holder is stopped, or died on another host where only marks serve as locks.
        yield wait
        return
    except (OSError, NotImplementedError):
        # No cache, no locks: each process reads for itself.
        yield True
        return
    try:
        yield True
    finally:
        # Who waits for it meanwhile sees that it is another one: filelock looks.
        for let_go in (lock.unlink, held.release):
            with suppress(OSError):
                let_go()


_remembered: Final[dict[tuple[Any, ...], str]] = {}


def _state(path: Path) -> tuple[int, ...]:
    """What a file cannot keep when it is written; nobody can set the last one, its time of change."""
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _note(real: str, state: tuple[int, ...]) -> Path:
    return cache_folder() / _HASHES / f"{hash_json([os.fsencode(real).hex(), *state])[7:]}.json"


def _recall(note: Path) -> str | None:
    """What another process found; None where there is nothing, or a note that is damaged."""
    with suppress(OSError, ValueError, AttributeError):
        found = parse_json(note.read_bytes())
        return str(found["sha256"]) if found.get("sha256") == found.get("again") else None
    return None


def read_regular(path: Path, most: int = -1) -> bytes:
    """The first `most` bytes of a file, or all of it; no device's or pipe's, which may have no end."""
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")
    with path.open("rb") as file:
        return file.read(most)


def hash_json(value: Any) -> str:
    """``sha256:...`` of a JSON value, whatever the order of its keys."""
    return hash_bytes([json.dumps(value, sort_keys=True, separators=(",", ":")).encode()])


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file under a temporary name beside `path`, then rename it: no reader ever sees a part."""
    # Process ids repeat on the machines that share a folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with writing(path):
            write(temporary)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path | str, hint: str = "free the space, or use another folder") -> Iterator[None]:
    """The border to the disk: a file or folder that cannot be written ends a run in one line, whoever writes it."""
    try:
        yield
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise SepoError(f"cannot write {path}: {reason}", hint=hint) from error


def make_durable(file: BinaryIO) -> None:
    """Wait until the disk has what was written: a name must not survive a power cut that its bytes do not."""
    file.flush()
    os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole; its bytes are on the disk before its name is."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            make_durable(file)

    write_whole(path, write)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, keys in the order given; see `json_text`."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None, *, ascii_only: bool = False) -> str:
    """A value as JSON that every reader takes: null for what is not finite, lone surrogates escaped, no URI's keys."""
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    # A file name that is no UTF-8 holds such; the escape is JSON's own.
    return without_keys(text.encode(errors="backslashreplace").decode())


def read_object(path: Path, hint: str) -> dict[str, Any]:
    """The object in a small JSON file of other people's, of at most `MOST_JSON_BYTES`."""
    with borrowed(f"{path} cannot be read", hint):
        data = read_regular(path, MOST_JSON_BYTES + 1)
        if len(data) > MOST_JSON_BYTES:
            raise ValueError(f"more than {MOST_JSON_BYTES:,} bytes")
        found = parse_json(data, finite=False)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    return found


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name if the block ends well, and vanishes if it does not."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(folder, "free the space, then run the same again"):
            temporary.mkdir(parents=True)
            yield temporary
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep_temporary(folder: Path) -> None:
    """Remove the temporary files and folders that killed runs left in `folder` and one level below."""
    for path in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()


def sweep_writes(path: Path) -> None:
    """Remove what killed processes of this machine left of one file, where no lock keeps living ones out."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*-*.tmp"):
        writer = re.fullmatch(r"(\d+)-[0-9a-f]{8}\.tmp", left.name.removeprefix(f".{path.name}."))
        if writer and (int(writer[1]) == os.getpid() or not _is_running(int(writer[1]))):
            with suppress(OSError):
                left.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process > 0


def probe_writable(folder: Path, hint: str = "choose another --output-dir") -> None:
    """Make `folder` and a file in it, before hours of work depend on it."""
    with writing(f"to {folder}", hint):
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name, where the system can do that: a kill leaves nothing behind.
        with tempfile.TemporaryFile(dir=folder, prefix=".probe.", suffix=".tmp"):
            pass


def _reason(error: Exception) -> str | None:
    """What the system says against writing, if an error is about that: also in the words of Rust and of torch."""
    if isinstance(error, OSError):
        return one_line(error)
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number:
        return os.strerror(int(number[1]))
    return "the disk takes no more" if re.search(r"PytorchStreamWriter|inline_container", str(error)) else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
