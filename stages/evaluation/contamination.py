"""Which held-out pairs a model was trained on, as the manifests of the stages that made it tell.

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

from stages.configs import EvaluateConfig, column_names, is_remote
from stages.data.read import dataset_hash
from stages.data.template_arguments import given_arguments
from stages.errors import SepoError
from stages.evaluation.evaluator import Candidate
from stages.evaluation.held_out import HeldOut, hashes_of
from stages.reporting import Reporter
from stages.store.files import hash_file, hash_json
from stages.store.logps import FILE as LOGPS
from stages.store.logps import read_whole_table
from stages.store.manifest import FINISHED, read_manifest
from stages.store.scores import MADE_BY, NEEDED, open_scores
from stages.store.shape import lookup
from stages.tokens.dataset import LengthLimit, load_pairs
from stages.types import TokenPair

Hashes = NDArray[np.uint64]
_LOOKED_AT: Final[dict[str | tuple[str, ...], tuple[str, ...]]] = {
    MADE_BY: NEEDED,
    "train-policy": ("input_names.scores", "inputs.scores", "input_names.model"),
    "train-oracle": ("input_names.model", "inputs", "settings.sft_epochs", "counts.held_out"),
}
"""of each stage's manifest, as paths of keys"""
SNAPSHOTS: Final = "snapshots"
"""where a policy keeps what it was on the way"""


class History(NamedTuple):
    """What the manifests beside a model, and beside those that it started from, tell of its training."""

    sources: list[str]
    """the folders of scores and oracles with which these were trained"""
    lost: dict[str, str]
    """why of some other source nothing is known"""
    base: str
    """the model with which the walk ended: nothing tells how it was made"""


class TrainingPairs(NamedTuple):
    """Pairs that a model was trained on."""

    source: str
    """the folder or data set that holds them"""
    hashes: Hashes | None
    """None: they cannot be compared with ours"""
    why_not: str = ""


def contamination(candidates: Sequence[Candidate], config: EvaluateConfig, reporter: Reporter) -> list[str]:
    """What of the held-out pairs each model has seen in training, as far as that can be known, as warnings.

    Raises:
        SepoError: what was given as training data cannot be read as such.
    """
    warnings = []
    bases: dict[str, list[str]] = {}
    looked_into: dict[tuple[str, str], list[TrainingPairs]] = {}
    for name, folder, _, held_out, _ in candidates:
        history = training_history(folder)
        bases.setdefault(history.base, []).append(name)
        found = [TrainingPairs(source, None, why) for source, why in history.lost.items()]
        for source in dict.fromkeys([*history.sources, *config.training_data]):
            key = (source, held_out.tokenizer_hash)
            if key not in looked_into:
                looked_into[key] = _look_into(source, held_out, config, reporter)
            found += looked_into[key]
        warnings += [
            f"{name}: whether {each.source} overlaps the data set is unknown: {each.why_not}"
            for each in found
            if each.hashes is None
        ]
        ours, theirs = hashes_of(held_out.pairs), [each.hashes for each in found if each.hashes is not None]
        if theirs and (seen := int(np.isin(ours, np.concatenate(theirs)).sum())):
            share = f"{seen:,} of the {len(ours):,} pairs ({seen / len(ours):.1%})"
            warnings.append(f"{name} was trained on {share}: what they say of it is too good")
    for base, names in bases.items() if not config.training_data else ():
        reporter.say(
            f"nothing is known of what {base} was trained on (behind {', '.join(names)}); --training-data names it"
        )
    return warnings


def _look_into(source: str, held_out: HeldOut, config: EvaluateConfig, reporter: Reporter) -> list[TrainingPairs]:
    limit, columns = LengthLimit(config.max_length, config.overlong), column_names(config.columns)
    try:
        return training_pairs(
            source,
            held_out.tokenizer_hash,
            given_arguments(config.chat_template_kwargs),
            lambda name: load_pairs(name, held_out.encoder, limit, columns=columns, reporter=reporter)[0],
        )
    except SepoError as error:
        if source in config.training_data:
            raise
        return [TrainingPairs(source, None, error.message)]


