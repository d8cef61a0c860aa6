"""A stage's output folder, opened: the one way to begin, go on with, or leave alone what a command writes.

`open_stage` takes the lock, refuses what must not be overwritten, finds that nothing is left to do, or goes on with
what the same work left. ``.NAME.manifest.json`` beside a folder of this machine brings back a manifest that alone was
lost; ``.NAME.replaced`` holds what `--overwrite` replaces, until its replacement has finished.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stages.configs import content_defaults, content_settings
from stages.errors import SepoError
from stages.reporting import Reporter, Summary, counted
from stages.store.checksums import Checksum, altered_in, checksum_of, checksums_below, with_checksum
from stages.store.files import probe_writable, sweep_temporary, sweep_writes, write_json
from stages.store.lock import NAME as LOCK
from stages.store.lock import Lock, locked
from stages.store.manifest import (
    FINISHED,
    UNFINISHED,
    claimed_by,
    differences,
    identity_of,
    load_manifest,
    made_just_now,
)
from stages.store.place import Place, place_of
from stages.store.protect import Input, refuse_own_input, refuse_strangers

if TYPE_CHECKING:
    from accelerate import Accelerator

Sound = Callable[[Place, dict[str, Any]], bool]
"""whether what a manifest promises is there, and is what was written"""
_NONE: Final[Mapping[str, Any]] = {}


@dataclass
class Run:
    """A stage's output folder, claimed by `open_stage`."""

    place: Place
    identity: dict[str, Any]
    finished: bool
    """the same work is done already: nothing is left to do"""
    started: float = field(default_factory=time.monotonic)
    manifest: dict[str, Any] = field(default_factory=dict)
    """of the same work that was finished before"""
    checksums: dict[str, Checksum] = field(default_factory=dict)
    """what files of the same work were when they were written"""
    altered: list[str] = field(default_factory=list)
    """the files for which the same work, finished before, is not believed"""
    earlier_seconds: float = 0.0
    """what runs that were killed have spent on it, as far as they wrote it down"""

    @property
    def folder(self) -> Path:
        """The place as a path; an error on an object store."""
        if self.place.local is None:
            raise SepoError(f"{self.place} is not a local folder", hint="only `sepo score` writes elsewhere")
        return self.place.local

    @property
    def fingerprint(self) -> str:
        return str(self.identity["fingerprint"])

    def nothing_to_do(self, what: str, rows: list[tuple[str, str]] | None = None) -> Summary:
        """The summary of a run that was finished before."""
        finished = ("already finished", self.place.at(FINISHED))
        return Summary(f"{what} in {self.place}", [finished, *(rows or [])], fresh=False)

    def unfinished(self, worker: str, missing: list[str]) -> Summary:
        """The summary of one of several workers that is done before the others are."""
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        title = f"worker {worker} done; {counted(len(missing), 'shard')} of others missing in {self.place}"
        rows = [("missing", missing[0] + more), ("to finish", "let the other workers end; run again those that died")]
        return Summary(title, rows, every_process=True)

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
            sections["checksums"] = {name: checksum_of(self.place, name) for name in files}
        manifest = with_checksum({**self.identity, **sections, "files": files, "made_by": made_by})
        self.place.write_json(FINISHED, manifest)
        if self.place.local is not None:
            # A copy more: without it the run is as finished.
            with suppress(SepoError):
                write_json(_copy(self.place.local), manifest)
        self.place.delete(UNFINISHED)
        self.place.replaced().clear()
        self.finished = True

    def claim(self, **sections: Any) -> None:
        """Write down whose unfinished work the folder holds."""
        self.place.write_json(UNFINISHED, with_checksum({**self.identity, **sections, "checksums": self.checksums}))

    def promise(self, files: list[str]) -> None:
        """Write down, before they are there, which files the stage is about to put into the folder itself."""
        self.claim(files=files)

    def vouch(self, name: str) -> None:
        """Write down what the files of a folder in this one are, for a run that goes on from them."""
        paths = sorted(path for path in (self.folder / name).rglob("*") if path.is_file())
        names = [str(path.relative_to(self.folder)) for path in paths]
        self.checksums |= {each: checksum_of(self.place, each) for each in names}
        self.claim()

    def keeps(self, name: str) -> bool:
        """Whether the files of a folder in this one are those that were written there, as far as that is known."""
        return not altered_in(self.place, checksums_below(self.checksums, name))

    def finished_by_another(self) -> bool:
        """Whether another worker has finished this run since it was opened."""
        with suppress(FileNotFoundError):
            if self.place.may_have(FINISHED):
                return load_manifest(self.place).get("fingerprint") == self.fingerprint
        return False

    def refuse_if_lost(self) -> None:
        """Stop before writing into a folder that another run has taken, where no lock could keep it out."""
        found = claimed_by(self.place, first=UNFINISHED)
        if found is None or found.get("fingerprint") != self.fingerprint:
            raise SepoError(f"another run has taken {self.place}", hint="give each run an --output-dir of its own")


