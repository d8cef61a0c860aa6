"""Which held-out pairs a model was trained on, as the manifests of the stages that made it tell.

Pairs are found again by the hash of their ids, so only those of the same tokenizer and chat template. Fine-tuning on a
data set of its own (`--sft-dataset`) and the oracle behind a policy's scores are not looked at.
"""

import os
from collections.abc import Iterator, Sequence
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
from stages.store.logps import read_hashes
from stages.store.manifest import FINISHED, read_manifest
from stages.store.scores import MADE_BY, NEEDED, open_scores
from stages.store.shape import lookup
from stages.tokens.dataset import LengthLimit, load_pairs
from stages.training.schedule import split_pairs
from stages.types import TokenPair, longest

Found = NDArray[np.uint64] | str
"""hashes of pairs that a model was trained on, or why they cannot be compared with ours"""
_LOOKED_AT: Final[dict[str | tuple[str, ...], tuple[str, ...]]] = {
    MADE_BY: NEEDED,
    "train-policy": ("input_names.scores", "inputs.scores", "input_names.model"),
    "extrapolate": ("input_names.model",),
    "train-oracle": ("input_names.model", "inputs", "settings.sft_epochs", "counts.held_out"),
}
"""of each stage's manifest, as paths of keys"""
SNAPSHOTS: Final = "snapshots"
"""where a policy keeps what it was on the way"""


class TrainedOn(NamedTuple):
    """Where pairs that a model was trained on are to be found."""

    name: str
    """a folder of scores or of an oracle, or a data set"""
    policy: Path | None = None
    """the policy that was trained on these scores; some of them it may have held out"""
    lost: str = ""
    """why they are not to be found"""


def contamination(candidates: Sequence[Candidate], config: EvaluateConfig, reporter: Reporter) -> list[str]:
    """What of the held-out pairs each model has seen in training, as far as that can be known, as warnings."""
    warnings: dict[str, None] = {}
    bases: dict[str, list[str]] = {}
    looked_into: dict[tuple[TrainedOn, str], Found] = {}
    given = [source for name in config.training_data for source in _given(name)]
    for name, folder, _, held_out, _ in candidates:
        sources, base = training_history(folder)
        bases.setdefault(base, []).append(name)
        seen = np.zeros(len(held_out.pairs), bool)
        for source in [*sources, *given]:
            key = (source, held_out.tokenizer_hash)
            if key not in looked_into:
                looked_into[key] = _look_into(source, held_out, config, reporter)
            found = looked_into[key]
            if isinstance(found, str):
                warnings[f"{name}: whether {source.name} overlaps the data set is unknown: {found}"] = None
            else:
                seen |= np.isin(hashes_of(held_out.pairs), found)
        if seen.any():
            share = f"{seen.sum():,} of the {len(seen):,} pairs ({seen.mean():.1%})"
            warnings[f"{name} was trained on {share}: what they say of it is too good"] = None
    for base, names in bases.items() if not given else ():
        reporter.say(
            f"nothing is known of what {base} was trained on (behind {', '.join(names)}); --training-data names it"
        )
    return list(warnings)


def _given(name: str) -> list[TrainedOn]:
    """What was named as training data; of a policy, that on which it was trained."""
    return training_history(_folder(name))[0] if _manifest(_folder(name), "train-policy") else [TrainedOn(name)]


def _look_into(source: TrainedOn, held_out: HeldOut, config: EvaluateConfig, reporter: Reporter) -> Found:
    try:
        return training_pairs(source, held_out, config, reporter)
    except SepoError as error:
        if source.name in config.training_data:
            raise
        return error.message


def training_history(model: Path) -> tuple[list[TrainedOn], str]:
    """The pairs that a model and those behind it were trained on, and the one of which nothing is known."""
    sources: list[TrainedOn] = []
    name = str(model)
    seen: set[Path] = set()
    while model not in seen:
        seen.add(model)
        place = model.resolve()
        run = place.parents[1] if place.parent.name == SNAPSHOTS else model
        made_by = _manifest(run, "train-policy")
        if made_by is not None:
            sources.append(_scores_of(run, made_by))
        elif place.name.startswith(("oracle", "reference")) and (made_by := _manifest(place.parent, "train-oracle")):
            run = place.parent
            # A reference that was taken as it is, or fine-tuned on other data, has seen none of the pairs.
            tuned = made_by["settings"]["sft_epochs"] > 0 and "sft_dataset" not in made_by["inputs"]
            sources += [TrainedOn(str(run))] if tuned or place.name != "reference" else []
        else:
            # It has seen what the model has seen that it was made of.
            made_by = _manifest(run, "extrapolate")
        if made_by is not None:
            name = made_by["input_names"]["model"]
            model = next(filter(Path.is_dir, _meant_by(name, run)), Path(name))
    return sources, name


