"""The record of a stage: what was asked, what came out, and whether it finished.

``manifest.json`` is written last, so its presence means finished. While a stage runs, ``manifest.unfinished.json``
says whose unfinished work the folder holds. ``.NAME.manifest.json`` beside a folder of this machine brings back a
manifest that alone was lost. The fingerprint covers what determines the content (settings and hashes of the inputs),
never paths, dates or machines.
"""

import os
import platform
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from stages.errors import SepoError
from stages.store.checksums import CHECKSUM, altered_in, checksums_of, is_altered, vouched
from stages.store.files import hash_json, probe_writable, sweep_temporary, sweep_writes, write_json
from stages.store.lock import NAME as LOCK
from stages.store.lock import Lock
from stages.store.place import Place, place_of
from stages.store.protect import Input as Input
from stages.store.protect import refuse_own_input, refuse_strangers
from stages.store.shape import lookup, misshapen, parse_json

FORMAT: Final = 1
FINISHED: Final = "manifest.json"
UNFINISHED: Final = "manifest.unfinished.json"
WEIGHTS: Final = (".safetensors", ".bin")
LIBRARIES: Final = ("sepo", "torch", "transformers", "accelerate", "tokenizers", "pyarrow")


@dataclass
class Run:
    """A stage's output folder, claimed by `open_run`."""

    place: Place
    identity: dict[str, Any]
    finished: bool
    """the same work is done already: nothing is left to do"""
    started: float = field(default_factory=time.monotonic)
    manifest: dict[str, Any] = field(default_factory=dict)
    """of the same work that was finished before"""
    checksums: dict[str, dict[str, Any]] = field(default_factory=dict)
    """what files of the same work were when they were written (`stages.store.checksums.checksums_of`)"""
    altered: str = ""
    """the file for which the same work, finished before, is not believed"""
    earlier_seconds: float = 0.0
    """what lives that were killed have spent on it, as far as they wrote it down"""

    @property
    def folder(self) -> Path:
        """The place as a path, for the stages that need one.

        Raises:
            SepoError: it is on an object store.
        """
        if self.place.local is None:
            raise SepoError(f"{self.place} is not a local folder", hint="only `sepo score` writes elsewhere")
        return self.place.local

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
        made_by = made_just_now(device, self.started - self.earlier_seconds)
        self.refuse_if_lost()
        if self.place.local is not None and "shards" not in sections:
            sections["checksums"] = checksums_of(self.place.local, files)
        manifest = vouched({**self.identity, **sections, "files": files, "made_by": made_by})
        self.place.write_json(FINISHED, manifest)
        if self.place.local is not None:
            # A copy more: without it the run is as finished.
            with suppress(SepoError):
                write_json(_copy(self.place.local), manifest)
        self.place.delete(UNFINISHED)
        self.place.replaced().clear()
        self.finished = True

    def promise(self, files: list[str]) -> None:
        """Write down, before they are there, which files the stage is about to put into the folder itself."""
        _claim(self.place, self.identity, self.checksums, files=files)

    def vouch(self, name: str) -> None:
        """Write down what the files of a folder in this one are, for a run that goes on from them."""
        paths = sorted(path for path in (self.folder / name).rglob("*") if path.is_file())
        self.checksums |= checksums_of(self.folder, [str(path.relative_to(self.folder)) for path in paths])
        _claim(self.place, self.identity, self.checksums)

    def keeps(self, name: str) -> bool:
        """Whether the files of a folder in this one are those that were written there, as far as that is known."""
        return not altered_in(self.folder, _below(self.checksums, name))

    def finished_by_another(self) -> bool:
        """Whether another worker has finished this run since it was opened."""
        with suppress(FileNotFoundError):
            return self.place.has(FINISHED) and _load(self.place, FINISHED).get("fingerprint") == self.fingerprint
        return False

    def refuse_if_lost(self) -> None:
        """Stop before writing into a folder that another run has taken, where no lock could keep it out.

        Raises:
            SepoError: the folder is claimed by another run, or was taken away.
        """
        found = claimed_by(self.place)
        if found is None or found.get("fingerprint") != self.fingerprint:
            raise SepoError(f"another run has taken {self.place}", hint="give each run an --output-dir of its own")


