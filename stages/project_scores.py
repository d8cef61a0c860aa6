"""`sepo project-scores`: scores carried over to the tokens of a policy whose tokenizer is not the oracle's.

The text is what both have in common. Every pair of the original data set is encoded twice, as the scorer did and as the
policy does, and `stages.method.projection` carries a response's scores from the one's tokens to the other's. A response
keeps its summed score; there are no reference log-probs, which were of other tokens.
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
from stages.errors import SepoError
from stages.method.projection import project
from stages.method.statistics import preference_accuracy
from stages.models.folders import load_tokenizer, resolve_without_weights
from stages.reporting import Reporter, Summary, Task
from stages.store.alarms import Scale, alarms
from stages.store.manifest import Input
from stages.store.run import Run, open_stage
from stages.store.scores import Scores, is_sound, open_scores
from stages.store.shape import lookup
from stages.store.shards import OwnShard, own_shard, read_shard, shard_name, write_shard
from stages.tokens.dataset import Counts
from stages.tokens.encode import SAME_WHEN_CUT, Encoder
from stages.tokens.fingerprint import tokenizer_hash, vocabulary_hash, vocabulary_size
from stages.tokens.offsets import ResponseOffsets
from stages.types import Dropped, Floats, Ids, Pair, PairLogps, ScoredPair, TokenPair

STAGE: Final = "project-scores"
NOT_THERE: Final = "not in the data set"
OTHER_TEXT: Final = "the data set's response is not the one that was scored"
OTHER_WRITING: Final = "the two chat templates write another answer"
NOTHING_SCORED: Final = "cut before the first letter"
_DROPPED: Final = "sepo.dropped"


class Sides(NamedTuple):
    """The tokenizer that the scores are of, and the policy's."""

    scored: Any
    wanted: Any


class Encoders(NamedTuple):
    """The same as what makes ids of text."""

    scored: Encoder
    wanted: Encoder


def run(config: ProjectScoresConfig, reporter: Reporter) -> Summary:
    """Write the scores as scores of the policy's tokens, one shard for each shard; those that are there are kept.

    Raises:
        SepoError: scores that never finished or need no projection, a tokenizer or a data set that is not theirs, an
            unusable output folder, another run at work.
    """
    scores = open_scores(config.scores)
    sides = _tokenizers(config, scores, reporter)
    scores = scores._replace(ids_below=vocabulary_size(sides.scored))
    theirs = lookup(scores.manifest, "settings.chat_template_kwargs")
    kwargs = config.chat_template_kwargs or theirs
    encoders = Encoders(Encoder(sides.scored, given_arguments(theirs)), Encoder(sides.wanted, given_arguments(kwargs)))
    inputs = {
        "scores": Input(str(scores.folder), scores.fingerprint),
        "scored tokenizer": Input(_scored_name(config, scores), encoders.scored.fingerprint),
        "tokenizer": Input(config.model, encoders.wanted.fingerprint),
        "dataset": Input(config.dataset, _dataset_hash(config, scores, reporter)),
    }
    columns = config.columns or lookup(scores.manifest, "settings.columns")
    settings = {"columns": columns, "chat_template_kwargs": kwargs}
    with open_stage(STAGE, config, inputs, settings=settings, sound=is_sound) as work:
        if work.finished:
            return work.nothing_to_do("scores")
        pairs = read_pairs(config.dataset, column_names(columns), on_layout=reporter.say)
        return _project(work, scores, sides, encoders, pairs, reporter)


def _project(
    work: Run, scores: Scores, sides: Sides, encoders: Encoders, pairs: Iterator[Pair | Dropped], reporter: Reporter
) -> Summary:
    """Write what is missing, read it all back beside what it came from, and finish the run."""
    names = [shard_name(index) for index in range(len(scores.shards))]
    projector = _Projector(encoders)
    with reporter.task("project", int(scores.manifest["counts"]["kept"]), "pairs") as task:
        _write_missing(work, scores, names, projector, _Reader(pairs), vocabulary_hash(sides.wanted), task)
    shards = {name: _written(work, name) for name in names}
    counts = _counts(shards)
    reporter.say(f"{scores.folder}: {counts}")
    if not counts.kept:
        raise SepoError(f"no pair is left: {counts}", hint="give the data set and the tokenizer that were scored with")
    for reason, dropped in counts.dropped.items():
        reporter.warn(f"{dropped:,} of {counts.read:,} pairs were dropped: {reason}")
    scale = Scale()
    results = _compare(work, scores, shards, counts, projector.end_of_turn, scale)
    warnings = alarms(scale, {})
    warnings += [f"of the scores before projection: {text}" for text in scores.manifest.get("warnings") or []]
    for warning in warnings:
        reporter.warn(warning)
    work.finish(
        files=names,
        device="cpu",
        counts=counts.as_json(),
        results=results,
        warnings=warnings,
        tokenizer={
            "vocabulary": vocabulary_hash(sides.wanted),
            "hash": tokenizer_hash(sides.wanted),
            "size": vocabulary_size(sides.wanted),
        },
        shards={name: shard.checksum for name, shard in shards.items()},
    )
    return Summary(f"scores in {work.place}", _rows(counts, results))