@contextmanager
def open_stage(
    stage: str,
    config: Any,
    inputs: dict[str, Input],
    *,
    reporter: Reporter | None = None,
    processes: "Accelerator | None" = None,
    workers: int = 1,
    settings: Mapping[str, Any] = _NONE,
    sound: Sound | None = None,
) -> Iterator[Run]:
    """Claim the output folder of `config` for a stage, and keep every other run out of it until the block ends.

    A folder that is somebody else's, that another run holds or wrote with other settings (they are named), or that
    cannot be written is a `SepoError`; nothing in it has changed then.

    Args:
        processes: of a run that several share; the first of them claims and holds the folder for all.
        workers: how many runs share the folder, each with a part of the work.
        settings: what decides the content beside, or in place of, the settings of `config`.
        sound: see `open_run`.
    """
    place = place_of(config.output_dir)
    if place.local is not None and not place.local.name:
        raise SepoError(f"{place} holds all folders, and cannot be a run's own", hint="choose another --output-dir")
    first = processes is None or processes.is_main_process
    with ExitStack() as stack:
        with processes.main_process_first() if processes else nullcontext():
            lock = stack.enter_context(locked(place.local, shared=workers > 1)) if first else Lock(None, shared=True)
            run = open_run(
                place,
                stage,
                content_settings(config) | dict(settings),
                inputs,
                overwrite=config.overwrite and first,
                resume=getattr(config, "resume", True) or not first,
                defaults=content_defaults(type(config)),
                lock=lock,
                sound=sound,
            )
            lock.settle()
        if processes:
            # What one still claims, another may have finished.
            processes.wait_for_everyone()
        if workers > 1:
            run.refuse_if_lost()
        if run.altered and first and reporter:
            reporter.warn(f"{place.at(run.altered[0])} is not what was written there, and is made again")
        yield run


def open_run(
    folder: str | Path | Place,
    stage: str,
    settings: dict[str, Any],
    inputs: dict[str, Input],
    *,
    overwrite: bool,
    resume: bool = True,
    defaults: Mapping[str, Any] = _NONE,
    lock: Lock | None = None,
    sound: Sound | None = None,
) -> Run:
    """Claim `folder` for one stage with these settings and inputs.

    The same work finished: the run comes back `finished`. The same work unfinished: it goes on. Other work: refused,
    naming what differs, or, where `overwrite` says so and it is of the same stage, put aside until this one is done.

    Args:
        resume: False removes what the same work left unfinished, and begins it anew.
        defaults: of the settings.
        lock: how this process holds the folder; without one it is taken to be alone.
        sound: whether what a manifest promises is there; without it, that the files exist and are what was written.
    """
    place = place_of(folder)
    refuse_own_input(place, inputs)
    identity = identity_of(stage, settings, inputs, defaults)
    _restore(place)
    found = _same_work(place, identity, defaults, overwrite=overwrite, lock=lock)
    if found and not resume and not place.has(FINISHED):
        _refuse_removal(place, found)
        place.clear()
    if place.local is not None and (lock is None or lock.kind == fcntl.LOCK_EX):
        sweep_temporary(place.local)
        sweep_writes(_copy(place.local))
    if found and place.has(FINISHED) and (sound or _complete)(place, found):
        # Nothing is to be written: a finished run may be looked at on a disk that is read-only.
        place.delete(UNFINISHED)
        place.replaced().clear()
        return Run(place, identity, finished=True, manifest=found)
    run = Run(place, identity, finished=False, checksums=dict(found.get("checksums", {})))
    if place.local is not None:
        probe_writable(place.local)
        run.altered = altered_in(place, run.checksums) if place.has(FINISHED) else []
    run.claim()
    if found:
        place.delete(FINISHED)
    if place.local is not None:
        with suppress(OSError):
            _copy(place.local).unlink()
    return run


def _same_work(
    place: Place, identity: dict[str, Any], defaults: Mapping[str, Any], *, overwrite: bool, lock: Lock | None
) -> dict[str, Any]:
    """The manifest of the same work, finished or not; empty where there is none. Other work is refused or put aside."""
    found = claimed_by(place)
    if found is None:
        if _holdings(place):
            raise SepoError(f"{place} is not empty and holds no run of sepo", hint="choose another --output-dir")
        return {}
    differing = differences(found, identity, defaults)
    if not differing:
        # Of an earlier version, whose fingerprints covered other settings, the folder keeps its own.
        identity["fingerprint"] = found.get("fingerprint", identity["fingerprint"])
        return found
    others_at_work = lock is not None and lock.kind == fcntl.LOCK_SH
    if not others_at_work and _holdings(place) == {UNFINISHED}:
        # A run that was claimed here and stopped before it made anything is in nobody's way.
        return {}
    replaceable = found.get("stage") == identity["stage"] and not others_at_work
    if not (replaceable and overwrite):
        raise SepoError(
            f"{place} holds another run: {'; '.join(differing)}",
            hint="choose another --output-dir" + (", or replace it with --overwrite" if replaceable else ""),
        )
    _put_aside(place, found)
    return {}


def _put_aside(place: Place, found: dict[str, Any]) -> None:
    """Make room for another run; what is finished waits until that one has finished too."""
    _refuse_removal(place, found)
    if place.has(FINISHED) or not place.replaced().names():
        place.move_to(place.replaced())
    else:
        # What never finished is not worth the finished run that waits there.
        place.clear()


def _refuse_removal(place: Place, found: dict[str, Any]) -> None:
    """A folder that holds something of somebody else, or that the user stands in, is not removed."""
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
        manifest = load_manifest(place_of(place.local.parent), _copy(place.local).name)
        if manifest.get("files") and _complete(place, manifest):
            place.write_json(FINISHED, manifest)


def _complete(place: Place, manifest: dict[str, Any]) -> bool:
    there = all(place.has(name) for name in manifest.get("files", []))
    return there and not altered_in(place, manifest.get("checksums", {}))


def _holdings(place: Place) -> set[str]:
    """What a folder holds, but for what a run that was killed while it claimed the folder left."""
    return {name for name in place.names() if name != LOCK and not (name.startswith(".") and name.endswith(".tmp"))}
