"""`sepo score`: one score for every response token of a data set, as Parquet shards.

    s(y_i) = log pi_ora(y_i | q, y_<i) - log pi_ref(y_i | q, y_<i)

(arXiv 2408.13518 section 3.3; no beta.) A score is stored as it was measured: which share of tokens to keep, on which
side, is decided by `sepo train-policy`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from stages.configs import ScoreConfig, column_names, content_settings
from stages.currency import PairLogps, ScoredPair, TokenPair
from stages.data.dataset import Limit, load_pairs, refuse_dropped
from stages.data.encode import Encoder
from stages.data.read import dataset_hash
from stages.errors import SepoError
from stages.method.drift import DriftMeter
from stages.method.statistics import preference_accuracy
from stages.model.folders import (
    embedding_rows,
    load_model,
    load_tokenizer,
    model_hash,
    resolve_model,
    tokenizer_hash,
    vocabulary_hash,
)
from stages.model.logps import response_logps
from stages.model.processes import join_processes, refuse_several
from stages.reporting import Reporter, Summary, Task
from stages.store.manifest import Input, Run, open_run, read_manifest
from stages.store.scores import read_shard, shard_matches, shard_name, write_shard

STAGE: Final = "score"


class Models(NamedTuple):
    """The two folders whose difference is a score."""

    oracle: Path
    reference: Path


class Verdict(NamedTuple):
    """What the scores look like, taken together."""

    rows: list[tuple[str, str]]
    results: dict[str, Any]
    warnings: list[str]


def run(config: ScoreConfig, reporter: Reporter) -> Summary:
    """Score every usable pair; shards that an interrupted run has finished are kept.

    Raises:
        SepoError: an oracle that never finished, two tokenizers, unusable data or output folder.
    """
    accelerator = join_processes()
    refuse_several(accelerator, STAGE)
    device = accelerator.device
    models = _models(config, reporter)
    tokenizer = _common_tokenizer(models, config.trust_remote_code)
    inputs = {
        "oracle": Input(str(models.oracle), model_hash(models.oracle)),
        "reference": Input(str(models.reference), model_hash(models.reference)),
        "tokenizer": Input(str(models.oracle), tokenizer_hash(tokenizer)),
        "dataset": Input(config.dataset, dataset_hash(config.dataset)),
    }
    work = open_run(Path(config.output_dir), STAGE, content_settings(config), inputs, overwrite=config.overwrite)
    if work.finished:
        return Summary(f"scores in {work.folder}", [("already finished", str(work.folder / "manifest.json"))], False)

    encoder = Encoder(tokenizer)
    pairs, counts = load_pairs(
        config.dataset,
        encoder,
        Limit(config.max_length, config.overlong),
        columns=column_names(config.columns),
        reporter=reporter,
    )
    if config.strict:
        refuse_dropped(counts, config.dataset)
    shards = _shards(len(pairs), config.shard_size)
    reporter.say(f"{len(pairs):,} pairs = {len(shards):,} shards of up to {config.shard_size:,}")
    vocabulary = _write_missing(config, work, models, tokenizer, pairs, shards, device, reporter)
    verdict = _judge(work, list(shards), tokenizer, vocabulary)
    for warning in verdict.warnings:
        reporter.warn(warning)
    work.finish(
        files=list(shards),
        device=str(device),
        counts=counts.as_json(),
        results=verdict.results,
        warnings=verdict.warnings,
        tokenizer={
            "vocabulary": vocabulary_hash(tokenizer),
            "hash": inputs["tokenizer"].hash,
            "size": len(tokenizer),
        },
    )
    response_tokens = counts.tokens["chosen"] + counts.tokens["rejected"]
    rows = [("pairs", f"{len(pairs):,}"), ("response tokens", f"{response_tokens:,}"), *verdict.rows]
    return Summary(f"scores in {work.folder}", [*rows, ("shards", f"{len(shards):,}")])


def _models(config: ScoreConfig, reporter: Reporter) -> Models:
    if config.oracle:
        folder = Path(config.oracle)
        read_manifest(folder, "train-oracle", "run `sepo train-oracle` first, or let it finish")
        names = (str(folder / "oracle"), str(folder / "reference"))
    else:
        names = (str(config.oracle_model), str(config.reference_model))
    return Models(*(resolve_model(name, reporter) for name in names))


def _common_tokenizer(models: Models, trust_remote_code: bool) -> Any:
    """The oracle's tokenizer, which has to be the reference's too: a score is a difference at one and the same id."""
    oracle = load_tokenizer(models.oracle, trust_remote_code=trust_remote_code)
    reference = load_tokenizer(models.reference, trust_remote_code=trust_remote_code)
    if vocabulary_hash(oracle) != vocabulary_hash(reference):
        raise SepoError(
            f"oracle and reference do not share a token->id map ({len(oracle):,} and {len(reference):,} tokens)",
            hint="score with the reference that the oracle was trained from",
        )
    return oracle


def _shards(pairs: int, size: int) -> dict[str, range]:
    """Which of the pairs go into which file."""
    places = range(pairs)
    return {shard_name(index): places[start : start + size] for index, start in enumerate(places[::size])}


def _write_missing(
    config: ScoreConfig,
    work: Run,
    models: Models,
    tokenizer: Any,
    pairs: Sequence[TokenPair],
    shards: dict[str, range],
    device: torch.device,
    reporter: Reporter,
) -> int:
    """Score and write the shards that are not there yet; returns how many ids the models know."""
    missing = {
        name: places for name, places in shards.items() if not shard_matches(work.folder / name, work.fingerprint)
    }
    if len(missing) < len(shards):
        reporter.say(f"{len(shards) - len(missing):,} shards are there already")
    loaded = [load_model(folder, trust_remote_code=config.trust_remote_code).to(device) for folder in models]
    with reporter.task("score", sum(map(len, missing.values())), "pairs") as task:
        for name, places in missing.items():
            part = [pairs[place] for place in places]
            rows = list(score_pairs(loaded, part, config.max_tokens_per_device, device, task))
            write_shard(work.folder / name, rows, work.fingerprint, vocabulary_hash(tokenizer))
    return min(embedding_rows(model) for model in loaded)


def score_pairs(
    models: Sequence[Any], pairs: list[TokenPair], max_tokens: int, device: torch.device, task: Task
) -> Iterator[ScoredPair]:
    """Oracle minus reference log-prob of every response token, in the order of the pairs.

    Args:
        models: the oracle, then the reference.
    """
    oracle, reference = response_logps(models, pairs, max_tokens=max_tokens, device=device, task=task)
    for pair, ours, theirs in zip(pairs, oracle, reference, strict=True):
        scores = PairLogps(ours.chosen - theirs.chosen, ours.rejected - theirs.rejected)
        yield ScoredPair(pair, scores, theirs)


def _judge(work: Run, shards: list[str], tokenizer: Any, vocabulary_size: int) -> Verdict:
    """Read the shards back, as the next stage will, and say what is in them."""
    meter = DriftMeter(vocabulary_size)

    def rows() -> Iterator[PairLogps]:
        for name in shards:
            for row in read_shard(work.folder / name, work.fingerprint):
                meter.add(row)
                yield row.scores

    accuracy = preference_accuracy(rows())
    drift = meter.read()
    token = tokenizer.decode([drift.worst_id]) if drift.worst_id >= 0 else ""
    return Verdict(
        rows=[
            ("implicit reward prefers chosen", f"{accuracy:.3f} of all pairs here, trained on or not"),
            *drift.rows(token),
        ],
        results={"accuracy": accuracy.as_json(), "drift": {**drift._asdict(), "worst_token": token}},
        warnings=[drift.warning(token)] if drift.large else [],
    )
