"""`sepo denoise`: scores without what only one token says, in the place of those that were measured.

A token's score becomes what its type scores over the data set, and beyond that what the type scores after the token
before it (`stages.method.pooling`). Nothing else of a row changes; the measured scores stay beside the new ones.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.configs import DenoiseConfig
from stages.errors import SepoError
from stages.method.pooling import Pooled, Shrinkage, pool
from stages.method.statistics import implicit_margin, preference_accuracy
from stages.reporting import Reporter, Summary
from stages.store.alarms import Scale, alarms
from stages.store.checksums import Checksum
from stages.store.columns import Side
from stages.store.manifest import Input
from stages.store.run import Run, open_stage
from stages.store.scores import Scores, is_sound, open_scores
from stages.store.shape import lookup
from stages.store.shards import RAW, own_shard, shard_name, write_shard
from stages.types import PairLogps, ScoredPair

STAGE: Final = "denoise"
_KEPT_SETTINGS: Final = ("columns", "chat_template_kwargs", "precision")
"""of the scorer, which later stages ask the scores for"""


class DenoiseJob(NamedTuple):
    """What is known before the output folder is opened."""

    reporter: Reporter
    scores: Scores
    inputs: dict[str, Input]
    """the scores, and what they were made of"""
    settings: dict[str, Any]
    predecessors: bool
    """whether the token before has a part in it"""


class Written(NamedTuple):
    """What became of the scores."""

    checksums: dict[str, Checksum]
    pooled: Pooled
    before: list[float]
    """a margin a pair, nats"""
    after: list[float]
    scale: Scale


def run(config: DenoiseConfig, reporter: Reporter) -> Summary:
    """Write the scores anew, a shard for each shard."""
    job = _check(config, reporter)
    with open_stage(STAGE, config, job.inputs, settings=job.settings, sound=is_sound) as work:
        if work.finished:
            return work.nothing_to_do("scores")
        return _write(job, work, _compute(job, work))


def _check(config: DenoiseConfig, reporter: Reporter) -> DenoiseJob:
    scores = open_scores(config.scores)
    if scores.manifest["stage"] == STAGE:
        source = lookup(scores.manifest, "input_names.scores")
        raise SepoError(f"{scores.folder} is denoised already", hint=f"denoise the scores it is made of ({source})")
    hashes, names = (lookup(scores.manifest, part) or {} for part in ("inputs", "input_names"))
    inputs = {name: Input(str(names.get(name, "")), str(each)) for name, each in hashes.items() if name != "scores"}
    inputs["scores"] = Input(str(scores.folder), scores.fingerprint)
    theirs = lookup(scores.manifest, "settings") or {}
    settings = {name: theirs[name] for name in _KEPT_SETTINGS if name in theirs}
    return DenoiseJob(reporter, scores, inputs, settings, config.pool == "predecessor")


def _compute(job: DenoiseJob, work: Run) -> Written:
    pooled, tokens = _pooled(job)
    sides = [pooled.scores_N[:tokens], pooled.scores_N[tokens:]]
    written = Written({}, pooled, [], [], Scale())
    with job.reporter.task("denoise", int(job.scores.manifest["counts"]["kept"]), "pairs") as task:
        for index, source in enumerate(job.scores.shards):
            rows = list(job.scores.rows_of(source))
            made = [row._replace(scores=_next_scores(row, sides)) for row in rows]
            for before, after in zip(rows, made, strict=True):
                written.before.append(implicit_margin(before.scores))
                written.after.append(implicit_margin(after.scores))
                written.scale.add(after.scores)
            work.refuse_if_lost()
            name, vocabulary = shard_name(index), job.scores.manifest["tokenizer"]["vocabulary"]
            write_shard(work.place, name, made, work.fingerprint, vocabulary, raw=[row.scores for row in rows])
            shard = own_shard(work.place, name, work.fingerprint)
            if shard is None:
                raise SepoError(f"{work.place.at(name)} is not what was written there", hint="run the same again")
            written.checksums[name] = shard.checksum
            task.advance(len(rows))
    return written


def _pooled(job: DenoiseJob) -> tuple[Pooled, int]:
    """The scores of all chosen responses, then of all rejected ones, and how many the former are."""
    sides: list[list[tuple[NDArray[Any], ...]]] = [[], []]
    for columns in job.scores.columns():
        last_ids = columns.prompt_ids[columns.prompt_offsets[1:] - 1]
        for side, found in zip((columns.chosen, columns.rejected), sides, strict=True):
            found.append((side.scores, side.ids, _predecessors(side, last_ids)))
    chosen, rejected = sides
    tokens = sum(len(scores) for scores, *_ in chosen)
    scores_N, types_N, predecessors_N = (np.concatenate(part) for part in zip(*chosen, *rejected, strict=True))
    if not job.predecessors:
        predecessors_N = np.zeros_like(predecessors_N)
    return pool(scores_N.astype(np.float64), types_N, predecessors_N), tokens


def _predecessors(side: Side, last_ids: NDArray[Any]) -> NDArray[Any]:
    """The id before each token of a side; before a response's first one its prompt's last, of `last_ids` (P,)."""
    before = np.empty_like(side.ids)
    before[1:] = side.ids[:-1]
    before[side.offsets[:-1]] = last_ids
    return before


def _next_scores(row: ScoredPair, sides: list[NDArray[Any]]) -> PairLogps:
    """The scores of the next row, which are taken from the front of either side."""

    def take() -> Iterator[NDArray[np.float32]]:
        for number, ids in enumerate(row.pair.parts[1:]):
            yield sides[number][: len(ids)].astype(np.float32)
            sides[number] = sides[number][len(ids) :]

    return PairLogps(*take())


def _write(job: DenoiseJob, work: Run, written: Written) -> Summary:
    manifest, pooled = job.scores.manifest, written.pooled
    accuracies = [preference_accuracy(margins) for margins in (written.before, written.after)]
    warnings = alarms(written.scale, {})
    warnings += [f"of the scores before: {text}" for text in manifest.get("warnings") or []]
    for warning in warnings:
        job.reporter.warn(warning)
    work.finish(
        files=list(written.checksums),
        device="cpu",
        counts=manifest["counts"],
        results={
            "accuracy_before": accuracies[0].as_json(),
            "accuracy": accuracies[1].as_json(),
            "types": pooled.types._asdict(),
            "contexts": pooled.contexts._asdict(),
            "source": {"fingerprint": job.scores.fingerprint, "results": manifest.get("results")},
        },
        warnings=warnings,
        tokenizer=manifest["tokenizer"],
        shards=written.checksums,
    )
    rows = [
        ("pairs", f"{len(written.before):,}"),
        ("types", _in_words(pooled.types)),
        *([("types after a predecessor", _in_words(pooled.contexts))] if job.predecessors else []),
        ("implicit reward prefers chosen", f"{accuracies[0]:.3f} before, {accuracies[1]:.3f} now, of all pairs here"),
        ("measured scores", f"in the columns {' and '.join(RAW)}"),
    ]
    return Summary(f"scores in {work.place}", rows)


def _in_words(found: Shrinkage) -> str:
    return f"{found.groups:,}: variance {found.between:.2g} between their means, {found.within:.2g} within"