def _tokenizers(config: ProjectScoresConfig, scores: Scores, reporter: Reporter) -> Sides:
    folder = resolve_without_weights(config.model, reporter)
    wanted = load_tokenizer(folder, trust_remote_code=config.trust_remote_code, reporter=reporter)
    theirs = scores.manifest["tokenizer"]["vocabulary"]
    if vocabulary_hash(wanted) == theirs:
        raise SepoError(
            f"{config.model} has the tokenizer that {scores.folder} is of: there is nothing to project",
            hint=f"sepo train-policy --model {config.model} --scores {scores.folder}",
        )
    name = _scored_name(config, scores)
    scored_folder = Path(name) if Path(name).is_dir() else resolve_without_weights(name, reporter)
    scored = load_tokenizer(scored_folder, trust_remote_code=config.trust_remote_code, reporter=reporter)
    if vocabulary_hash(scored) != theirs:
        raise SepoError(
            f"the token->id map of {name} is not the one {scores.folder} was made with",
            hint="give the oracle's tokenizer with --tokenizer",
        )
    for owner, tokenizer in ((name, scored), (config.model, wanted)):
        if not tokenizer.is_fast:
            raise SepoError(
                f"the tokenizer of {owner} cannot say which letters a token stands for",
                hint='projection needs a "fast" tokenizer, which has a tokenizer.json',
            )
    return Sides(scored, wanted)


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


class _Reader:
    """The rows of a data set by their number, which may only rise."""

    def __init__(self, pairs: Iterator[Pair | Dropped]) -> None:
        self._pairs = pairs
        self._current: Pair | Dropped | None = next(pairs, None)

    def pair(self, pair_id: int) -> Pair | Dropped:
        while self._current is not None and self._current.pair_id < pair_id:
            self._current = next(self._pairs, None)
        if self._current is None or self._current.pair_id != pair_id:
            return Dropped(pair_id, NOT_THERE)
        return self._current


class _Projector:
    """Makes a row of the policy's tokens of a row of the scorer's and its text."""

    def __init__(self, encoders: Encoders) -> None:
        self._scored, self._wanted = encoders

    @property
    def end_of_turn(self) -> int | None:
        """The policy's."""
        return self._wanted.end_of_turn

    def row(self, row: ScoredPair, pair: Pair | Dropped) -> ScoredPair | Dropped:
        if isinstance(pair, Dropped):
            return pair
        scored, wanted = self._scored.offsets(pair), self._wanted.offsets(pair)
        if isinstance(scored, Dropped):
            return Dropped(pair.pair_id, OTHER_TEXT)
        if isinstance(wanted, Dropped):
            return wanted
        try:
            chosen = _carried(row.pair.chosen_ids, row.scores.chosen, scored.chosen, wanted.chosen)
            rejected = _carried(row.pair.rejected_ids, row.scores.rejected, scored.rejected, wanted.rejected)
        except _UnusableError as reason:
            return Dropped(pair.pair_id, str(reason))
        if np.array_equal(chosen.ids, rejected.ids):
            return Dropped(pair.pair_id, SAME_WHEN_CUT)
        ids = TokenPair(pair.pair_id, wanted.prompt_ids, chosen.ids, rejected.ids)
        return ScoredPair(ids, PairLogps(chosen.scores, rejected.scores), None)


class _UnusableError(Exception):
    """The message is the reason to count the pair under."""


class _Carried(NamedTuple):
    ids: Ids
    scores: Floats


def _carried(ids: Ids, scores: Floats, scored: ResponseOffsets, wanted: ResponseOffsets) -> _Carried:
    """A response's scores on the tokens of the other tokenizer.

    Args:
        ids: what was scored: all that the text makes, or its beginning if the response was cut.
    """
    count = len(ids)
    if not np.array_equal(ids, scored.ids[:count]):
        raise _UnusableError(OTHER_TEXT)
    if scored.text != wanted.text:
        raise _UnusableError(OTHER_WRITING)
    ends, others = scored.ends[:count], wanted.ends.copy()
    if ends[-1] == 0:
        raise _UnusableError(NOTHING_SCORED)
    if count < len(scored.ids):
        # It did not end there, and the last of the other tokens may reach beyond the cut.
        others = others[: np.searchsorted(others, ends[-1]) + 1]
    others[-1] = max(others[-1], ends[-1])
    return _Carried(wanted.ids[: len(others)], project(scores, ends, others))


