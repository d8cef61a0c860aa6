"""`sepo score`: one score for every response token of a data set, as Parquet shards.

    s(y_i) = log pi_ora(y_i | q, y_<i) - log pi_ref(y_i | q, y_<i)

(arXiv 2408.13518 section 3.3; no beta.) A score is stored as it was measured: which share of tokens to keep, on which
side, is decided by `sepo train-policy`.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.configs import ScoreConfig, column_names
from stages.data.read import dataset_hash, refuse_changed
from stages.data.template_arguments import given_arguments
from stages.devices.precision import refuse_useless
from stages.devices.processes import Worker, join_processes, this_worker
from stages.errors import SepoError
from stages.method.drift import Drift, DriftMeter
from stages.method.noise import Noise, measure_noise
from stages.method.statistics import preference_accuracy
from stages.models.folders import load_tokenizer, model_hash, resolve_model, usable_length
from stages.models.quantization import quantized
from stages.models.scorer import How, Models, Scorer
from stages.reporting import Reporter, Summary
from stages.store.alarms import Scale, alarms
from stages.store.logps import KnownLogps, read_logps
from stages.store.manifest import Input, read_manifest
from stages.store.run import Run, open_stage
from stages.store.scores import sound
from stages.store.shards import Checksum, own_shard, read_shard, shard_name, write_shard
from stages.tokens.dataset import Limit, load_pairs, refuse_dropped, refuse_recorded
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_hash, tokenizer_inputs, vocabulary_hash, vocabulary_size
from stages.types import PairLogps, TokenPair

STAGE: Final = "score"
LEAST_NOISE_PAIRS: Final = 16
MOST_NOISE_PAIRS: Final = 512


class Verdict(NamedTuple):
    """What the scores look like, taken together."""

    rows: list[tuple[str, str]]
    results: dict[str, Any]
    warnings: list[str]


def run(config: ScoreConfig, reporter: Reporter) -> Summary:
    """Score every usable pair, or this worker's share; shards that are there already are kept.

    Raises:
        SepoError: an oracle that never finished, two tokenizers, unusable data or output folder, another run at work.
    """
    accelerator = join_processes()
    worker = this_worker(accelerator, config.worker)
    refuse_useless(config.precision, accelerator.device)
    models = _models(config, reporter)
    tokenizer = _common_tokenizer(models, config.trust_remote_code, reporter)
    encoder = Encoder(tokenizer, given_arguments(config.chat_template_kwargs))
    # What the first process has hashed, the others find in the cache.
    with accelerator.main_process_first():
        inputs = {
            "oracle": Input(str(models.oracle), model_hash(models.oracle)),
            "reference": Input(str(models.reference), model_hash(models.reference)),
            **tokenizer_inputs(str(models.oracle), tokenizer),
            "dataset": Input(config.dataset, dataset_hash(config.dataset)),
        }
    known = _known_logps(config, inputs["reference"].hash, reporter)
    with open_stage(STAGE, config, inputs, workers=worker.workers, sound=sound) as work:
        if work.finished:
            if config.strict:
                refuse_recorded(work.manifest.get("counts"), config.dataset)
            return work.nothing_to_do("scores")
        how = How(config.precision, config.max_tokens_per_device, accelerator.device, config.trust_remote_code)
        return _score(config, work, worker, Scorer(models, how, known, reporter), tokenizer, encoder, reporter)


def _usable_length(config: ScoreConfig, scorer: Scorer, reporter: Reporter) -> int:
    trust = config.trust_remote_code
    return usable_length(scorer.models, config.max_length, trust_remote_code=trust, reporter=reporter)


def _score(
    config: ScoreConfig,
    work: Run,
    worker: Worker,
    scorer: Scorer,
    tokenizer: Any,
    encoder: Encoder,
    reporter: Reporter,
) -> Summary:
    """Make this worker's shards; if with them all are there, judge them and finish the run."""
    pairs, counts = load_pairs(
        config.dataset,
        encoder,
        Limit(_usable_length(config, scorer, reporter), config.overlong),
        columns=column_names(config.columns),
        reporter=reporter,
    )
    refuse_changed(config.dataset, work.identity["inputs"]["dataset"])
    if config.strict:
        refuse_dropped(counts, config.dataset)
    shards = _shards(pairs, config.shard_size)
    reporter.say(f"{len(pairs):,} pairs = {len(shards):,} shards of up to {config.shard_size:,}")
    if work.finished_by_another():
        return work.nothing_to_do("scores")
    _write_missing(work, worker, scorer, vocabulary_hash(tokenizer), pairs, shards, reporter)
    there = work.place.names()
    missing = [name for name in shards if name not in there]
    # While some are missing, nobody reads those of the others.
    checksums = {} if missing else _written(work, shards)
    missing = missing or [name for name in shards if name not in checksums]
    if missing and work.finished_by_another():
        return work.nothing_to_do("scores")
    if missing:
        rows = [("missing", f"{missing[0]}" + (f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""))]
        rows.append(("to finish", "let the other workers end; run again those that died"))
        title = f"worker {worker} done; {len(missing):,} shards of others are missing in {work.place}"
        return Summary(title, rows, every_process=True)
    noise = _noise(config.noise_check, work, scorer, pairs, shards, checksums, reporter)
    verdict = _judge(work, checksums, tokenizer, noise)
    verdict.warnings.extend(_in_few_bits(scorer.models))
    for warning in verdict.warnings:
        reporter.warn(warning)
    work.finish(
        files=list(shards),
        device=str(scorer.how.device),
        counts=counts.as_json(),
        results=verdict.results,
        warnings=verdict.warnings,
        tokenizer={
            "vocabulary": vocabulary_hash(tokenizer),
            "hash": tokenizer_hash(tokenizer),
            "size": vocabulary_size(tokenizer),
        },
        shards={name: checksum._asdict() for name, checksum in checksums.items()},
    )
    tokens = counts.tokens["chosen"] + counts.tokens["rejected"]
    rows = [("pairs", f"{len(pairs):,}"), ("response tokens", f"{tokens:,}"), *verdict.rows]
    # Of several processes only the first one's reporter speaks, and any of them may be the one that finishes.
    rows += [("warning", warning) for warning in verdict.warnings]
    return Summary(f"scores in {work.place}", [*rows, ("shards", f"{len(shards):,}")], every_process=True)


