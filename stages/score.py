"""`sepo score`: one score for every response token of a data set, as Parquet shards.

    s(y_i) = log pi_ora(y_i | q, y_<i) - log pi_ref(y_i | q, y_<i)

(arXiv 2408.13518 section 3.3; no beta.) A score is stored as it was measured: which share of tokens to keep, on which
side, is decided by `sepo train-policy`.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from stages.configs import ScoreConfig, column_names
from stages.data.read import dataset_hash, refuse_changed
from stages.data.template_arguments import given_arguments
from stages.devices.precision import price_of_float32
from stages.devices.processes import Team, Worker, join_processes, this_worker
from stages.errors import SepoError
from stages.method.noise import Noise, measure_noise
from stages.method.score_totals import ScoreTotals
from stages.models.folders import usable_length
from stages.models.loading import refuse_unloadable
from stages.models.quantization import quantized
from stages.models.scorer import Models, Scorer, find_models, oracle_manifest, scorer_inputs
from stages.models.tensor_parallel import who_holds
from stages.report.scores import drift_rows, drift_warnings, noise_rows, noise_warnings
from stages.reporting import Reporter, Summary, Task, counted
from stages.store.alarms import alarms
from stages.store.checksums import Checksum
from stages.store.logps import KnownLogps, read_logps
from stages.store.manifest import FINISHED, Input
from stages.store.place import State
from stages.store.rows import KL
from stages.store.run import Run, open_stage
from stages.store.scores import is_sound
from stages.store.shape import lookup
from stages.store.shards import own_shard, read_shard, shard_name, write_shard
from stages.store.worker_file import WorkerFile, read_worker_files, remove_worker_files, write_worker_file
from stages.tokens.dataset import Counts, KeptPairs, LengthLimit, load_pairs, refuse_dropped, refuse_recorded
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_section, vocabulary_hash, vocabulary_size
from stages.types import ScoredPair, Tokenizer, TokenPair

STAGE: Final = "score"
LEAST_NOISE_PAIRS: Final = 16
MOST_NOISE_PAIRS: Final = 512


class ScoreJob(NamedTuple):
    """What is known before the output folder is opened."""

    config: ScoreConfig
    reporter: Reporter
    worker: Worker
    device: torch.device
    models: Models
    tokenizer: Tokenizer
    inputs: dict[str, Input]
    team: Team
    """which is one worker"""


class ShardSlice(NamedTuple):
    """What a shard holds."""

    pairs: slice
    first_token: int
    """how many response tokens the pairs before it have"""


class ScoreData(NamedTuple):
    """What is scored."""

    pairs: KeptPairs
    counts: Counts
    shards: dict[str, ShardSlice]
    """by name"""
    sample: list[int]
    """indices of the pairs that are scored once more, for the noise"""


class KnownShards(NamedTuple):
    """Shards that nobody has to read again."""

    checksums: dict[str, Checksum]
    totals: ScoreTotals

    def add(self, name: str, checksum: Checksum, rows: list[ScoredPair], first_token: int) -> None:
        self.totals.add(name, rows, first_token)
        self.checksums[name] = checksum


def run(config: ScoreConfig, reporter: Reporter) -> Summary:
    """Score every usable pair, or this worker's share; shards that are there already are kept."""
    job = _check(config, reporter)
    folds = len(job.models.oracles)
    settings = {"folds": folds} if folds > 1 else {}
    workers = job.worker.workers
    with open_stage(
        STAGE, config, job.inputs, processes=job.team.processes, workers=workers, settings=settings, sound=is_sound
    ) as work:
        if job.team.agreed(lambda: work.finished):
            with suppress(SepoError):
                remove_worker_files(work.place, work.place.names())
            if config.strict:
                refuse_recorded(work.manifest.get("counts"), config.dataset)
            return work.nothing_to_do("scores")
        data = _load(job, work)
        if job.team.agreed(work.finished_by_another):
            return work.nothing_to_do("scores")
        scorer = Scorer(job.models, config, job.device, _known_logps(job), reporter)
        known = _compute(job, work, scorer, data)
        there = work.place.states()
        unfinished = job.team.agreed(lambda: _unfinished(job, work, data, known, there))
        return unfinished or _write(job, work, scorer, data, known, there)


