"""The record of a stage: what was asked, what came out, and whether it finished.

``manifest.json`` is written last, so its presence means finished. While a stage runs, ``manifest.unfinished.json``
says whose unfinished work the folder holds. Two runs are the same if their settings and the hashes of their inputs are:
an option that a manifest does not name, since it is newer, counts as its default. The fingerprint is the name of that
content in shards and checkpoints: settings that differ from their defaults, and inputs; never paths, dates or machines.
"""

import json
import os
import platform
import resource
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from stages.errors import SepoError
from stages.store.checksums import CHECKSUM, altered_in, checksums_below, is_altered
from stages.store.files import hash_json, json_text
from stages.store.place import Place, place_of
from stages.store.protect import Input as Input
from stages.store.shape import lookup, misshapen, parse_json

FORMAT: Final = 1
FINISHED: Final = "manifest.json"
UNFINISHED: Final = "manifest.unfinished.json"
WEIGHTS: Final = (".safetensors", ".bin")
_CACHES: Final = ("reference log-probs",)
"""what earlier versions counted among the inputs of a run"""
TOKENIZATION: Final = "tokenization"
"""the input that earlier versions did not name: how the tokenizer cuts text"""
LIBRARIES: Final = ("sepo", "torch", "transformers", "accelerate", "tokenizers", "pyarrow")


def made_just_now(device: str, started: float) -> dict[str, Any]:
    """Who made something, and at what cost since `started`, by `time.monotonic`; the memory is the process's own."""
    return {
        "versions": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "seconds": round(time.monotonic() - started, 1),
        "peak_host_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def refuse_altered(folder: Path) -> None:
    """A finished run's folder, or one in it, is an input only as it was written, and with no weights beside its own."""
    for run, name in ((folder, ""), (folder.absolute().parent, folder.absolute().name)):
        try:
            checksums = checksums_below(load_manifest(place_of(run)).get("checksums", {}), name)
        except (SepoError, OSError):
            # No manifest of ours, or one that vouches for nothing.
            continue
        faults = [f"{run / each} is not what was written there" for each in altered_in(place_of(run), checksums)]
        if checksums:
            weights = (path for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS)
            faults += [f"{path} is not of it" for path in weights if os.path.join(name, path.name) not in checksums]
        if faults:
            raise SepoError(
                f"{folder} is not as its run finished it: {faults[0]}",
                hint=f"run the same again, or, if it was changed on purpose, give a copy without {FINISHED}",
            )


def read_manifest(
    folder: str | Path | Place, stages: str | tuple[str, ...], remedy: str, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The manifest of a finished stage; what `stages.store.shape` says of it holds.

    Args:
        stages: the one, or the several, whose manifest is wanted; messages speak of the first.
        remedy: the hint if there is none, such as ``run `sepo score` first``.
        needed: paths of keys that it has to have.
    """
    place = place_of(folder)
    try:
        manifest = load_manifest(place) if place.may_have(FINISHED) else None
    except FileNotFoundError:
        manifest = None
    if manifest is None:
        there = place.names() or (place.local is not None and place.local.is_dir())
        problem = (
            f"{place} has no {FINISHED}: the stage never finished there" if there else f"there is no folder {place}"
        )
        raise SepoError(problem, hint=remedy)
    wanted = (stages,) if isinstance(stages, str) else stages
    if manifest.get("stage") not in wanted:
        raise SepoError(f"{place} was made by `sepo {manifest.get('stage')}`, not by `sepo {wanted[0]}`", hint=remedy)
    refuse_other_format(manifest, place)
    for path in needed:
        if lookup(manifest, path) is None:
            raise SepoError(f"{place.at(FINISHED)} has no {path}", hint=remedy)
    return manifest


def identity_of(
    stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Input], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """What a stage was asked to make, and its fingerprint."""
    own, default = as_json(settings), as_json(defaults)
    hashes = {name: given.hash for name, given in inputs.items()}
    content = {"format": FORMAT, "stage": stage, "settings": own, "inputs": hashes}
    chosen = {name: value for name, value in own.items() if name not in default or value != default[name]}
    # A path need not be UTF-8, but a manifest has to be.
    names = {name: given.name.encode(errors="backslashreplace").decode() for name, given in inputs.items()}
    return {**content, "fingerprint": hash_json(content | {"settings": chosen}), "input_names": names}


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """As a manifest will give it back: a tuple is a list there."""
    return dict(json.loads(json_text(dict(value))))


def claimed_by(place: Place, first: str = FINISHED) -> dict[str, Any] | None:
    """The manifest of the run that a folder holds, finished or not, of two the `first`; None if there is none."""
    second = UNFINISHED if first == FINISHED else FINISHED
    # A worker that finishes at this moment writes the one and removes the other: look again.
    for name in (first, second, first):
        with suppress(FileNotFoundError):
            if place.may_have(name):
                return load_manifest(place, name)
    return None


def refuse_other_format(manifest: Mapping[str, Any], place: Place) -> None:
    """What a later sepo wrote is not guessed at."""
    if manifest.get("format") != FORMAT:
        raise SepoError(
            f"{place} is of format {manifest.get('format')}, and this sepo reads format {FORMAT}",
            hint="use the version of sepo that made it",
        )


def load_manifest(place: Place, name: str = FINISHED) -> dict[str, Any]:
    """What is recorded in a folder, by whichever stage; FileNotFoundError where nothing is."""
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
    return dict(manifest)


def differences(there: Mapping[str, Any], here: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """What differs between two runs, named for a person; nothing where they are the same.

    Args:
        defaults: what a setting is that one of them does not name, since it is older than the option.
    """
    if there.get("stage") != here["stage"]:
        return [f"of `sepo {there.get('stage')}`, not of `sepo {here['stage']}`"]
    if there.get("format") != here["format"]:
        return [f"of format {there.get('format')}, this is format {here['format']}"]
    default = as_json(defaults)
    old, new = default | there.get("settings", {}), default | here["settings"]
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    found = [f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in names]
    old, new = there.get("inputs", {}), here["inputs"]
    changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    if TOKENIZATION not in old:
        changed.discard(TOKENIZATION)
    return found + [f"the {name} differs" for name in sorted(changed.difference(_CACHES))]
