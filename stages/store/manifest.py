"""The record of a stage: what was asked, what came out, and whether it finished.

``manifest.json`` is written last, so its presence means finished. While a stage runs, ``manifest.unfinished.json``
says whose unfinished work the folder holds. The fingerprint covers what determines the content (settings and hashes of
the inputs), never paths, dates or machines.
"""

import json
import platform
import resource
import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.errors import SepoError
from stages.store.files import hash_json, probe_writable, sweep_temporary, write_json

FORMAT: Final = 1
FINISHED: Final = "manifest.json"
UNFINISHED: Final = "manifest.unfinished.json"
LIBRARIES: Final = ("sepo", "torch", "transformers", "accelerate", "tokenizers", "pyarrow")


class Input(NamedTuple):
    """Something a stage read: the name the user gave it, and the hash of its content."""

    name: str
    hash: str


@dataclass
class Run:
    """A stage's output folder, claimed by `open_run`."""

    folder: Path
    identity: dict[str, Any]
    finished: bool
    """the same work is done already: nothing is left to do"""
    started: float = field(default_factory=time.monotonic)

    @property
    def fingerprint(self) -> str:
        return str(self.identity["fingerprint"])

    def finish(self, *, files: list[str], device: str, **sections: Any) -> None:
        """Write the manifest, the last act of a stage.

        Args:
            files: what the stage promises to have written, relative to the folder; missing ones reopen the run.
            device: where the work was done.
            sections: JSON values such as ``counts``, ``results`` and ``warnings``.
        """
        made_by = {
            "versions": {name: version(name) for name in LIBRARIES},
            "python": platform.python_version(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device,
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        write_json(self.folder / FINISHED, {**self.identity, **sections, "files": files, "made_by": made_by})
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        shutil.rmtree(_replaced(self.folder), ignore_errors=True)
        self.finished = True


def open_run(folder: Path, stage: str, settings: dict[str, Any], inputs: dict[str, Input], *, overwrite: bool) -> Run:
    """Claim `folder` for one stage with these settings and inputs.

    The same work finished: the run comes back `finished`. The same work unfinished: it goes on. Other work: refused,
    naming what differs, or, where `overwrite` says so and it is of the same stage, put aside until this one is done.

    Raises:
        SepoError: the folder cannot be written, or holds something else.
    """
    _refuse_own_input(folder, inputs)
    identity = _identity(stage, settings, inputs)
    found = _found(folder)
    if found is None and folder.is_dir() and any(folder.iterdir()):
        raise SepoError(f"{folder} is not empty and holds no run of sepo", hint="choose another --output-dir")
    if found is not None and found.get("fingerprint") != identity["fingerprint"] and not _only_claimed(folder):
        if not overwrite or found.get("stage") != stage:
            raise SepoError(
                f"{folder} holds another run: {'; '.join(_differences(found, identity))}",
                hint="choose another --output-dir"
                + (", or replace it with --overwrite" if found.get("stage") == stage else ""),
            )
        _put_aside(folder)
        found = None
    probe_writable(folder)
    sweep_temporary(folder)
    finished = found is not None and (folder / FINISHED).exists() and _complete(folder, found)
    if not finished:
        write_json(folder / UNFINISHED, identity)
        (folder / FINISHED).unlink(missing_ok=True)
    return Run(folder, identity, finished)


def read_manifest(folder: Path, stage: str, remedy: str) -> dict[str, Any]:
    """The manifest of a finished stage.

    Args:
        remedy: the hint if there is none, such as ``run `sepo score` first``.

    Raises:
        SepoError: no folder, no manifest, or the manifest of another stage.
    """
    if not folder.is_dir():
        raise SepoError(f"there is no folder {folder}", hint=remedy)
    if not (folder / FINISHED).exists():
        raise SepoError(f"{folder} has no {FINISHED}: the stage never finished there", hint=remedy)
    manifest = _load(folder / FINISHED)
    if manifest.get("stage") != stage:
        raise SepoError(f"{folder} was made by `sepo {manifest.get('stage')}`, not by `sepo {stage}`", hint=remedy)
    return manifest


def _refuse_own_input(folder: Path, inputs: dict[str, Input]) -> None:
    """A run must not write into, and so perhaps replace, what it reads."""
    output = folder.resolve()
    for name, given in inputs.items():
        path = Path(given.name).expanduser()
        if path.exists() and (path.resolve() == output or output in path.resolve().parents):
            raise SepoError(
                f"the output folder {folder} holds the {name} it would be made from ({given.name})",
                hint="choose another --output-dir",
            )


def _only_claimed(folder: Path) -> bool:
    """Whether a run was claimed here and stopped before it made anything."""
    return {path.name for path in folder.iterdir()} == {UNFINISHED}


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _put_aside(folder: Path) -> None:
    """Keep a run that is to be replaced until its replacement has finished."""
    shutil.rmtree(_replaced(folder), ignore_errors=True)
    folder.rename(_replaced(folder))


def _identity(stage: str, settings: dict[str, Any], inputs: dict[str, Input]) -> dict[str, Any]:
    hashes = {name: given.hash for name, given in inputs.items()}
    content = {"format": FORMAT, "stage": stage, "settings": settings, "inputs": hashes}
    names = {name: given.name for name, given in inputs.items()}
    return {**content, "fingerprint": hash_json(content), "input_names": names}


def _found(folder: Path) -> dict[str, Any] | None:
    for name in (FINISHED, UNFINISHED):
        if (folder / name).exists():
            return _load(folder / name)
    return None


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SepoError(f"cannot read {path}: {error}", hint="delete the folder and run the stage again") from error
    if not isinstance(loaded, dict):
        raise SepoError(f"{path} is not a manifest of sepo", hint="delete the folder and run the stage again")
    return loaded


def _complete(folder: Path, manifest: dict[str, Any]) -> bool:
    return all((folder / name).exists() for name in manifest.get("files", []))


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between two runs, named for a person."""
    if there.get("stage") != here["stage"]:
        return [f"of `sepo {there.get('stage')}`, not of `sepo {here['stage']}`"]
    if there.get("format") != here["format"]:
        return [f"of format {there.get('format')}, this is format {here['format']}"]
    old, new = there.get("settings", {}), here["settings"]
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    differences = [f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in names]
    old, new = there.get("inputs", {}), here["inputs"]
    differences += [f"the {name} differs" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return differences or ["its fingerprint differs"]