def _check(config: ScoreConfig, reporter: Reporter) -> ScoreJob:
    accelerator = join_processes()
    models, tokenizer = find_models(config, reporter)
    refuse_unloadable(config, accelerator, models.named.values())
    faster = "--precision tf32 is faster and rounds little; bfloat16 takes about an eighth of the time and rounds much"
    if config.precision == "float32" and (price := price_of_float32(accelerator.device, faster)):
        reporter.say(price)
    # Each large file is read by one process or worker; the others find its hash in the cache.
    inputs = scorer_inputs(models, tokenizer) | {"dataset": Input(config.dataset, dataset_hash(config.dataset))}
    team = who_holds(config.device_map, accelerator)
    worker = this_worker(accelerator, config.worker, team)
    if len(models.oracles) > 1:
        _refuse_other_prompts(config)
    return ScoreJob(config, reporter, worker, accelerator.device, models, tokenizer, inputs, team)


def _refuse_other_prompts(config: ScoreConfig) -> None:
    """Which oracle has not seen a pair is told by its prompt's ids, which have to be those of training."""
    theirs = lookup(oracle_manifest(str(config.oracle)), "settings.chat_template_kwargs")
    if given_arguments(theirs) != given_arguments(config.chat_template_kwargs):
        raise SepoError(
            f"the oracles in {config.oracle} were trained with other --chat-template-kwargs ({theirs})",
            hint="give the same: by its prompt's ids each pair finds the oracle that has not seen it",
        )


def _load(job: ScoreJob, work: Run) -> ScoreData:
    config, reporter = job.config, job.reporter
    encoder = Encoder(job.tokenizer, given_arguments(config.chat_template_kwargs))
    trust = config.trust_remote_code
    max_length = usable_length(job.models.named.values(), config.max_length, trust_remote_code=trust, reporter=reporter)
    limit = LengthLimit(max_length, config.overlong)
    pairs, counts = load_pairs(config.dataset, encoder, limit, columns=column_names(config.columns), reporter=reporter)
    refuse_changed(config.dataset, work.identity["inputs"]["dataset"])
    if config.strict:
        refuse_dropped(counts, config.dataset)
    shards = _shards(pairs, config.shard_size)
    reporter.say(f"{counted(len(pairs), 'pair')} = {counted(len(shards), 'shard')} of up to {config.shard_size:,}")
    return ScoreData(pairs, counts, shards, _sample(len(pairs), config.noise_check))


def _shards(pairs: KeptPairs, size: int) -> dict[str, ShardSlice]:
    tokens = pairs.response_tokens
    before = np.cumsum(tokens) - tokens
    starts = range(0, len(pairs), size)
    return {
        shard_name(index): ShardSlice(slice(start, min(start + size, len(pairs))), int(before[start]))
        for index, start in enumerate(starts)
    }


def _sample(pairs: int, share: float) -> list[int]:
    wanted = min(pairs, max(LEAST_NOISE_PAIRS, round(share * pairs)), MOST_NOISE_PAIRS) if share else 0
    return sorted(random.Random("noise").sample(range(pairs), wanted))


