"""`sepo project-scores`: scores carried over to the tokens of a policy whose tokenizer is not the oracle's.

Every pair of the original data set is encoded as the scorer did and as the policy does, and `stages.tokens.projection`
carries a response's scores over. It keeps its summed score; reference log-probs there are none, of other tokens.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from stages.configs import ProjectScoresConfig, column_names
from stages.data.layouts import read_pairs
from stages.data.read import dataset_hash
from stages.data.template_arguments import given_arguments
from stages.devices.processes import Worker, join_processes, this_worker
from stages.errors import SepoError
from stages.method.statistics import implicit_margin, preference_accuracy
from stages.models.folders import load_tokenizer, resolve_without_weights
from stages.reporting import Reporter, Summary
from stages.store.alarms import Scale, alarms
from stages.store.checksums import Checksum
from stages.store.manifest import Input
from stages.store.rows import KL
from stages.store.run import Run, open_stage
from stages.store.scores import Scores, is_sound, open_scores
from stages.store.shape import lookup
from stages.store.shards import own_shard, read_beside, read_shard, shard_name, write_shard
from stages.tokens.dataset import Counts
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_section, vocabulary_hash, vocabulary_size
from stages.tokens.projection import project_pair
from stages.types import Dropped, Floats, Pair, ScoredPair, Tokenizer, TokenPair

STAGE: Final = "project-scores"
NOT_THERE: Final = "not in the data set"
_DROPPED: Final = "sepo.dropped"


class ProjectionJob(NamedTuple):
    """What is known before the output folder is opened."""

    reporter: Reporter
    worker: Worker
    scores: Scores
    scored: Encoder
    """makes ids of text as the scorer did"""
    wanted: Encoder
    """as the policy does"""
    tokenizer: Tokenizer
    """the policy's"""
    inputs: dict[str, Input]
    settings: dict[str, Any]
    """those of the scores where no others were given"""

    @property
    def sources(self) -> dict[str, str]:
        """Name of a shard -> name of the one that it is made of."""
        return {shard_name(index): source for index, source in enumerate(self.scores.shards)}

    @property
    def own_sources(self) -> dict[str, str]:
        """Those of this worker's share."""
        sources = [*self.sources.items()]
        return dict(sources[index] for index in self.worker.share(len(sources)))


def run(config: ProjectScoresConfig, reporter: Reporter) -> Summary:
    """Write the scores as scores of the policy's tokens, a shard for each shard; those that are there are kept."""
    job = _check(config, reporter)
    workers = job.worker.workers
    with open_stage(STAGE, config, job.inputs, workers=workers, settings=job.settings, sound=is_sound) as work:
        if work.finished:
            return work.nothing_to_do("scores")
        pairs = read_pairs(config.dataset, column_names(job.settings["columns"]), on_layout=reporter.say)
        _compute(job, work, pairs)
        return _write(job, work)


def _check(config: ProjectScoresConfig, reporter: Reporter) -> ProjectionJob:
    accelerator = join_processes()
    scores = open_scores(config.scores)
    name, tokenizers = _scored_name(config, scores), []
    for owner in (name, config.model_name):
        # Scores may be of a tokenizer alone; what is to be trained on them is a model.
        alone = owner != config.model_name and Path(owner).is_dir()
        folder = Path(owner) if alone else resolve_without_weights(owner, reporter)
        tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code, reporter=reporter)
        if not tokenizer.is_fast:
            raise SepoError(
                f"the tokenizer of {owner} cannot say which letters a token stands for",
                hint='projection needs a "fast" tokenizer, which has a tokenizer.json',
            )
        tokenizers.append(tokenizer)
    theirs, ours = map(vocabulary_hash, tokenizers)
    if ours == scores.manifest["tokenizer"]["vocabulary"]:
        raise SepoError(
            f"{config.model_name} has the tokenizer that {scores.folder} is of: there is nothing to project",
            hint=f"sepo train-policy --model {config.model_name} --scores {scores.folder}",
        )
    if theirs != scores.manifest["tokenizer"]["vocabulary"]:
        raise SepoError(
            f"the token->id map of {name} is not the one {scores.folder} was made with",
            hint="give the oracle's tokenizer with --tokenizer",
        )
    given = lookup(scores.manifest, "settings.chat_template_kwargs")
    columns = config.columns or lookup(scores.manifest, "settings.columns")
    settings = {"columns": columns, "chat_template_kwargs": config.chat_template_kwargs or given}
    scored = Encoder(tokenizers[0], given_arguments(given))
    wanted = Encoder(tokenizers[1], given_arguments(settings["chat_template_kwargs"]))
    # What the first process has hashed, the others find in the cache.
    with accelerator.main_process_first():
        dataset = Input(config.dataset, _dataset_hash(config, scores, reporter))
    inputs = {
        "scores": Input(str(scores.folder), scores.fingerprint),
        "scored tokenizer": Input(name, scored.fingerprint),
        "tokenizer": Input(config.model_name, wanted.fingerprint),
        "dataset": dataset,
    }
    scores = scores._replace(ids_below=vocabulary_size(tokenizers[0]))
    worker = this_worker(accelerator, config.worker)
    return ProjectionJob(reporter, worker, scores, scored, wanted, tokenizers[1], inputs, settings)