def _models(config: ScoreConfig, reporter: Reporter) -> Models:
    if config.oracle:
        folder = Path(config.oracle)
        read_manifest(folder, "train-oracle", "run `sepo train-oracle` first, or let it finish")
        names = (str(folder / "oracle"), str(folder / "reference"))
    else:
        names = (str(config.oracle_model), str(config.reference_model))
    return Models(*(resolve_model(name, reporter) for name in names))


def _common_tokenizer(models: Models, trust_remote_code: bool, reporter: Reporter) -> Any:
    """The oracle's tokenizer, which has to be the reference's too: a score is a difference at one and the same id."""
    oracle = load_tokenizer(models.oracle, trust_remote_code=trust_remote_code, reporter=reporter)
    reference = load_tokenizer(models.reference, trust_remote_code=trust_remote_code)
    if vocabulary_hash(oracle) != vocabulary_hash(reference):
        raise SepoError(
            f"oracle and reference do not share a token->id map ({len(oracle):,} and {len(reference):,} tokens)",
            hint="score with the reference that the oracle was trained from",
        )
    return oracle


def _shards(pairs: Sequence[TokenPair], size: int) -> dict[str, slice]:
    """Shard name -> its place in the pairs."""
    starts = range(0, len(pairs), size)
    return {shard_name(index): slice(start, min(start + size, len(pairs))) for index, start in enumerate(starts)}


def _write_missing(
    work: Run,
    worker: Worker,
    scorer: Scorer,
    vocabulary: str,
    pairs: Sequence[TokenPair],
    shards: dict[str, slice],
    reporter: Reporter,
) -> None:
    """Score and write this worker's shards that are not there, whole, yet."""
    names = list(shards)
    mine = [names[index] for index in worker.share(len(names))]
    missing = [name for name in mine if own_shard(work.place, name, work.fingerprint) is None]
    if len(missing) < len(mine):
        reporter.say(f"{len(mine) - len(missing):,} shards are there already")
    count = sum(shards[name].stop - shards[name].start for name in missing)
    with reporter.task("score", count, "pairs") as task:
        for name in missing:
            rows = scorer.score(list(pairs[shards[name]]), task)
            work.refuse_if_lost()
            write_shard(work.place, name, rows, work.fingerprint, vocabulary)


