"""`sepo project-scores`: scores carried over to the tokens of a policy whose tokenizer is not the oracle's.

Every pair of the original data set is encoded as the scorer did and as the policy does, and `stages.tokens.projection`
carries a response's scores over. It keeps its summed score; reference log-probs there are none, of other tokens.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from stages.configs import ProjectScoresConfig, column_names
from stages.data.layouts import read_pairs
from stages.data.read import dataset_hash
from stages.data.template_arguments import given_arguments
from stages.devices.processes import Worker, join_processes, this_worker
from stages.errors import SepoError
from stages.method.statistics import implicit_margin, preferred, wilson
from stages.models.folders import load_tokenizer, resolve_without_weights
from stages.reporting import Reporter, Summary
from stages.store.alarms import Scale, alarms
from stages.store.checksums import Checksum
from stages.store.manifest import Input
from stages.store.rows import KL
from stages.store.run import Run, open_stage
from stages.store.scores import Scores, is_sound, open_scores
from stages.store.shape import lookup
from stages.store.shards import own_shard, read_beside, shard_name, write_shard
from stages.tokens.dataset import Counts
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_section, vocabulary_hash, vocabulary_size
from stages.tokens.projection import project_pair
from stages.types import Dropped, Floats, Pair, ScoredPair, Tokenizer, TokenPair

STAGE: Final = "project-scores"
NOT_THERE: Final = "not in the data set"
_TOTALS: Final = "sepo.projection"
"""key of a shard's metadata: a `ProjectionTotals` as JSON"""


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