def _scored_name(config: ProjectScoresConfig, scores: Scores) -> str:
    """The folder or hub name of the tokenizer that the scores are of."""
    remedy = "give the oracle's folder or hub name with --tokenizer"
    if config.tokenizer:
        return config.tokenizer
    name = lookup(scores.manifest, "input_names.tokenizer")
    if not isinstance(name, str):
        raise SepoError(f"{scores.folder}/manifest.json does not say where its tokenizer is", hint=remedy)
    if not Path(name).is_dir() and Path(name).is_absolute():
        raise SepoError(f"the tokenizer of {scores.folder} is no longer in {name}", hint=remedy)
    return name


def _dataset_hash(config: ProjectScoresConfig, scores: Scores, reporter: Reporter) -> str:
    found = dataset_hash(config.dataset)
    theirs = lookup(scores.manifest, "inputs.dataset")
    if theirs is None:
        reporter.say(f"{scores.folder} does not say of which data set it is: every response is compared with its ids")
    elif theirs != found:
        name = lookup(scores.manifest, "input_names.dataset")
        raise SepoError(
            f"{config.dataset} is not the data set that {scores.folder} was made from ({name})",
            hint="give the data set that was scored, unchanged",
        )
    return found


def _compute(job: ProjectionJob, work: Run, pairs: Iterator[Pair | Dropped]) -> None:
    """Write this worker's shards that are not there, whole, yet."""
    text = next(pairs, None)
    total = -(-int(job.scores.manifest["counts"]["kept"]) // job.worker.workers)
    with job.reporter.task("project", total, "pairs") as task:
        for name, source in job.own_sources.items():
            there = own_shard(work.place, name, work.fingerprint)
            if there is not None:
                task.advance(there.checksum["rows"] + sum(json.loads(there.notes[_DROPPED]).values()))
                continue
            rows: list[ScoredPair] = []
            dropped: Counter[str] = Counter()
            for row in job.scores.rows_of(source):
                pair_id = int(row.pair.pair_id)
                while text is not None and text.pair_id < pair_id:
                    text = next(pairs, None)
                found = text if text is not None and text.pair_id == pair_id else Dropped(pair_id, NOT_THERE)
                made = project_pair(row, found, job.scored, job.wanted)
                if isinstance(made, Dropped):
                    dropped[made.reason] += 1
                else:
                    rows.append(made)
                task.advance()
            work.refuse_if_lost()
            notes = {_DROPPED: json.dumps(dropped, sort_keys=True)}
            write_shard(work.place, name, rows, work.fingerprint, vocabulary_hash(job.tokenizer), notes)


def _read_back(job: ProjectionJob, work: Run) -> tuple[dict[str, Checksum], Counts, Scale, dict[str, Any]]:
    """The shards beside those they were made of: what they are, and what was conserved (for the manifest's results)."""
    checksums: dict[str, Checksum] = {}
    counts, scale, before = Counts(), Scale(), Counter[str]()
    margins, errors = [], [0.0]
    rows, end_of_turn = job.scores.rows(), job.wanted.end_of_turn
    for name in job.sources:
        shard = own_shard(work.place, name, work.fingerprint)
        if shard is None:
            raise SepoError(f"{work.place.at(name)} is not what was written there", hint="run the same again")
        checksums[name] = shard.checksum
        counts.dropped.update(json.loads(shard.notes[_DROPPED]))
        for row in read_shard(work.place, name, work.fingerprint, shard.checksum):
            source = next(each for each in rows if each.pair.pair_id == row.pair.pair_id)
            errors += map(_error, source.scores, row.scores)
            before.update(_tokens(source.pair))
            counts.tokens.update(_tokens(row.pair))
            cut = any(ids[-1] != end_of_turn for ids in (row.pair.chosen_ids, row.pair.rejected_ids))
            counts.truncated += cut and end_of_turn is not None
            scale.add(row.scores)
            margins.append(implicit_margin(row.scores))
    counts.kept = len(margins)
    counts.read = counts.kept + counts.dropped.total()
    job.reporter.say(f"{job.scores.folder}: {counts}")
    if not counts.kept:
        raise SepoError(f"no pair is left: {counts}", hint="give the data set and the tokenizer that were scored with")
    results = {
        "accuracy": preference_accuracy(margins).as_json(),
        "tokens_before": dict(before),
        "largest_error": max(errors),
        "source": {"fingerprint": job.scores.fingerprint, "results": job.scores.manifest.get("results")},
    }
    return checksums, counts, scale, results


def _write(job: ProjectionJob, work: Run) -> Summary:
    """Where the shards of all workers are there, look at them and finish the run."""
    missing = [name for name in job.sources if own_shard(work.place, name, work.fingerprint) is None]
    if work.finished_by_another():
        return work.nothing_to_do("scores")
    if missing:
        return work.unfinished(str(job.worker), missing)
    checksums, counts, scale, results = _read_back(job, work)
    for reason, dropped in counts.dropped.items():
        job.reporter.warn(f"{dropped:,} of {counts.read:,} pairs were dropped: {reason}")
    warnings = alarms(scale, {}) + _left_behind(job.scores)
    warnings += [f"of the scores before projection: {text}" for text in job.scores.manifest.get("warnings") or []]
    for warning in warnings:
        job.reporter.warn(warning)
    work.finish(
        files=list(checksums),
        device="cpu",
        counts=counts.as_json(),
        results=results,
        warnings=warnings,
        tokenizer=tokenizer_section(job.tokenizer),
        shards=checksums,
    )
    before, now = (each["chosen"] + each["rejected"] for each in (results["tokens_before"], counts.tokens))
    rows = [
        ("pairs", str(counts)),
        ("response tokens", f"{before:,} before, {now:,} now"),
        ("implicit reward prefers chosen", f"{results['accuracy']['value']:.3f} of all pairs here"),
        ("largest error of a response's sum", f"{results['largest_error']:.1e} of the sum of its tokens' sizes"),
        # Of several processes only the first one's reporter speaks, and any of them may be the one that finishes.
        *(("warning", warning) for warning in warnings),
    ]
    return Summary(f"scores in {work.place}", rows, every_process=True)


def _left_behind(scores: Scores) -> list[str]:
    """Said where scores have what only the scorer's tokens can have, for `sepo denoise`."""
    folds = lookup(scores.manifest, "settings.folds", 1) != 1
    centred = any(read_beside(scores.folder, name, KL) is not None for name in scores.shards[:1])
    if scores.manifest["stage"] == "denoise" or not (folds or centred):
        return []
    return [
        "what denoise calibrates and centres scores by (the folds of `train-oracle --folds`, the columns of `score"
        " --center`) is not carried over: denoise before projecting"
    ]


def _error(before: Floats, after: Floats) -> float:
    """How much of a response's summed score was lost, as a share of the sum of its tokens' sizes."""
    size = float(np.abs(before, dtype=np.float64).sum())
    lost = float(np.sum(after, dtype=np.float64) - np.sum(before, dtype=np.float64))
    return abs(lost) / size if size else abs(lost)


def _tokens(pair: TokenPair) -> dict[str, int]:
    return {"prompt": len(pair.prompt_ids), "chosen": len(pair.chosen_ids), "rejected": len(pair.rejected_ids)}