def _compute(job: ScoreJob, work: Run, scorer: Scorer, data: ScoreData) -> KnownShards:
    """Score and write this worker's shards that are not there, whole, yet; returns what is known of all of its own."""
    kept = [data.pairs[index].pair_id for index in data.sample]
    known = KnownShards({}, ScoreTotals(vocabulary_size(job.tokenizer), kept))
    names = list(data.shards)
    mine = [names[index] for index in job.worker.share(len(names))]
    there = work.place.names()
    lacking = (name for name in mine if name not in there or not _read(work, name, data, known))
    missing = job.team.agreed(lambda: [*lacking])
    if len(missing) < len(mine):
        job.reporter.say(f"there already: {counted(len(mine) - len(missing), 'shard')}")
    count = sum(data.shards[name].pairs.stop - data.shards[name].pairs.start for name in missing)
    vocabulary = vocabulary_hash(job.tokenizer)
    with job.reporter.task("score", count, "pairs") as task:
        for name in missing:
            rows, kl = _scored(job, scorer, data.pairs[data.shards[name].pairs], task)
            if not job.team.first:
                continue
            work.refuse_if_lost()
            checksum = write_shard(work.place, name, rows, work.fingerprint, vocabulary, beside=kl)
            known.add(name, checksum, rows, data.shards[name].first_token)
    return known


def _read(work: Run, name: str, data: ScoreData, known: KnownShards) -> bool:
    """Add what a shard says that this run wrote, by whomever; False where there is none that is whole."""
    shard = own_shard(work.place, name, work.fingerprint)
    if shard is None:
        return False
    known.add(name, shard.checksum, shard.rows(), data.shards[name].first_token)
    return True


def _scored(
    job: ScoreJob, scorer: Scorer, pairs: list[TokenPair], task: Task
) -> tuple[list[ScoredPair], dict[str, Sequence[Any]]]:
    """The pairs' rows, and the columns that centre their scores, where these were asked for."""
    if not job.config.center:
        return scorer.score(pairs, task), {}
    rows, kl = zip(*scorer.score_with_kl(pairs, task), strict=True)
    return list(rows), dict(zip(KL, zip(*kl, strict=True), strict=True))


def _unfinished(
    job: ScoreJob, work: Run, data: ScoreData, known: KnownShards, there: Mapping[str, State]
) -> Summary | None:
    """What is to be said where another worker has still to finish the run, or has; else all shards are known now."""
    if FINISHED in there and work.finished_by_another():
        return work.nothing_to_do("scores")
    missing = [name for name in data.shards if name not in there]
    if missing:
        _leave(job, work, known, there)
    else:
        missing = _gather(work, data, known, there)
    if not missing:
        return None
    if work.finished_by_another():
        # Its last worker may have removed what workers left before this one wrote.
        remove_worker_files(work.place, work.place.names())
        return work.nothing_to_do("scores")
    return work.unfinished(str(job.worker), missing)._replace(every_process=job.team.processes is None)


def _write(
    job: ScoreJob, work: Run, scorer: Scorer, data: ScoreData, known: KnownShards, there: Mapping[str, State]
) -> Summary:
    """The shards of all workers are there: judge them and finish the run."""
    noise = _noise(job, work, scorer, data, known)
    if not job.team.first:
        return work.nothing_to_do("scores")
    shards, counts = data.shards, data.counts
    checksums, totals = {name: known.checksums[name] for name in shards}, known.totals
    accuracy, drift = totals.accuracy, totals.drift(job.tokenizer.decode)
    results = {"accuracy": accuracy.as_json(), "drift": drift._asdict(), "noise": noise._asdict() if noise else None}
    warnings = alarms(totals, {**work.identity, "results": results}) + drift_warnings(drift)
    warnings += [*(noise_warnings(noise) if noise else []), *_rounded(job.models)]
    for warning in warnings:
        job.reporter.warn(warning)
    work.finish(
        files=list(shards),
        device=str(job.device),
        counts=counts.as_json(),
        results=results,
        warnings=warnings,
        tokenizer=tokenizer_section(job.tokenizer),
        shards=checksums,
    )
    remove_worker_files(work.place, there)
    rows = [
        ("pairs", f"{len(data.pairs):,}"),
        ("response tokens", f"{counts.tokens['chosen'] + counts.tokens['rejected']:,}"),
        ("implicit reward prefers chosen", f"{accuracy:.3f} of all pairs here, {_seen(job.models)}"),
        *drift_rows(drift),
        *(noise_rows(noise) if noise else []),
        # Of several processes only the first one's reporter speaks, and any of them may be the one that finishes.
        *(("warning", warning) for warning in warnings),
        ("shards", f"{len(shards):,}"),
    ]
    return Summary(f"scores in {work.place}", rows, every_process=job.team.processes is None)


