"""What a model was trained on, as the manifests of the stages that made it tell; a held-out pair must not be there.

Pairs are found again by the hash of their ids (`stages.currency.content_hash`), so only those of the same tokenizer and
chat template. Fine-tuning on a data set of its own (`--sft-dataset`) and the oracle behind a policy's scores are not
looked at.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.configs import is_remote
from stages.currency import TokenPair, content_hash
from stages.data.read import dataset_hash
from stages.errors import SepoError
from stages.store.files import hash_file, hash_json
from stages.store.logps import FILE as LOGPS
from stages.store.manifest import FINISHED, read_manifest
from stages.store.scores import open_scores

Hashes = NDArray[np.uint64]


class Trained(NamedTuple):
    """Pairs that a model was trained on."""

    source: str
    """the folder or data set that holds them"""
    hashes: Hashes | None
    """None: they cannot be compared with ours"""
    why_not: str = ""


def recorded_sources(model: Path) -> list[str]:
    """The folders of scores and oracles with which a model, and those that it started from, were trained."""
    sources: list[str] = []
    seen: set[Path] = set()
    while model not in seen:
        seen.add(model)
        policy = _manifest(model, "train-policy")
        oracle = _manifest(model.parent, "train-oracle") if model.name in ("oracle", "reference") else None
        if policy is not None:
            sources.append(policy["input_names"]["scores"])
        elif oracle is not None and _learnt_from_pairs(model.name, oracle):
            sources.append(str(model.parent))
        made_by = policy or oracle
        model = Path(made_by["input_names"]["model"]).expanduser() if made_by else model
    return list(dict.fromkeys(sources))


def trained_on(source: str, tokenizer: str, read_data: Callable[[str], Sequence[TokenPair]]) -> list[Trained]:
    """The pairs that a source holds.

    Args:
        source: a folder of `sepo score`, `train-oracle` or `train-policy`, or the manifest in it, or else a data set.
        tokenizer: hash of the tokenizer that made the pairs to be looked for (`stages.model.folders.tokenizer_hash`).
        read_data: a data set as pairs in the ids of that tokenizer.

    Raises:
        SepoError: what was given can be read as none of these.
    """
    folder = Path(source).expanduser()
    folder = folder.parent if folder.name == FINISHED else folder
    if _manifest(folder, "train-oracle"):
        return [_of_oracle(folder, tokenizer)]
    if is_remote(source) or _manifest(folder, "score"):
        return [_of_scores(source if is_remote(source) else str(folder), tokenizer)]
    if _manifest(folder, "train-policy"):
        return [each for name in recorded_sources(folder) for each in trained_on(name, tokenizer, read_data)]
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


def _manifest(folder: Path, stage: str) -> dict[str, Any] | None:
    if not (folder / FINISHED).exists():
        return None
    try:
        return read_manifest(folder, stage, "")
    except SepoError:
        return None


def _of_scores(folder: str, tokenizer: str) -> Trained:
    scores = open_scores(folder)
    if scores.manifest["tokenizer"].get("hash") not in (tokenizer, None):
        return Trained(folder, None, "its tokenizer or chat template is another one")
    return Trained(folder, hashes_of([row.pair for row in scores.rows()]))


def _of_oracle(folder: Path, tokenizer: str) -> Trained:
    """`sepo train-oracle` writes the log-probs of the pairs that it held out before those it trained on."""
    manifest = read_manifest(folder, "train-oracle", "")
    if manifest["inputs"].get("tokenizer") != tokenizer:
        return Trained(str(folder), None, "its tokenizer or chat template is another one")
    try:
        hashes = pq.read_table(folder / LOGPS, columns=["content_hash"])["content_hash"].to_numpy()
    except (OSError, KeyError, pa.ArrowInvalid):
        return Trained(str(folder), None, f"it has no {LOGPS} that can be read")
    return Trained(str(folder), hashes[manifest["counts"]["held_out"] :])