def made_just_now(device: str, started: float) -> dict[str, Any]:
    """Who made something, and at what cost; the memory is that of this process outside of a GPU.

    Args:
        started: by `time.monotonic`.
    """
    return {
        "versions": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "seconds": round(time.monotonic() - started, 1),
        "peak_host_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def open_run(
    folder: str | Path | Place,
    stage: str,
    settings: dict[str, Any],
    inputs: dict[str, Input],
    *,
    overwrite: bool,
    resume: bool = True,
    lock: Lock | None = None,
    sound: Callable[[Place, dict[str, Any]], bool] | None = None,
) -> Run:
    """Claim `folder` for one stage with these settings and inputs.

    The same work finished: the run comes back `finished`. The same work unfinished: it goes on. Other work: refused,
    naming what differs, or, where `overwrite` says so and it is of the same stage, put aside until this one is done.

    Args:
        resume: False removes what the same work left unfinished, and begins it anew.
        lock: how this process holds the folder; without one it is taken to be alone.
        sound: whether what a manifest promises is there; without it, that the files exist.

    Raises:
        SepoError: the folder cannot be written, or holds something else.
    """
    place = place_of(folder)
    refuse_own_input(place, inputs)
    identity = identity_of(stage, settings, inputs)
    _restore(place)
    found = claimed_by(place)
    if found is None and _holdings(place):
        raise SepoError(f"{place} is not empty and holds no run of sepo", hint="choose another --output-dir")
    company = lock is not None and lock.company
    if (
        found is not None
        and found.get("fingerprint") != identity["fingerprint"]
        and (company or not _only_claimed(place))
    ):
        if company or not overwrite or found.get("stage") != stage:
            raise SepoError(
                f"{place} holds another run: {'; '.join(differences(found, identity))}",
                hint="choose another --output-dir"
                + (", or replace it with --overwrite" if found.get("stage") == stage and not company else ""),
            )
        _put_aside(place, found)
        found = None
    if found is not None and not resume and not place.has(FINISHED):
        _refuse_removal(place, found)
        place.clear()
    if place.local is not None and (lock is None or lock.alone):
        sweep_temporary(place.local)
        sweep_writes(_copy(place.local))
    if found is not None and place.has(FINISHED) and (sound or _complete)(place, found):
        # Nothing is to be written: a finished run may be looked at on a disk that is read-only.
        place.delete(UNFINISHED)
        place.replaced().clear()
        return Run(place, identity, finished=True, manifest=found)
    if place.local is not None:
        probe_writable(place.local)
    checksums = (found or {}).get("checksums", {})
    altered = altered_in(place.local, checksums) if place.local is not None and place.has(FINISHED) else ""
    _claim(place, identity, checksums)
    place.delete(FINISHED)
    if place.local is not None:
        with suppress(OSError):
            _copy(place.local).unlink()
    return Run(place, identity, finished=False, checksums=dict(checksums), altered=altered)


def _claim(place: Place, identity: dict[str, Any], checksums: dict[str, dict[str, Any]], **sections: Any) -> None:
    place.write_json(UNFINISHED, vouched({**identity, **sections, "checksums": checksums}))


def refuse_altered(folder: Path) -> None:
    """A finished run's folder, or one in it, is an input only as it was written.

    Raises:
        SepoError: a file that the manifest vouches for is another one, or there are weights that it does not list.
    """
    for run, name in ((folder, ""), (folder.absolute().parent, folder.absolute().name)):
        try:
            checksums = _below(_load(place_of(run), FINISHED).get("checksums", {}), name)
        except (SepoError, OSError):
            # No manifest of ours, or one that vouches for nothing.
            continue
        altered = altered_in(run, checksums, hash_all=True)
        surplus = [path.name for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS] if checksums else []
        surplus = [each for each in surplus if os.path.join(name, each) not in checksums]
        if altered or surplus:
            fault = (
                f"{run / altered} is not what was written there" if altered else f"{folder / surplus[0]} is not of it"
            )
            raise SepoError(
                f"{folder} is not as its run finished it: {fault}",
                hint=f"run the same again, or, if it was changed on purpose, give a copy without {FINISHED}",
            )


