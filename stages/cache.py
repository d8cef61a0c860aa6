"""`sepo cache`: what the cache holds, and what of it is removed when nobody needed it for long.

Whatever does not bear a name that sepo gives is nobody's of ours, and stays.
"""

import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from stages.configs import CacheConfig
from stages.errors import SepoError, one_line
from stages.reporting import Reporter, Summary, Table, counted
from stages.store.files import cache_folder
from stages.tokens.cache import ENTRY, KINDS, TEMPORARY, KeptFile, kept_files, last_used

DAY: Final = 86_400
UNITS: Final = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))


def run(config: CacheConfig, reporter: Reporter) -> Summary:
    """Show what lies there by kind, or remove what is older than some days."""
    folder = cache_folder()
    try:
        files = kept_files(folder)
    except OSError as error:
        raise SepoError(f"cannot read {folder}: {one_line(error)}", hint="see $SEPO_CACHE") from error
    if config.action == "show":
        return Summary(f"cache in {folder}", [], tables=(_table("What is there", files),))
    removed = _prune(folder, files, time.time() - config.older_than * DAY)
    title = f"{counted(len(removed), 'file')} removed from {folder}"
    return Summary(title, [("freed", _in_words(removed))], tables=(_table("What was removed", removed),))


def _prune(folder: Path, files: list[KeptFile], before: float) -> list[KeptFile]:
    """Remove what was last used before some time; returns what was removed.

    Entries of one key, and what is being written for it, have one lock; while a process holds it they stay.
    """
    by_key = defaultdict(list)
    removed = []
    for file in files:
        if file.key:
            by_key[file.key].append(file)
        elif file.used < before:
            removed += _unlink([file])
    for key, own in by_key.items():
        lock = folder / f"{key}.lock"
        old = [file for file in own if file.used < before]
        if not old or (len(own) > 1 and [file.path for file in old] == [lock]):
            continue
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):
            removed += _unlink([file for file in old if file.path != lock and last_used(file.path) < before])
            if not any(ENTRY.fullmatch(path.name) or TEMPORARY.fullmatch(path.name) for path in folder.glob(f"{key}*")):
                # Who waits for it meanwhile sees that it is another one: filelock looks.
                lock.unlink()
                removed += [file for file in own if file.path == lock]
    return removed


def _unlink(files: list[KeptFile]) -> list[KeptFile]:
    gone = []
    for file in files:
        with suppress(OSError):
            file.path.unlink()
            gone.append(file)
    return gone


def _table(title: str, files: list[KeptFile]) -> Table:
    rows = []
    for kind in KINDS:
        some = [file for file in files if file.kind == kind]
        days = f"{(time.time() - min(file.used for file in some)) / DAY:.0f} days" if some else ""
        rows.append([kind, f"{len(some):,}", _in_words(some), days])
    return Table(title, ["what", "files", "size", "longest unused"], rows)


def _in_words(files: list[KeptFile]) -> str:
    size = sum(file.size for file in files)
    return next((f"{size / unit:.1f} {name}" for unit, name in UNITS if size >= unit), f"{size} B")
