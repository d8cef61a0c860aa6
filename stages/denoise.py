"""`sepo denoise`: scores without what only one token says, in the place of those that were measured.

A token's score becomes what its type scores over the data set, and beyond that what the type scores after the token
before it (`stages.method.pooling`), of centred scores where `sepo score --center` measured how to centre them. Where
oracles scored pairs that they had not seen, the labels say how much of each part is real, and how much of what they
say of types by themselves (`stages.method.calibration`, `stages.method.counts`). Counts may also be taken alone, and
need no oracle. Nothing else of a row changes; the measured scores stay beside the new ones.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.configs import DenoiseConfig
from stages.configs.scores import COUNTS
from stages.errors import SepoError
from stages.method.calibration import Calibration, calibrate, cross_fitted_margins, log_losses
from stages.method.counts import COUNT_FOLDS, Counted, count, fits
from stages.method.folds import fold_of
from stages.method.pooling import Pooled, pool
from stages.method.statistics import Interval, mean_interval, preference_accuracy
from stages.report.calibration import PARTS, calibration_rows, calibration_warnings, shrinkage_in_words
from stages.reporting import Reporter, Summary
from stages.store.alarms import Scale, alarms
from stages.store.checksums import Checksum
from stages.store.columns import Side
from stages.store.manifest import Input
from stages.store.rows import KL
from stages.store.run import Run, open_stage
from stages.store.scores import Scores, is_sound, open_scores
from stages.store.shape import lookup
from stages.store.shards import RAW, own_shard, read_beside, shard_name, write_shard
from stages.types import PairLogps, ScoredPair

STAGE: Final = "denoise"
_KEPT_SETTINGS: Final = ("columns", "chat_template_kwargs", "precision", "quantize", "folds")
"""of the scorer, which later stages ask the scores for"""


class DenoiseJob(NamedTuple):
    """What is known before the output folder is opened."""

    config: DenoiseConfig
    reporter: Reporter
    scores: Scores
    inputs: dict[str, Input]
    """the scores, and what they were made of"""
    settings: dict[str, Any]
    folds: int
    """of the oracles that scored what they had not seen; 1 where one scored all"""


class ScoredTokens(NamedTuple):
    """``N`` response tokens of ``R`` responses, two a pair: all chosen ones, then all rejected ones."""

    measured_N: NDArray[np.float64]
    scores_N: NDArray[np.float64]
    """centred, where the folder says by how much"""
    types_N: NDArray[Any]
    predecessors_N: NDArray[Any]
    lengths_R: NDArray[np.int64]
    folds_P: NDArray[np.int64]
    """of the oracles"""
    count_folds_P: NDArray[np.int64]
    """of the counts, which are cheap, so that there are more folds and each learns of more pairs"""

    @property
    def pairs_N(self) -> NDArray[np.int64]:
        """The number of each token's pair."""
        return np.repeat(np.tile(np.arange(len(self.folds_P)), 2), self.lengths_R)

    @property
    def is_centred(self) -> bool:
        return self.scores_N is not self.measured_N

    def pooled(self, mask_N: NDArray[np.bool_] | slice = slice(None)) -> Pooled:
        """The scores of some tokens, pooled over these."""
        return pool(self.scores_N[mask_N], self.types_N[mask_N], self.predecessors_N[mask_N])

    def counted(self, reporter: Reporter) -> Counted:
        """What the labels by themselves say that each token's type is worth."""
        signs_N = np.repeat(np.repeat([1.0, -1.0], len(self.folds_P)), self.lengths_R)
        with reporter.task("count", fits(self.count_folds_P), "regressions") as task:
            return count(self.types_N, signs_N, self.pairs_N, self.count_folds_P, task.advance)

    def differences(self, values_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over each pair's chosen response minus that over its rejected one, (P,)."""
        sums_R = np.add.reduceat(values_N, np.cumsum(self.lengths_R) - self.lengths_R)
        chosen_P, rejected_P = np.split(sums_R, 2)
        return np.asarray(chosen_P - rejected_P)


class Unseen(NamedTuple):
    """What pairs say of scores by oracles that had not seen them."""

    parts: Sequence[str]
    calibration: Calibration
    """of the parts: those of a score and the counts, or the counts alone"""
    without_counts: Calibration | None
    """of the parts of a score, where there are any"""
    counted: Counted
    accuracies: dict[str, Interval]
    """of the implicit reward by each kind of score; none of the scores knows the label that it is judged by"""
    losses: dict[str, Interval]
    """nats a label, likewise, of each kind of score times what the other folds' labels say it is worth"""


class Denoised(NamedTuple):
    """What becomes of the scores."""

    sides: list[NDArray[np.float64]]
    """the new scores of all chosen responses, then those of all rejected ones"""
    pooled: Pooled | None
    """none where counts are taken alone"""
    unseen: Unseen | None
    centred: bool
    before: Interval
    """accuracy of the implicit reward on all pairs"""
    after: Interval


def run(config: DenoiseConfig, reporter: Reporter) -> Summary:
    """Write the scores anew, a shard for each shard."""
    job = _check(config, reporter)
    with open_stage(STAGE, config, job.inputs, settings=job.settings, sound=is_sound) as work:
        if work.finished:
            return work.nothing_to_do("scores")
        tokens = _load(job)
        return _write(job, work, _compute(job, tokens))


def _check(config: DenoiseConfig, reporter: Reporter) -> DenoiseJob:
    scores = open_scores(config.scores)
    if scores.manifest["stage"] == STAGE:
        source = lookup(scores.manifest, "input_names.scores")
        raise SepoError(f"{scores.folder} is denoised already", hint=f"denoise the scores it is made of ({source})")
    theirs = lookup(scores.manifest, "settings") or {}
    settings = {name: theirs[name] for name in _KEPT_SETTINGS if name in theirs}
    folds = settings.get("folds", 1)
    if config.calibrate and folds == 1:
        raise SepoError(
            f"the oracle of {scores.folder} may have seen the pairs that it scored: calibrate has no labels to go by",
            hint="score with a folder of `sepo train-oracle --folds 2`",
        )
    hashes, names = (lookup(scores.manifest, part) or {} for part in ("inputs", "input_names"))
    inputs = {name: Input(str(names.get(name, "")), str(each)) for name, each in hashes.items() if name != "scores"}
    if config.pool == COUNTS:
        # They know nothing of one, not even whether it was the reference itself.
        inputs.pop("oracle", None)
    inputs["scores"] = Input(str(scores.folder), scores.fingerprint)
    return DenoiseJob(config, reporter, scores, inputs, settings, folds)


def _load(job: DenoiseJob) -> ScoredTokens:
    sides: list[list[tuple[NDArray[Any], ...]]] = [[], []]
    folds: list[tuple[int, int]] = []
    for columns in job.scores.columns():
        prompts = np.split(columns.prompt_ids, columns.prompt_offsets[1:-1])
        folds += [(fold_of(ids, job.folds), fold_of(ids, COUNT_FOLDS)) for ids in prompts]
        last_ids = columns.prompt_ids[columns.prompt_offsets[1:] - 1]
        for side, found in zip((columns.chosen, columns.rejected), sides, strict=True):
            found.append((side.scores, side.ids, _predecessors(side, last_ids), side.lengths))
    chosen, rejected = sides
    scores_N, types_N, predecessors_N, lengths_R = (
        np.concatenate(part) for part in zip(*chosen, *rejected, strict=True)
    )
    scores_N = scores_N.astype(np.float64)
    if job.config.pool == "type":
        predecessors_N = np.zeros_like(predecessors_N)
    kl_N = _kl(job.scores, len(scores_N))
    centred_N = scores_N if kl_N is None else scores_N + kl_N
    return ScoredTokens(scores_N, centred_N, types_N, predecessors_N, lengths_R, *np.array(folds).T)


def _kl(scores: Scores, tokens: int) -> NDArray[np.float64] | None:
    """KL(reference || oracle) at every token, (N,), where all shards have it.

    Score + KL is the score minus its mean under the reference, which is -KL by definition of both: how much more likely
    the oracle makes this token, against what it does to the tokens that might stand there. TDPO1 rewards a response
    with its sum (arXiv 2404.11999, with beta 1).
    """
    found = [read_beside(scores.folder, name, KL) for name in scores.shards]
    if any(each is None for each in found):
        return None
    kl_N = np.concatenate([np.concatenate(side) for side in zip(*filter(None, found), strict=True)])
    if len(kl_N) != tokens or not np.isfinite(kl_N).all():
        problem = f"{scores.folder}: the columns {' and '.join(KL)} do not have a number for every response token"
        raise SepoError(problem, hint="score again with --center")
    return kl_N.astype(np.float64)


def _predecessors(side: Side, last_ids: NDArray[Any]) -> NDArray[Any]:
    """The id before each token of a side; before a response's first one its prompt's last, of `last_ids` (P,)."""
    before = np.empty_like(side.ids)
    before[1:] = side.ids[:-1]
    before[side.offsets[:-1]] = last_ids
    return before


def _compute(job: DenoiseJob, tokens: ScoredTokens) -> Denoised:
    pooled: Pooled | None
    unseen: Unseen | None
    if job.config.pool == COUNTS:
        pooled, unseen = None, _unseen_counts(job, tokens)
        scores_N = unseen.calibration.coefficients_K[0] * unseen.counted.all_N
    else:
        pooled, unseen = tokens.pooled(), _unseen(job, tokens)
        scores_N = _calibrated(job, pooled, unseen) if job.config.calibrate else pooled.scores_N
    before, after = (preference_accuracy(tokens.differences(each).tolist()) for each in (tokens.measured_N, scores_N))
    chosen = int(tokens.lengths_R[: len(tokens.folds_P)].sum())
    return Denoised(np.split(scores_N, [chosen]), pooled, unseen, tokens.is_centred, before, after)


def _calibrated(job: DenoiseJob, pooled: Pooled, unseen: Unseen | None) -> NDArray[np.float64]:
    if unseen is None:
        raise SepoError(
            f"all pairs of {job.scores.folder} are of one fold: calibrate has nothing to compare them with",
            hint="score more pairs, or leave out --calibrate",
        )
    scores_N: NDArray[np.float64] = unseen.calibration.coefficients_K @ [*pooled.parts_KN, unseen.counted.all_N]
    return scores_N


def _unseen_counts(job: DenoiseJob, tokens: ScoredTokens) -> Unseen:
    """What the labels of other prompts say of counts alone."""
    if len(np.unique(tokens.count_folds_P)) < 2:
        raise SepoError(
            f"all pairs of {job.scores.folder} are of one fold: nothing says what counts are worth on other prompts",
            hint="score more prompts",
        )
    counted = tokens.counted(job.reporter)
    differences_P1 = tokens.differences(counted.unseen_N)[:, None]
    losses_P = log_losses(cross_fitted_margins(differences_P1, tokens.count_folds_P))
    accuracy = preference_accuracy(differences_P1[:, 0].tolist())
    said = {COUNTS: accuracy}, {COUNTS: mean_interval(losses_P)}
    return Unseen([COUNTS], calibrate(differences_P1), None, counted, *said)


def _unseen(job: DenoiseJob, tokens: ScoredTokens) -> Unseen | None:
    """What the labels say of the scores, where these are of oracles that have not seen them."""
    if len(np.unique(tokens.folds_P)) < 2:
        return None
    # Pooled within each fold, over the scores of one oracle: another fold's oracle has seen the labels of this one.
    parts_KN, counted = np.empty((len(PARTS), len(tokens.scores_N))), tokens.counted(job.reporter)
    folds_N = tokens.folds_P[tokens.pairs_N]
    for fold in np.unique(tokens.folds_P):
        parts_KN[:-1, folds_N == fold] = tokens.pooled(folds_N == fold).parts_KN
    parts_KN[-1] = counted.unseen_N
    differences_PK = np.stack([tokens.differences(part_N) for part_N in parts_KN], axis=1)
    type_P, context_P, residual_P, counts_P = differences_PK.T
    centred = {"centred": type_P + context_P + residual_P} if tokens.is_centred else {}
    measured_P = tokens.differences(tokens.measured_N)
    margins = {"as measured": measured_P, **centred, "pooled": type_P + context_P, "counts": counts_P}
    scaled = {name: cross_fitted_margins(margins_P[:, None], tokens.folds_P) for name, margins_P in margins.items()}
    margins["calibrated"] = scaled["calibrated"] = cross_fitted_margins(differences_PK, tokens.folds_P)
    return Unseen(
        PARTS,
        calibrate(differences_PK),
        calibrate(np.stack([type_P, context_P, residual_P], axis=1)),
        counted,
        {name: preference_accuracy(margins_P.tolist()) for name, margins_P in margins.items()},
        {name: mean_interval(log_losses(scaled_P)) for name, scaled_P in scaled.items()},
    )


def _write(job: DenoiseJob, work: Run, found: Denoised) -> Summary:
    checksums, scale = _write_shards(job, work, found.sides)
    manifest, calibrated = job.scores.manifest, job.config.calibrate
    warnings = alarms(scale, {})
    if found.unseen:
        warnings += calibration_warnings(found.unseen.calibration, found.unseen.without_counts, calibrated=calibrated)
    elif job.folds > 1:
        warnings.append(f"all pairs are of one of {job.folds} folds: nothing says how much of the scores is real")
    if found.pooled:
        warnings += [f"of the scores before: {text}" for text in manifest.get("warnings") or []]
    for warning in warnings:
        job.reporter.warn(warning)
    results = _results(found)
    work.finish(
        files=list(checksums),
        device="cpu",
        counts=manifest["counts"],
        results=results | {"source": {"fingerprint": job.scores.fingerprint, "results": manifest.get("results")}},
        warnings=warnings,
        tokenizer=manifest["tokenizer"],
        shards=checksums,
    )
    rows = [
        ("pairs", f"{manifest['counts']['kept']:,}"),
        *_pooled_rows(job, found),
        ("implicit reward prefers chosen", _accuracy_in_words(job, found)),
        *calibration_rows(results),
        ("scores", _scores_in_words(job, found)),
        ("measured scores", f"in the columns {' and '.join(RAW)}"),
    ]
    return Summary(f"scores in {work.place}", rows)


def _pooled_rows(job: DenoiseJob, found: Denoised) -> list[tuple[str, str]]:
    if not found.pooled:
        return []
    rows = [
        ("centred", "by the KL of the reference from the oracle" if found.centred else "no (`sepo score --center`)"),
        ("types", shrinkage_in_words(found.pooled.types)),
    ]
    if job.config.pool == "predecessor":
        rows.append(("types after a predecessor", shrinkage_in_words(found.pooled.contexts)))
    return rows


def _scores_in_words(job: DenoiseJob, found: Denoised) -> str:
    if not found.pooled:
        return "counts alone, times their coefficient"
    return "calibrated: coefficients times parts" if job.config.calibrate else "pooled: type and context"


def _accuracy_in_words(job: DenoiseJob, found: Denoised) -> str:
    before, now = f"{found.before:.3f} before", f"{found.after:.3f} now"
    if not found.pooled:
        return f"{before}, {now}, which knows the labels: counts are learnt of all pairs"
    if job.folds == 1:
        return f"{before}, {now}, of all pairs here, trained on or not"
    return (
        f"{before}, by oracles that had not seen the prompt; {now}, which knows the labels: means hold scores by the"
        " other folds' oracles, and what is written as counts is learnt of all pairs"
    )


def _results(found: Denoised) -> dict[str, Any]:
    """For the manifest."""
    results: dict[str, Any] = {"accuracy_before": found.before.as_json(), "accuracy": found.after.as_json()}
    if pooled := found.pooled:
        results |= {"centred": found.centred, "types": pooled.types._asdict(), "contexts": pooled.contexts._asdict()}
    if unseen := found.unseen:
        results["calibration"] = unseen.calibration.as_json(unseen.parts)
        if unseen.without_counts:
            results["calibration_without_counts"] = unseen.without_counts.as_json(PARTS[:-1])
        results["counts_ridge"] = unseen.counted.ridge
        results["accuracy_on_unseen_pairs"] = {name: each.as_json() for name, each in unseen.accuracies.items()}
        results["log_loss_on_unseen_pairs"] = {name: each.as_json() for name, each in unseen.losses.items()}
    return results


def _write_shards(job: DenoiseJob, work: Run, sides: list[NDArray[np.float64]]) -> tuple[dict[str, Checksum], Scale]:
    """A shard for each shard; what they are, and how large the scores in them."""
    sides = list(sides)
    checksums: dict[str, Checksum] = {}
    scale = Scale()
    count, vocabulary = int(job.scores.manifest["counts"]["kept"]), job.scores.manifest["tokenizer"]["vocabulary"]
    with job.reporter.task("denoise", count, "pairs") as task:
        for index, source in enumerate(job.scores.shards):
            rows = list(job.scores.rows_of(source))
            made = [row._replace(scores=_next_scores(row, sides)) for row in rows]
            for row in made:
                scale.add(row.scores)
            work.refuse_if_lost()
            name = shard_name(index)
            measured = dict(zip(RAW, zip(*(row.scores for row in rows), strict=True), strict=True))
            write_shard(work.place, name, made, work.fingerprint, vocabulary, beside=measured)
            shard = own_shard(work.place, name, work.fingerprint)
            if shard is None:
                raise SepoError(f"{work.place.at(name)} is not what was written there", hint="run the same again")
            checksums[name] = shard.checksum
            task.advance(len(rows))
    return checksums, scale


def _next_scores(row: ScoredPair, sides: list[NDArray[Any]]) -> PairLogps:
    """The scores of the next row, which are taken from the front of either side."""

    def take() -> Iterator[NDArray[np.float32]]:
        for number, ids in enumerate(row.pair.parts[1:]):
            yield sides[number][: len(ids)].astype(np.float32)
            sides[number] = sides[number][len(ids) :]

    return PairLogps(*take())
