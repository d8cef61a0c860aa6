"""What a model was trained on, as the manifests of the stages that made it tell; a held-out pair must not be there.

Pairs are found again by the hash of their ids (`stages.types.content_hash`), so only those of the same tokenizer and
chat template. Fine-tuning on a data set of its own (`--sft-dataset`) and the oracle behind a policy's scores are not
looked at.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.configs import is_remote
from stages.data.read import dataset_hash
from stages.data.template_arguments import given_arguments
from stages.errors import SepoError
from stages.store.files import hash_file, hash_json
from stages.store.logps import FILE as LOGPS
from stages.store.logps import read_whole_table
from stages.store.manifest import FINISHED, read_manifest
from stages.store.scores import MADE_BY, NEEDED, open_scores
from stages.store.shape import lookup
from stages.types import TokenPair, content_hash

Hashes = NDArray[np.uint64]
_LOOKED_AT: Final[dict[str | tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    MADE_BY: NEEDED,
    "train-policy": (("input_names", "scores"), ("inputs", "scores"), ("input_names", "model")),
    "train-oracle": (("input_names", "model"), ("inputs",), ("settings", "sft_epochs"), ("counts", "held_out")),
}
"""of each stage's manifest, as paths of keys"""
_KWARGS: Final = ("settings", "chat_template_kwargs")
_NO_ARGUMENTS: Final[dict[str, Any]] = {}
_OTHER_TOKENIZER: Final = "its tokenizer or chat template is another one"
_OTHER_KWARGS: Final = "its chat template was given other arguments"
SNAPSHOTS: Final = "snapshots"
"""where a policy keeps what it was on the way"""


class Recorded(NamedTuple):
    """What the manifests beside a model, and beside those that it started from, tell of its training."""

    sources: list[str]
    """the folders of scores and oracles with which these were trained"""
    lost: dict[str, str]
    """why of some other source nothing is known"""
    base: str
    """the model with which the walk ended: nothing tells how it was made"""


class Trained(NamedTuple):
    """Pairs that a model was trained on."""

    source: str
    """the folder or data set that holds them"""
    hashes: Hashes | None
    """None: they cannot be compared with ours"""
    why_not: str = ""


def recorded_sources(model: Path) -> Recorded:
    """Follow a model, which may be a snapshot of a policy, to the models and the pairs that it was made from."""
    sources: dict[str, None] = {}
    lost: dict[str, str] = {}
    name = str(model)
    seen: set[Path] = set()
    while model not in seen:
        seen.add(model)
        place = model.resolve()
        run = place.parents[1] if place.parent.name == SNAPSHOTS else model
        policy = _manifest(run, "train-policy")
        oracle = _manifest(place.parent, "train-oracle") if place.name in ("oracle", "reference") else None
        if policy is not None:
            given, wanted = policy["input_names"]["scores"], policy["inputs"]["scores"]
            found = given if is_remote(given) else _named_in(run, given, partial(_holds, wanted))
            if found is None:
                lost[given] = "it is not there, or holds other scores now"
            else:
                sources[str(found)] = None
        elif oracle is not None:
            run = place.parent
            if _learnt_from_pairs(place.name, oracle):
                sources[str(run)] = None
        made_by = policy or oracle
        if made_by:
            name = made_by["input_names"]["model"]
            model = _named_in(run, name, Path.is_dir) or Path(name)
    return Recorded(list(sources), lost, name)


def _named_in(run: Path, name: str, fits: Callable[[Path], bool]) -> Path | None:
    """What a manifest names, as its user did: from where we are, or else from the run or a folder above it."""
    # Unlike Path's own, it leaves a home alone whose user is unknown here.
    path = Path(os.path.expanduser(name))
    above = [] if path.is_absolute() else [run, *run.resolve().parents]
    return next((each for each in (path, *(folder / path for folder in above)) if fits(each)), None)