@dataclass
class ProjectionTotals:
    """What became of the pairs of a shard, or of several; a shard says it of itself, and is not read again for it."""

    counts: Counts = field(default_factory=Counts)
    before: Counter[str] = field(default_factory=Counter)
    """tokens of what was kept, as they were scored"""
    scale: Scale = field(default_factory=Scale)
    preferred: float = 0.0
    """pairs whose chosen response has the higher sum; a tie counts half"""
    largest_error: float = 0.0

    def add(self, source: ScoredPair, made: ScoredPair, *, cut: bool) -> None:
        self.counts.kept += 1
        self.counts.truncated += cut
        self.counts.tokens.update(_tokens(made.pair))
        self.before.update(_tokens(source.pair))
        self.scale.add(made.scores)
        self.preferred += preferred([implicit_margin(made.scores)])
        self.largest_error = max(self.largest_error, *map(_error, source.scores, made.scores))

    def merge(self, other: "ProjectionTotals") -> None:
        self.counts.read += other.counts.read
        self.counts.kept += other.counts.kept
        self.counts.dropped.update(other.counts.dropped)
        self.counts.truncated += other.counts.truncated
        self.counts.tokens.update(other.counts.tokens)
        self.before.update(other.before)
        self.scale.merge(other.scale)
        self.preferred += other.preferred
        self.largest_error = max(self.largest_error, other.largest_error)

    def as_json(self) -> dict[str, Any]:
        # JSON has no number for the lowest score of none.
        scale = asdict(self.scale) if self.counts.kept else {}
        return {
            "counts": self.counts.as_json(),
            "before": self.before,
            "scale": scale,
            "preferred": self.preferred,
            "largest_error": self.largest_error,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "ProjectionTotals":
        counts = Counts(**said["counts"])
        counts.dropped, counts.tokens = Counter(counts.dropped), Counter(counts.tokens)
        others = {name: said[name] for name in ("preferred", "largest_error")}
        return cls(counts, Counter(said["before"]), Scale(**said["scale"]), **others)


class ProjectedShard(NamedTuple):
    """A shard that is there, and whole."""

    checksum: Checksum
    totals: ProjectionTotals


def run(config: ProjectScoresConfig, reporter: Reporter) -> Summary:
    """Write the scores as scores of the policy's tokens, a shard for each shard; those that are there are kept."""
    job = _check(config, reporter)
    workers = job.worker.workers
    with open_stage(STAGE, config, job.inputs, workers=workers, settings=job.settings, sound=is_sound) as work:
        if work.finished:
            return work.nothing_to_do("scores")
        pairs = read_pairs(config.dataset, column_names(job.settings["columns"]), on_layout=reporter.say)
        return _write(job, work, _compute(job, work, pairs))


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


def _compute(job: ProjectionJob, work: Run, pairs: Iterator[Pair | Dropped]) -> dict[str, ProjectedShard]:
    """Write this worker's shards that are not there, whole, yet; returns what all of its own are."""
    found = {}
    text = next(pairs, None)
    total = -(-int(job.scores.manifest["counts"]["kept"]) // job.worker.workers)
    with job.reporter.task("project", total, "pairs") as task:
        for name, source in job.own_sources.items():
            there = _there(work, name)
            if there is not None:
                task.advance(there.totals.counts.read)
                found[name] = there
                continue
            rows: list[ScoredPair] = []
            totals = ProjectionTotals()
            for row in job.scores.rows_of(source):
                pair_id = int(row.pair.pair_id)
                while text is not None and text.pair_id < pair_id:
                    text = next(pairs, None)
                known = text if text is not None and text.pair_id == pair_id else Dropped(pair_id, NOT_THERE)
                made = project_pair(row, known, job.scored, job.wanted)
                totals.counts.read += 1
                if isinstance(made, Dropped):
                    totals.counts.dropped[made.reason] += 1
                else:
                    totals.add(row, made, cut=_is_cut(made.pair, job.wanted.end_of_turn))
                    rows.append(made)
                task.advance()
            work.refuse_if_lost()
            notes = {_TOTALS: json.dumps(totals.as_json(), sort_keys=True)}
            checksum = write_shard(work.place, name, rows, work.fingerprint, vocabulary_hash(job.tokenizer), notes)
            found[name] = ProjectedShard(checksum, totals)
    return found


def _there(work: Run, name: str) -> ProjectedShard | None:
    """What a shard says that this run wrote, by whomever; None where there is none that is whole."""
    shard = own_shard(work.place, name, work.fingerprint)
    if shard is None or _TOTALS not in shard.notes:
        return None
    return ProjectedShard(shard.checksum, ProjectionTotals.from_json(json.loads(shard.notes[_TOTALS])))


def _missing(job: ProjectionJob, work: Run, found: dict[str, ProjectedShard]) -> list[str]:
    """The shards that are not there, whole; where none is, `found` has those of the other workers too, read once."""
    there = work.place.states()
    missing = [name for name in job.sources if name not in there]
    if missing:
        return missing
    changed = [name for name, shard in found.items() if there[name][0] not in (None, shard.checksum["bytes"])]
    for name in job.sources.keys() - found.keys():
        shard = _there(work, name)
        if shard is None:
            changed.append(name)
        else:
            found[name] = shard
    return changed


def _write(job: ProjectionJob, work: Run, found: dict[str, ProjectedShard]) -> Summary:
    """Where the shards of all workers are there, add them up and finish the run."""
    missing = _missing(job, work, found)
    if work.finished_by_another():
        return work.nothing_to_do("scores")
    if missing:
        return work.unfinished(str(job.worker), missing)
    totals = ProjectionTotals()
    for name in job.sources:
        totals.merge(found[name].totals)
    counts = totals.counts
    job.reporter.say(f"{job.scores.folder}: {counts}")
    if not counts.kept:
        raise SepoError(f"no pair is left: {counts}", hint="give the data set and the tokenizer that were scored with")
    for reason, dropped in counts.dropped.items():
        job.reporter.warn(f"{dropped:,} of {counts.read:,} pairs were dropped: {reason}")
    warnings = alarms(totals.scale, {}) + _left_behind(job.scores)
    warnings += [f"of the scores before projection: {text}" for text in job.scores.manifest.get("warnings") or []]
    for warning in warnings:
        job.reporter.warn(warning)
    work.finish(
        files=list(job.sources),
        device="cpu",
        counts=counts.as_json(),
        results={
            "accuracy": wilson(totals.preferred, counts.kept).as_json(),
            "tokens_before": dict(totals.before),
            "largest_error": totals.largest_error,
            "source": {"fingerprint": job.scores.fingerprint, "results": job.scores.manifest.get("results")},
        },
        warnings=warnings,
        tokenizer=tokenizer_section(job.tokenizer),
        shards={name: found[name].checksum for name in job.sources},
    )
    return _summary(work, totals, warnings)


def _summary(work: Run, totals: ProjectionTotals, warnings: list[str]) -> Summary:
    before, now = (each["chosen"] + each["rejected"] for each in (totals.before, totals.counts.tokens))
    accuracy = wilson(totals.preferred, totals.counts.kept)
    rows = [
        ("pairs", str(totals.counts)),
        ("response tokens", f"{before:,} before, {now:,} now"),
        ("implicit reward prefers chosen", f"{accuracy.value:.3f} of all pairs here"),
        ("largest error of a response's sum", f"{totals.largest_error:.1e} of the sum of its tokens' sizes"),
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


def _is_cut(pair: TokenPair, end_of_turn: int | None) -> bool:
    return end_of_turn is not None and any(ids[-1] != end_of_turn for ids in (pair.chosen_ids, pair.rejected_ids))