def _written(work: Run, shards: dict[str, slice]) -> dict[str, Checksum]:
    """The checksums of the shards, but of those that are not whole."""
    found = {name: own_shard(work.place, name, work.fingerprint) for name in shards}
    return {name: shard.checksum for name, shard in found.items() if shard is not None}


def _known_logps(config: ScoreConfig, reference: str, reporter: Reporter) -> KnownLogps | None:
    """The reference log-probs that `sepo train-oracle` left beside its models.

    They are no input: where they are lost they are computed, to the same numbers but for the rounding of sums in
    another order, since the pairs of a forward pass are others here. They are float32: beside an oracle in another
    precision they would add noise that otherwise cancels in part.

    Args:
        reference: hash of the model.
    """
    if not config.oracle or config.precision != "float32":
        return None
    known = read_logps(Path(config.oracle), reference)
    if known is not None:
        reporter.say(f"the reference's log-probs of {len(known):,} pairs are known from {config.oracle}")
    return known


def _noise(
    share: float,
    work: Run,
    scorer: Scorer,
    pairs: Sequence[TokenPair],
    shards: dict[str, slice],
    checksums: dict[str, Checksum],
    reporter: Reporter,
) -> Noise | None:
    """Score a sample of the pairs again, exactly, and compare it with what the shards say."""
    if not share:
        return None
    wanted = min(len(pairs), max(LEAST_NOISE_PAIRS, round(share * len(pairs))), MOST_NOISE_PAIRS)
    places = sorted(random.Random("noise").sample(range(len(pairs)), wanted))
    sample = [pairs[place] for place in places]
    with reporter.task(f"noise check, {wanted:,} pairs", len(scorer.models), "models") as task:
        exact = scorer.exact(sample, task)
    ids = {pair.pair_id for pair in sample}
    measured = [
        row.scores
        for name, some in shards.items()
        if any(some.start <= place < some.stop for place in places)
        for row in read_shard(work.place, name, work.fingerprint, checksums[name])
        if row.pair.pair_id in ids
    ]
    return measure_noise(measured, exact)


def _judge(work: Run, checksums: dict[str, Checksum], tokenizer: Any, noise: Noise | None) -> Verdict:
    """Read the shards back, as the next stage will, and say what is in them."""
    meter, scale = DriftMeter(vocabulary_size(tokenizer)), Scale()

    def rows() -> Iterator[PairLogps]:
        for name, checksum in checksums.items():
            for row in read_shard(work.place, name, work.fingerprint, checksum):
                meter.add(row)
                scale.add(row.scores)
                yield row.scores

    accuracy = preference_accuracy(rows())
    drift = meter.read()
    token = tokenizer.decode([drift.worst_id]) if drift.worst_id >= 0 else ""
    results = {
        "accuracy": accuracy.as_json(),
        "drift": {**drift._asdict(), "worst_token": token},
        "noise": noise.as_json() if noise else None,
    }
    return Verdict(
        rows=[
            ("implicit reward prefers chosen", f"{accuracy:.3f} of all pairs here, trained on or not"),
            *drift.rows(token),
            *(noise.rows() if noise else []),
        ],
        results=results,
        warnings=alarms(scale, {**work.identity, "results": results}) + _warnings(drift, token, noise),
    )


def _in_few_bits(models: Models) -> list[str]:
    """Said of each model of which float32 cannot be exact: its weights were rounded before."""
    held = {name: quantized(folder) for name, folder in models._asdict().items()}
    return [
        f"the {name}'s weights are in {bits}: scores are those of the rounded model, and the noise check cannot see it"
        for name, bits in held.items()
        if bits
    ]


def _warnings(drift: Drift, token: str, noise: Noise | None) -> list[str]:
    warnings = [drift.warning(token)] if drift.large else []
    return warnings + ([noise.warning()] if noise and noise.large else [])
