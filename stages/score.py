"""`sepo score`: one score for every response token of a data set, as Parquet shards.

    s(y_i) = log pi_ora(y_i | q, y_<i) - log pi_ref(y_i | q, y_<i)

(arXiv 2408.13518 section 3.3; no beta.) A score is stored as it was measured: which share of tokens to keep, on which
side, is decided by `sepo train-policy`.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.configs import ScoreConfig, column_names, content_settings
from stages.currency import PairLogps, TokenPair
from stages.data.dataset import Limit, load_pairs, refuse_dropped
from stages.data.encode import Encoder
from stages.data.read import dataset_hash
from stages.errors import SepoError
from stages.method.drift import Drift, DriftMeter
from stages.method.noise import Noise, measure_noise
from stages.method.statistics import preference_accuracy
from stages.model.folders import (
    load_tokenizer,
    model_hash,
    resolve_model,
    tokenizer_hash,
    vocabulary_hash,
)
from stages.model.precision import refuse_useless
from stages.model.processes import join_processes, refuse_several
from stages.model.scorer import How, Models, Scorer, exact_scores
from stages.reporting import Reporter, Summary
from stages.store.files import hash_file
from stages.store.logps import FILE as KNOWN
from stages.store.logps import KnownLogps, read_logps
from stages.store.manifest import Input, Run, open_run, read_manifest
from stages.store.scores import read_shard, shard_matches, shard_name, write_shard

STAGE: Final = "score"
LEAST_NOISE_PAIRS: Final = 16
MOST_NOISE_PAIRS: Final = 512


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
    refuse_useless(config.precision, device)
    models = _models(config, reporter)
    tokenizer = _common_tokenizer(models, config.trust_remote_code)
    inputs = {
        "oracle": Input(str(models.oracle), model_hash(models.oracle)),
        "reference": Input(str(models.reference), model_hash(models.reference)),
        "tokenizer": Input(str(models.oracle), tokenizer_hash(tokenizer)),
        "dataset": Input(config.dataset, dataset_hash(config.dataset)),
    }
    known = _known_logps(config, inputs, reporter)
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
    how = How(config.precision, config.max_tokens_per_device, device, config.trust_remote_code)
    _write_missing(work, Scorer(models, how, known, reporter), vocabulary_hash(tokenizer), pairs, shards, reporter)
    noise = _noise(config.noise_check, work, models, how, pairs, shards, reporter)
    verdict = _judge(work, list(shards), tokenizer, noise)
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
    work: Run,
    scorer: Scorer,
    vocabulary: str,
    pairs: Sequence[TokenPair],
    shards: dict[str, range],
    reporter: Reporter,
) -> None:
    """Score and write the shards that are not there yet."""
    missing = {
        name: places for name, places in shards.items() if not shard_matches(work.folder / name, work.fingerprint)
    }
    if len(missing) < len(shards):
        reporter.say(f"{len(shards) - len(missing):,} shards are there already")
    with reporter.task("score", sum(map(len, missing.values())), "pairs") as task:
        for name, places in missing.items():
            rows = scorer.score([pairs[place] for place in places], task)
            write_shard(work.folder / name, rows, work.fingerprint, vocabulary)


def _known_logps(config: ScoreConfig, inputs: dict[str, Input], reporter: Reporter) -> KnownLogps | None:
    """The reference log-probs that `sepo train-oracle` left beside its models; they become an input.

    They are float32: beside an oracle in another precision they would add noise that otherwise cancels in part.
    """
    if not config.oracle or config.precision != "float32":
        return None
    folder = Path(config.oracle)
    known = read_logps(folder, inputs["reference"].hash)
    if known is not None:
        inputs["reference log-probs"] = Input(str(folder / KNOWN), hash_file(folder / KNOWN))
        reporter.say(f"the reference's log-probs of {len(known):,} pairs are known from {folder}")
    return known


def _noise(
    share: float,
    work: Run,
    models: Models,
    how: How,
    pairs: Sequence[TokenPair],
    shards: dict[str, range],
    reporter: Reporter,
) -> Noise | None:
    """Score a sample of the pairs again, exactly, and compare it with what the shards say."""
    if not share:
        return None
    wanted = min(len(pairs), max(LEAST_NOISE_PAIRS, round(share * len(pairs))), MOST_NOISE_PAIRS)
    sample = sorted(random.Random("noise").sample(range(len(pairs)), wanted))
    with reporter.task(f"noise check, {wanted:,} pairs", len(models), "models") as task:
        exact = exact_scores(models, how, [pairs[place] for place in sample], task)
    wanted_ids = {pairs[place].pair_id for place in sample}
    measured = [
        row.scores
        for name, places in shards.items()
        if any(place in places for place in sample)
        for row in read_shard(work.folder / name, work.fingerprint)
        if row.pair.pair_id in wanted_ids
    ]
    return measure_noise(measured, exact)


def _judge(work: Run, shards: list[str], tokenizer: Any, noise: Noise | None) -> Verdict:
    """Read the shards back, as the next stage will, and say what is in them."""
    meter = DriftMeter(max(tokenizer.get_vocab().values()) + 1)

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
            *(noise.rows() if noise else []),
        ],
        results={
            "accuracy": accuracy.as_json(),
            "drift": {**drift._asdict(), "worst_token": token},
            "noise": noise.as_json() if noise else None,
        },
        warnings=_warnings(drift, token, noise),
    )


def _warnings(drift: Drift, token: str, noise: Noise | None) -> list[str]:
    warnings = [drift.warning(token)] if drift.large else []
    return warnings + ([noise.warning()] if noise and noise.large else [])
