"""What is never written over, moved or removed: what a run reads, and what no run of sepo wrote."""

import glob
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stages.configs import is_remote
from stages.errors import SepoError
from stages.store.files import read_object

if TYPE_CHECKING:
    # With pyarrow, which `sepo_cli.finished` has no time for.
    from stages.store.place import Place

_EVERY_RUN: Final = (
    "manifest.json", "manifest.unfinished.json", ".sepo.lock", ".*.tmp*", "*/.*.tmp*",
)  # fmt: skip
_TRAINING: Final = (
    "metrics.jsonl", "timing.jsonl", "checkpoints/*", "trackers/*", "*-logps.parquet", ".*-logps.parquet.*.part",
    "*unmerged-adapter/*",
)  # fmt: skip
_SCORES: Final = ("scores-*.parquet", ".scores-*.parquet.seal", ".worker-*.statistics")
_UNLISTED: Final = {
    "make-demo": ("train.jsonl", "test.jsonl", "truth.json", "model/*", "oracle-model/*"),
    "train-oracle": (*_TRAINING, "*/README.md", "*/curves.png"),
    "score": _SCORES,
    "project-scores": _SCORES,
    "denoise": _SCORES,
    "generate": ("*/answers-*", "*/timing.jsonl"),
    "train-policy": (*_TRAINING, "snapshots/*", ".model/*", "README.md", "curves.png"),
    "cut-model": (".model/*",),
    "extrapolate": (".model/*",),
    "demo-report": ("report.json", "report.md"),
    "compare": ("compare.json", "compare.md", "compare.png"),
}
"""by stage, what its runs write beside the files that their manifests list; a star reaches over folders"""
_UNFINISHED: Final = {"train-oracle": ("reference/*", "oracle/*", "oracle-*/*")}
"""by stage, what its runs write before it is listed"""


class Input(NamedTuple):
    """Something a stage read: the name the user gave it, and the hash of its content."""

    name: str
    hash: str
    data: bool = False
    """a data set, of which every file is a part that lies in its folder or matches its pattern"""


def refuse_own_input(place: "Place", inputs: Mapping[str, Input]) -> None:
    """A run must not write into a folder, and so perhaps replace, what it reads, by whatever name."""
    for name, given in inputs.items():
        if _holds(place, given.name):
            raise SepoError(
                f"the output folder {place} holds the {name} it would be made from ({given.name})",
                hint="choose another --output-dir",
            )


def refuse_own_input_file(file: Path, inputs: Mapping[str, Input], hint: str) -> None:
    """A file that is written must not be an input's, nor be read as one of a data set's the next time."""
    for name, given in inputs.items():
        same = any(_same(file, path) or (given.data and _same(file.parent, path)) for path in meant(given.name))
        pattern = os.path.abspath(os.path.expanduser(_without_rows(given.name)))
        if same or (given.data and fnmatch(os.path.abspath(file), pattern)):
            raise SepoError(f"{file} is, or would become, a part of the {name} ({given.name})", hint=hint)


def refuse_strangers(place: "Place", found: Mapping[str, Any], *, finished: bool) -> None:
    """A run's folder may be replaced or emptied only as long as nobody else has put something there.

    Args:
        found: the manifest of the run, or what it had promised when it was interrupted.
    """
    stage = str(found.get("stage"))
    patterns = [*_EVERY_RUN, *_UNLISTED.get(stage, ()), *(() if finished else _UNFINISHED.get(stage, ()))]
    listed = set(found.get("files") or ())
    strangers = sorted(
        name for name in place.files() if name not in listed and not any(fnmatch(name, each) for each in patterns)
    )
    if strangers:
        more = f" and {len(strangers) - 1:,} more" if len(strangers) > 1 else ""
        raise SepoError(
            f"{place} holds what no run of sepo wrote there: {strangers[0]}{more}",
            hint="move it elsewhere, or choose another --output-dir",
        )


def meant(name: str) -> list[Path]:
    """Every path that a name may mean, and the base of an adapter there.

    As it is, or less the rows or the split of a data set, or as a pattern.
    """
    plain = _without_rows(name)
    spellings = [os.path.expanduser(each) for each in (name, plain, plain.rpartition(":")[0]) if each]
    found = [path for each in spellings for path in ([each] if os.path.lexists(each) else glob.glob(each))]
    return [path for each in dict.fromkeys(found) for path in _with_bases(Path(each))]


def files_meant(name: str) -> list[Path]:
    """Every file that a name may mean, with all that lie in its folders.

    FileNotFoundError where some of it is not here: a model of the hub, a data set on an object store.
    """
    paths = [] if is_remote(name) else meant(name)
    for path in paths:
        base = base_of_adapter(path)
        if base is not None and not os.path.isdir(os.path.expanduser(base)):
            raise FileNotFoundError(base)
    files = {file for path in paths for file in (path, *path.rglob("*")) if file.is_file()}
    if not files:
        raise FileNotFoundError(name)
    return sorted(files)


def base_of_adapter(folder: Path) -> str | None:
    """The folder or hub name of an adapter's base, if its configuration names one.

    A folder that is gone is taken from beside the adapter, if there is one of its name: the two were moved together.
    """
    with suppress(SepoError, ValueError, OSError):
        name = read_object(folder / "adapter_config.json", hint="").get("base_model_name_or_path")
        if isinstance(name, str) and name:
            moved = folder.resolve().parent / Path(name).name
            gone = Path(name).is_absolute() and not Path(name).exists()
            return str(moved) if gone and moved.is_dir() else name
    return None


def _with_bases(path: Path) -> list[Path]:
    found: list[Path] = []
    while path not in found:
        found.append(path)
        base = base_of_adapter(path)
        path = Path(base).expanduser() if base is not None and os.path.isdir(os.path.expanduser(base)) else path
    return found


def _without_rows(name: str) -> str:
    return re.sub(r"\[[^\[\]]*\]$", "", name)


def _holds(place: "Place", name: str) -> bool:
    if is_remote(name) or place.local is None:
        return f"{name.rstrip('/')}/".startswith(f"{place}/")
    return any(_lies_in(path, place.local) for path in meant(name))


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or leads through it, as it is written or with its links followed."""
    routes = (Path(os.path.abspath(path)), Path(os.path.realpath(path)))
    return any(_same(each, folder) for route in routes for each in (route, *route.parents))


def _same(one: Path, other: Path) -> bool:
    """Whether two names are of one file or folder: by links, hard links, mounts, or letters of another case."""
    with suppress(OSError, ValueError):
        return os.path.samefile(one, other)
    return False