def _below(checksums: dict[str, dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """Of all files those in a folder; the empty name is that of the folder that holds all."""
    return {each: checksum for each, checksum in checksums.items() if not name or each.startswith(f"{name}/")}


def _put_aside(place: Place, found: dict[str, Any]) -> None:
    """Make room for another run; what is finished waits until that one has finished too."""
    _refuse_removal(place, found)
    if place.has(FINISHED) or not place.replaced().names():
        place.move_to(place.replaced())
    else:
        # What never finished is not worth the finished run that waits there.
        place.clear()


def _refuse_removal(place: Place, found: dict[str, Any]) -> None:
    """
    Raises:
        SepoError: the folder holds something of somebody else, or is the one that the user stands in.
    """
    refuse_strangers(place, found, finished=place.has(FINISHED))
    if place.local is not None and os.path.realpath(place.local) == os.getcwd():
        hint = "go to another folder, and give this one by its name"
        raise SepoError(f"{place} is the current folder, which cannot be replaced from within", hint=hint)


def _copy(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{FINISHED}")


def _restore(place: Place) -> None:
    """Give a folder that lost its manifest, and nothing else, the copy: it says what the files there are."""
    if place.local is None or place.has(UNFINISHED) or place.has(FINISHED) or not os.path.exists(_copy(place.local)):
        return
    with suppress(FileNotFoundError, SepoError):
        manifest = _load(place_of(place.local.parent), _copy(place.local).name)
        if manifest.get("files") and _complete(place, manifest):
            place.write_json(FINISHED, manifest)


def read_manifest(
    folder: str | Path | Place,
    stages: str | tuple[str, ...],
    remedy: str,
    needed: tuple[tuple[str, ...], ...] = (),
) -> dict[str, Any]:
    """The manifest of a finished stage; what `stages.store.shape` says of it holds.

    Args:
        stages: the one, or the several, whose manifest is wanted; messages speak of the first.
        remedy: the hint if there is none, such as ``run `sepo score` first``.
        needed: paths of keys that it has to have.

    Raises:
        SepoError: no folder, no manifest, the manifest of another stage or format, or one that lacks something.
    """
    place = place_of(folder)
    if not place.names() and (place.local is None or not place.local.is_dir()):
        raise SepoError(f"there is no folder {place}", hint=remedy)
    if not place.has(FINISHED):
        raise SepoError(f"{place} has no {FINISHED}: the stage never finished there", hint=remedy)
    manifest = _load(place, FINISHED)
    wanted = (stages,) if isinstance(stages, str) else stages
    if manifest.get("stage") not in wanted:
        raise SepoError(f"{place} was made by `sepo {manifest.get('stage')}`, not by `sepo {wanted[0]}`", hint=remedy)
    if manifest.get("format") != FORMAT:
        raise SepoError(
            f"{place} is of format {manifest.get('format')}, and this sepo reads format {FORMAT}",
            hint="use the version of sepo that made it",
        )
    for path in needed:
        if lookup(manifest, path) is None:
            raise SepoError(f"{place.at(FINISHED)} has no {'.'.join(path)}", hint=remedy)
    return manifest


def _only_claimed(place: Place) -> bool:
    """Whether a run was claimed here and stopped before it made anything."""
    return _holdings(place) == {UNFINISHED}


def _holdings(place: Place) -> set[str]:
    """What a folder holds, but for what a run that was killed while it claimed the folder left."""
    return {name for name in place.names() if name != LOCK and not (name.startswith(".") and name.endswith(".tmp"))}


def identity_of(stage: str, settings: dict[str, Any], inputs: dict[str, Input]) -> dict[str, Any]:
    """What a stage was asked to make, and its fingerprint."""
    hashes = {name: given.hash for name, given in inputs.items()}
    content = {"format": FORMAT, "stage": stage, "settings": settings, "inputs": hashes}
    # A path need not be UTF-8, but a manifest has to be.
    names = {name: given.name.encode(errors="backslashreplace").decode() for name, given in inputs.items()}
    return {**content, "fingerprint": hash_json(content), "input_names": names}


def claimed_by(place: Place) -> dict[str, Any] | None:
    """The manifest of the run that a folder holds, finished or not; None if there is none."""
    # A worker that finishes at this moment writes the one and removes the other: look again.
    for name in (FINISHED, UNFINISHED, FINISHED):
        with suppress(FileNotFoundError):
            if place.has(name):
                return _load(place, name)
    return None


def _load(place: Place, name: str) -> dict[str, Any]:
    remedy = "delete the folder and run the stage again"
    try:
        data = place.read(name)
        manifest = parse_json(data)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise SepoError(f"cannot read {place.at(name)}: {error}", hint=remedy) from error
    fault = misshapen(manifest)
    if fault:
        raise SepoError(f"{place.at(name)} is not a manifest of sepo: {fault}", hint=remedy)
    if is_altered(data, manifest):
        raise SepoError(
            f"{place.at(name)} is not as it was written: its checksum is of another text",
            hint=f"restore it, or {remedy}; if you changed it on purpose, remove its {CHECKSUM!r}",
        )
    found: dict[str, Any] = manifest
    return found


def _complete(place: Place, manifest: dict[str, Any]) -> bool:
    """Whether what a manifest promises is there, and is what was written, where that can be told."""
    there = all(place.has(name) for name in manifest.get("files", []))
    return there and (place.local is None or not altered_in(place.local, manifest.get("checksums", {})))


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between two runs, named for a person."""
    if there.get("stage") != here["stage"]:
        return [f"of `sepo {there.get('stage')}`, not of `sepo {here['stage']}`"]
    if there.get("format") != here["format"]:
        return [f"of format {there.get('format')}, this is format {here['format']}"]
    old, new = there.get("settings", {}), here["settings"]
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    found = [f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in names]
    old, new = there.get("inputs", {}), here["inputs"]
    found += [f"the {name} differs" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return found or ["its fingerprint differs"]