def _seen(models: Models) -> str:
    return "trained on or not" if len(models.oracles) == 1 else "each by an oracle that did not see its prompt"


def _leave(job: ScoreJob, work: Run, known: KnownShards, there: Mapping[str, State]) -> None:
    """Write down for the last worker what this one knows of its shards."""
    if known.checksums.keys() <= there.keys() and known.checksums:
        found = WorkerFile(known.checksums, known.totals.as_arrays())
        write_worker_file(work.place, job.worker, work.fingerprint, found, there)


def _gather(work: Run, data: ScoreData, known: KnownShards, there: Mapping[str, State]) -> list[str]:
    """Add what is known of the other workers' shards; returns those that are not whole.

    Where their worker wrote nothing down, or was killed before it did, they are read.
    """
    for other in read_worker_files(work.place, work.fingerprint, there):
        if other.checksums.keys() <= data.shards.keys() - known.checksums.keys():
            with suppress(LookupError, TypeError, ValueError):
                known.totals.merge(ScoreTotals.from_arrays(other.arrays))
                known.checksums.update(other.checksums)
    changed = [name for name, checksum in known.checksums.items() if there[name][0] not in (None, checksum["bytes"])]
    unknown = [name for name in data.shards if name not in known.checksums]
    return changed + [name for name in unknown if not _read(work, name, data, known)]


def _known_logps(job: ScoreJob) -> KnownLogps | None:
    """The reference log-probs that `sepo train-oracle` left beside its models.

    They are no input: where they are lost they are computed, to the same numbers but for the rounding of sums. They are
    float32: beside an oracle in another precision they would add noise that otherwise cancels in part. What centres
    scores needs the reference's whole distribution, and the model for it.
    """
    folder = job.config.oracle
    if not folder or job.config.precision != "float32" or job.config.quantize or job.config.center:
        return None
    known = read_logps(Path(folder), job.inputs["reference"].hash)
    if known is not None:
        job.reporter.say(f"the reference's log-probs of {counted(len(known), 'pair')} are known from {folder}")
    return known


def _noise(job: ScoreJob, work: Run, scorer: Scorer, data: ScoreData, known: KnownShards) -> Noise | None:
    """Score a sample of the pairs again, exactly, and compare it with what the shards say."""
    if not data.sample:
        return None
    sample = [data.pairs[index] for index in data.sample]
    with job.reporter.task(f"noise check, {counted(len(sample), 'pair')}", len(scorer.models.named), "models") as task:
        exact = scorer.exact(sample, task)
    if not job.team.first:
        return None
    measured, size = known.totals.kept, job.config.shard_size
    # Of a worker that was asked to keep none, or others.
    lacking = {
        shard_name(index // size)
        for index, pair in zip(data.sample, sample, strict=True)
        if pair.pair_id not in measured
    }
    for name in lacking:
        rows = read_shard(work.place, name, work.fingerprint, known.checksums[name])
        measured |= {row.pair.pair_id: row.scores for row in rows}
    return measure_noise([measured[pair.pair_id] for pair in sample], exact)


def _rounded(models: Models) -> list[str]:
    """Said of each model of which float32 cannot be exact: its weights were rounded before."""
    held = {name: quantized(folder) for name, folder in models.named.items()}
    return [
        f"the {name}'s weights are in {bits}: scores are those of the rounded model, and the noise check cannot see it"
        for name, bits in held.items()
        if bits
    ]