def _write_missing(
    work: Run, scores: Scores, names: list[str], projector: _Projector, reader: _Reader, vocabulary: str, task: Task
) -> None:
    for source, name in zip(scores.shards, names, strict=True):
        there = own_shard(work.place, name, work.fingerprint)
        if there is not None:
            task.advance(there.checksum["rows"] + sum(json.loads(there.notes[_DROPPED]).values()))
            continue
        rows: list[ScoredPair] = []
        dropped: Counter[str] = Counter()
        for row in scores.rows_of(source):
            made = projector.row(row, reader.pair(int(row.pair.pair_id)))
            if isinstance(made, Dropped):
                dropped[made.reason] += 1
            else:
                rows.append(made)
            task.advance()
        work.refuse_if_lost()
        notes = {_DROPPED: json.dumps(dropped, sort_keys=True)}
        write_shard(work.place, name, rows, work.fingerprint, vocabulary, notes)


def _written(work: Run, name: str) -> OwnShard:
    shard = own_shard(work.place, name, work.fingerprint)
    if shard is None:
        raise SepoError(f"{work.place.at(name)} is not what was written there", hint="run the same again")
    return shard


def _counts(shards: dict[str, OwnShard]) -> Counts:
    counts = Counts(kept=sum(shard.checksum["rows"] for shard in shards.values()))
    for shard in shards.values():
        counts.dropped.update(json.loads(shard.notes[_DROPPED]))
    counts.read = counts.kept + counts.dropped.total()
    return counts


def _compare(
    work: Run, scores: Scores, shards: dict[str, OwnShard], counts: Counts, end_of_turn: int | None, scale: Scale
) -> dict[str, Any]:
    """Read the shards back, beside the scores they came from: what was conserved. Counts the tokens on the way."""
    largest = 0.0
    before: Counter[str] = Counter()

    def rows() -> Iterator[PairLogps]:
        nonlocal largest
        sources = scores.rows()
        for name, shard in shards.items():
            for row in read_shard(work.place, name, work.fingerprint, shard.checksum):
                source = next(each for each in sources if each.pair.pair_id == row.pair.pair_id)
                largest = max(largest, *map(_error, source.scores, row.scores))
                _add_tokens(before, source.pair)
                _add_tokens(counts.tokens, row.pair)
                scale.add(row.scores)
                counts.truncated += _is_cut(row.pair, end_of_turn)
                yield row.scores

    accuracy = preference_accuracy(rows())
    return {
        "accuracy": accuracy.as_json(),
        "tokens_before": dict(before),
        "largest_error": largest,
        "source": {"fingerprint": scores.fingerprint, "results": scores.manifest.get("results")},
    }


def _is_cut(pair: TokenPair, end_of_turn: int | None) -> bool:
    """Whether a response of the pair does not end with an end of turn, where there is one."""
    return end_of_turn is not None and any(ids[-1] != end_of_turn for ids in (pair.chosen_ids, pair.rejected_ids))


def _error(before: Floats, after: Floats) -> float:
    """How much of a response's summed score was lost, as a share of the sum of its tokens' sizes."""
    size = float(np.abs(before, dtype=np.float64).sum())
    lost = float(np.sum(after, dtype=np.float64) - np.sum(before, dtype=np.float64))
    return abs(lost) / size if size else abs(lost)


def _add_tokens(counts: Counter[str], pair: TokenPair) -> None:
    counts.update(prompt=len(pair.prompt_ids), chosen=len(pair.chosen_ids), rejected=len(pair.rejected_ids))


def _rows(counts: Counts, results: dict[str, Any]) -> list[tuple[str, str]]:
    tokens, before = (each["chosen"] + each["rejected"] for each in (counts.tokens, results["tokens_before"]))
    prefers = f"{results['accuracy']['value']:.3f} of all pairs here"
    return [
        ("pairs", str(counts)),
        ("response tokens", f"{before:,} before, {tokens:,} now"),
        ("implicit reward prefers chosen", prefers),
        ("largest error of a response's sum", f"{results['largest_error']:.1e} of the sum of its tokens' sizes"),
    ]
