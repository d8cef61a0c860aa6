"""What has nothing to do is answered at once: before torch is loaded, a tokenizer read, a model hashed.

Whether a run is finished is its stage's to say. That it has said so is noted in the cache, under all that was asked and
the state (size, times) of every file that was taken or made: while they stand, so does the answer. In doubt (a name on
the hub, an object store, several processes) the stage is asked.
"""

import json
import os
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import sepo_cli
import stages
from stages.configs import Config
from stages.reporting import Summary
from stages.store.files import cache_folder, hash_json, write_text
from stages.store.protect import files_meant

LIBRARIES: Final = ("sepo", "torch", "transformers", "tokenizers")
"""whose versions may decide what a stage asks for"""


def recalled(command: str, config: Config) -> Summary | None:
    """The summary of a run that is known to have nothing to do; None where the stage has to be asked."""
    # Whatever is amiss, its stage finds words for it.
    with suppress(Exception):
        folder, manifest = _manifest(config)
        title = _note(command, config, folder, manifest, {}).read_text()
        shown = next((name for name in manifest["files"] if name.endswith(".md")), "manifest.json")
        return Summary(title, [("already finished", str(folder / shown))], fresh=False)
    return None


def remember(command: str, config: Config, title: str, started: int) -> None:
    """Note that a run is finished, if it is.

    An input that changed since the command `started`, in nanoseconds, may not be the one that was taken.
    """
    # A run that finished is none the worse for a note that could not be written.
    with suppress(Exception):
        folder, manifest = _manifest(config)
        inputs: dict[str, list[int]] = {}
        note = _note(command, config, folder, manifest, inputs)
        if all(max(times) < started for _, *times in inputs.values()):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, title)


def _manifest(config: Any) -> tuple[Path, dict[str, Any]]:
    """A finished run's folder and its manifest; LookupError or OSError where only the stage can tell."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several or any(getattr(config, name, None) for name in ("push_to_hub", "trust_remote_code")):
        raise LookupError
    folder = Path(config.output_dir).expanduser()
    return folder, json.loads((folder / "manifest.json").read_bytes())


def _note(command: str, config: Config, folder: Path, manifest: dict[str, Any], inputs: dict[str, list[int]]) -> Path:
    """Where the answer to a command is noted, by the files as they are now; `inputs` is filled with those it takes."""
    inputs.update({str(path): _state(path) for name in manifest["input_names"].values() for path in files_meant(name)})
    outputs = {name: _state(folder / name) for name in ["manifest.json", *manifest["files"]]}
    code = {str(path): _state(path) for each in (sepo_cli, stages) for path in Path(each.__path__[0]).rglob("*.py")}
    asked = [command, repr(config), os.getcwd(), sys.version, [version(name) for name in LIBRARIES]]
    return cache_folder() / "finished" / hash_json([asked, code, inputs, outputs]).removeprefix("sha256:")


def _state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