def _scores_of(policy: Path, manifest: dict[str, Any]) -> TrainedOn:
    given, wanted = manifest["input_names"]["scores"], manifest["inputs"]["scores"]
    if is_remote(given):
        return TrainedOn(given, policy)
    for folder in _meant_by(given, policy):
        scores = _manifest(folder, MADE_BY)
        if scores is not None and scores["fingerprint"] == wanted:
            return TrainedOn(str(folder), policy)
    return TrainedOn(given, lost="it is not there, or holds other scores now")


def _meant_by(name: str, run: Path) -> Iterator[Path]:
    """What a manifest's user may have named: from where we are, or else from the run or a folder above it."""
    # Unlike Path's own, it leaves a home alone whose user is unknown here.
    path = Path(os.path.expanduser(name))
    yield path
    if not path.is_absolute():
        yield from (folder / path for folder in (run, *run.resolve().parents))


def training_pairs(source: TrainedOn, held_out: HeldOut, config: EvaluateConfig, reporter: Reporter) -> Found:
    """The pairs of a source, or why they cannot be compared."""
    name, policy, lost = source
    folder = _folder(name)
    if lost:
        return lost
    if oracle := _manifest(folder, "train-oracle"):
        if why_not := _unlike(oracle, oracle["inputs"].get("tokenizer"), held_out, config):
            return why_not
        hashes = read_hashes(folder / LOGPS)
        if hashes is None:
            return f"it has no {LOGPS} that can be read"
        # The pairs that were held out come first.
        return hashes[oracle["counts"]["held_out"] :]
    if is_remote(name) or _manifest(folder, MADE_BY):
        scores = open_scores(name if is_remote(name) else folder)
        theirs = scores.manifest["tokenizer"].get("hash") or held_out.tokenizer_hash
        why_not = _unlike(scores.manifest, theirs, held_out, config)
        return why_not or hashes_of(_trained_on([row.pair for row in scores.rows()], policy))
    if (folder / FINISHED).exists():
        raise SepoError(
            f"{name} holds no pairs that a model was trained on",
            hint="give a folder of `sepo score`, `train-oracle` or `train-policy`, or a data set",
        )
    limit, columns = LengthLimit(config.max_length, config.overlong), column_names(config.columns)
    return hashes_of(load_pairs(name, held_out.encoder, limit, columns=columns, reporter=reporter)[0])


def _trained_on(pairs: list[TokenPair], policy: Path | None) -> list[TokenPair]:
    """The scored pairs but those that a policy held out; all, where its manifest does not tell which they were."""
    manifest = _manifest(policy, "train-policy") if policy else None
    try:
        fraction, seed, limit = (
            lookup(manifest, f"settings.{name}") for name in ("eval_fraction", "seed", "max_length")
        )
        given = [pair for pair in pairs if longest(pair) <= limit]
        if not 0 < fraction < 1 or len(given) != lookup(manifest, "counts.kept"):
            return pairs
    except TypeError:
        return pairs
    return [given[index] for index in split_pairs(given, fraction, 1.0, seed)[0]]


def source_hash(source: str) -> str:
    """Hash of what a source holds, for fingerprints; of an object store's, only its name."""
    if is_remote(source):
        return hash_json(source)
    manifest = _folder(source) / FINISHED
    return hash_file(manifest) if manifest.exists() else dataset_hash(source)


def _folder(name: str) -> Path:
    """A folder, that can be given by its manifest too."""
    path = Path(name).expanduser()
    return path.parent if path.name == FINISHED else path


def _manifest(folder: Path, stage: str | tuple[str, ...]) -> dict[str, Any] | None:
    if not (folder / FINISHED).exists():
        return None
    try:
        return read_manifest(folder, stage, "", _LOOKED_AT[stage])
    except SepoError:
        return None


def _unlike(manifest: dict[str, Any], theirs: str | None, held_out: HeldOut, config: EvaluateConfig) -> str:
    """Why the ids behind a manifest, of a tokenizer of the hash `theirs`, cannot be compared with ours, if so."""
    if theirs != held_out.tokenizer_hash:
        return "its tokenizer or chat template is another one"
    given, ours = lookup(manifest, "settings.chat_template_kwargs"), config.chat_template_kwargs
    return "" if given_arguments(given) == given_arguments(ours) else "its chat template was given other arguments"