def _holds(fingerprint: str, folder: Path) -> bool:
    scores = _manifest(folder, MADE_BY)
    return scores is not None and scores["fingerprint"] == fingerprint


class Writing(NamedTuple):
    """What made ids of the text of some pairs."""

    tokenizer: str
    """hash (`stages.tokens.fingerprint.tokenizer_hash`)"""
    given: dict[str, Any] = _NO_ARGUMENTS
    """what the chat template was given for all rows"""


def trained_on(source: str, writing: Writing, read_data: Callable[[str], Sequence[TokenPair]]) -> list[Trained]:
    """The pairs that a source holds.

    Args:
        source: a folder of `sepo score`, `train-oracle` or `train-policy`, or the manifest in it, or else a data set.
        writing: what made the pairs to be looked for.
        read_data: a data set as pairs that were made by the same.

    Raises:
        SepoError: what was given can be read as none of these.
    """
    folder = Path(source).expanduser()
    folder = folder.parent if folder.name == FINISHED else folder
    if _manifest(folder, "train-oracle"):
        return [_of_oracle(folder, writing)]
    if is_remote(source) or _manifest(folder, MADE_BY):
        return [_of_scores(source if is_remote(source) else str(folder), writing)]
    if _manifest(folder, "train-policy"):
        return [each for name in recorded_sources(folder).sources for each in trained_on(name, writing, read_data)]
    if (folder / FINISHED).exists():
        raise SepoError(
            f"{source} holds no pairs that a model was trained on",
            hint="give a folder of `sepo score`, `train-oracle` or `train-policy`, or a data set",
        )
    return [Trained(source, hashes_of(read_data(source)))]


def source_hash(source: str) -> str:
    """Hash of what a source holds, for fingerprints; of an object store's, only its name."""
    folder = Path(source).expanduser()
    manifest = folder if folder.name == FINISHED else folder / FINISHED
    if is_remote(source):
        return hash_json(source)
    return hash_file(manifest) if manifest.exists() else dataset_hash(source)


def hashes_of(pairs: Sequence[TokenPair]) -> Hashes:
    return np.array([content_hash(pair) for pair in pairs], np.uint64)


def _learnt_from_pairs(name: str, oracle: dict[str, Any]) -> bool:
    """A reference that was taken as it is, or fine-tuned on other data, has seen none of the pairs."""
    return name == "oracle" or (oracle["settings"]["sft_epochs"] > 0 and "sft_dataset" not in oracle["inputs"])


def _manifest(folder: Path, stage: str | tuple[str, ...]) -> dict[str, Any] | None:
    if not (folder / FINISHED).exists():
        return None
    try:
        return read_manifest(folder, stage, "", _LOOKED_AT[stage])
    except SepoError:
        return None


def _of_scores(folder: str, writing: Writing) -> Trained:
    scores = open_scores(folder)
    if scores.manifest["tokenizer"].get("hash") not in (writing.tokenizer, None):
        return Trained(folder, None, _OTHER_TOKENIZER)
    if given_arguments(lookup(scores.manifest, _KWARGS)) != writing.given:
        return Trained(folder, None, _OTHER_KWARGS)
    return Trained(folder, hashes_of([row.pair for row in scores.rows()]))


def _of_oracle(folder: Path, writing: Writing) -> Trained:
    """`sepo train-oracle` writes the log-probs of the pairs that it held out before those it trained on."""
    manifest = read_manifest(folder, "train-oracle", "")
    if manifest["inputs"].get("tokenizer") != writing.tokenizer:
        return Trained(str(folder), None, _OTHER_TOKENIZER)
    if given_arguments(lookup(manifest, _KWARGS)) != writing.given:
        return Trained(str(folder), None, _OTHER_KWARGS)
    table = read_whole_table(folder / LOGPS)
    if table is None:
        return Trained(str(folder), None, f"it has no {LOGPS} that can be read")
    hashes = table["content_hash"].to_numpy()
    return Trained(str(folder), hashes[manifest["counts"]["held_out"] :])