def training_history(model: Path) -> History:
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
        if made_by := policy or oracle:
            name = made_by["input_names"]["model"]
            model = _named_in(run, name, Path.is_dir) or Path(name)
    return History(list(sources), lost, name)


def training_pairs(
    source: str, tokenizer: str, arguments: dict[str, Any], read_data: Callable[[str], Sequence[TokenPair]]
) -> list[TrainingPairs]:
    """The pairs that a source holds.

    Args:
        source: a folder of `sepo score`, `train-oracle` or `train-policy`, or the manifest in it, or else a data set.
        tokenizer: hash of the one that made the pairs to be looked for.
        arguments: of the chat template, given for all of their rows.
        read_data: a data set as pairs that were made by the same.

    Raises:
        SepoError: what was given can be read as none of these.
    """
    folder = Path(source).expanduser()
    folder = folder.parent if folder.name == FINISHED else folder
    if oracle := _manifest(folder, "train-oracle"):
        why_not = _unlike(oracle["inputs"].get("tokenizer"), oracle, tokenizer, arguments)
        return [_of_oracle(folder, oracle, why_not)]
    if is_remote(source) or _manifest(folder, MADE_BY):
        scores = open_scores(source if is_remote(source) else str(folder))
        theirs = scores.manifest["tokenizer"].get("hash") or tokenizer
        why_not = _unlike(theirs, scores.manifest, tokenizer, arguments)
        hashes = None if why_not else hashes_of([row.pair for row in scores.rows()])
        return [TrainingPairs(str(scores.folder), hashes, why_not)]
    if _manifest(folder, "train-policy"):
        sources = training_history(folder).sources
        return [each for name in sources for each in training_pairs(name, tokenizer, arguments, read_data)]
    if (folder / FINISHED).exists():
        raise SepoError(
            f"{source} holds no pairs that a model was trained on",
            hint="give a folder of `sepo score`, `train-oracle` or `train-policy`, or a data set",
        )
    return [TrainingPairs(source, hashes_of(read_data(source)))]


def source_hash(source: str) -> str:
    """Hash of what a source holds, for fingerprints; of an object store's, only its name."""
    folder = Path(source).expanduser()
    manifest = folder if folder.name == FINISHED else folder / FINISHED
    if is_remote(source):
        return hash_json(source)
    return hash_file(manifest) if manifest.exists() else dataset_hash(source)


def _named_in(run: Path, name: str, fits: Callable[[Path], bool]) -> Path | None:
    """What a manifest names, as its user did: from where we are, or else from the run or a folder above it."""
    # Unlike Path's own, it leaves a home alone whose user is unknown here.
    path = Path(os.path.expanduser(name))
    above = [] if path.is_absolute() else [run, *run.resolve().parents]
    return next((each for each in (path, *(folder / path for folder in above)) if fits(each)), None)


def _holds(fingerprint: str, folder: Path) -> bool:
    scores = _manifest(folder, MADE_BY)
    return scores is not None and scores["fingerprint"] == fingerprint


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


def _of_oracle(folder: Path, manifest: dict[str, Any], why_not: str) -> TrainingPairs:
    """`sepo train-oracle` writes the log-probs of the pairs that it held out before those it trained on."""
    table = None if why_not else read_whole_table(folder / LOGPS)
    if table is None:
        return TrainingPairs(str(folder), None, why_not or f"it has no {LOGPS} that can be read")
    return TrainingPairs(str(folder), table["content_hash"].to_numpy()[manifest["counts"]["held_out"] :])


def _unlike(theirs: str | None, manifest: dict[str, Any], tokenizer: str, arguments: dict[str, Any]) -> str:
    """Why the ids behind a manifest cannot be compared with ours; nothing where they can."""
    if theirs != tokenizer:
        return "its tokenizer or chat template is another one"
    same = given_arguments(lookup(manifest, "settings.chat_template_kwargs")) == arguments
    return "" if same else "its chat template was given other arguments"
