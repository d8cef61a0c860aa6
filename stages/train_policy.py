"""`sepo train-policy`: train a policy on the key tokens of scored pairs.

    u(y) = gamma / |selected| * sum over selected of log pi_theta(y_i | q, y_<i)
    L    = -log sigmoid(u(y_w) - u(y_l) - margin)

(arXiv 2408.13518 Eq. 11.) Reads scores and a model, and for objectives that have one a reference: no oracle, no text.
Other objectives are in `stages.method.objectives`, other ways to choose tokens in `stages.method.rules`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from accelerate import Accelerator

from stages.configs import PolicyConfig
from stages.devices.memory import move_model
from stages.devices.processes import gather_weights, join_processes
from stages.evaluation.contamination import SNAPSHOTS
from stages.logprobs.generate import stop_at
from stages.logprobs.head import kl_from_reference, kl_of_reference
from stages.logprobs.logps import Reader, Reference
from stages.logprobs.paths import find_paths
from stages.method.examples import Weighed, make_examples
from stages.method.selection import Evidence
from stages.models.adapters import base_name
from stages.models.folders import load_model, load_tokenizer, resolve_model, save_model, save_model_into, usable_length
from stages.models.quantization import load_trainable
from stages.models.references import (
    Around,
    Frozen,
    frozen,
    logps_of_rows,
    refuse_not_finite,
    refuse_other_head,
    refuse_other_reference,
    refuse_other_vocabulary,
    refuse_unknown_ids,
)
from stages.registry import OBJECTIVES, RULES
from stages.report.card import Made, write_policy_card
from stages.reporting import Reporter, Summary
from stages.store.alarms import Scale, alarms
from stages.store.hub import push_run, refuse_closed_hub
from stages.store.logps import FILE as LOGPS
from stages.store.logps import START
from stages.store.manifest import Input
from stages.store.run import Run, open_stage
from stages.store.scores import Scores, open_scores
from stages.store.shape import lookup
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_hash, tokenizer_inputs, vocabulary_size
from stages.training.checkpoints import forget_checkpoints
from stages.training.loop import fit
from stages.training.lora import UNMERGED, Trainee, make_trainee, refuse_useless_lora
from stages.training.metrics import seconds_spent, training_warnings
from stages.training.optimizers import refuse_useless_optimizer
from stages.training.training_mode import refuse_impossible
from stages.types import Example, PairLogps, ScoredPair

STAGE: Final = "train-policy"


class Job(NamedTuple):
    """What every part of the stage needs."""

    config: PolicyConfig
    accelerator: Accelerator
    work: Run
    scores: Scores
    start: Frozen
    """where the policy starts"""
    reference: Frozen
    """where distances are measured from; the same unless another one was named"""
    reporter: Reporter

    def load(self, model: Frozen) -> Any:
        """A model on this process's device, where the policy starts with its weights held as they are in training."""
        if model.hash == self.start.hash:
            return load_trainable(model.folder, self.config, self.accelerator.device)
        loaded = load_model(model.folder, trust_remote_code=self.config.trust_remote_code)
        return move_model(loaded, self.accelerator.device)


def run(config: PolicyConfig, reporter: Reporter) -> Summary:
    """Train the policy and write it as an ordinary model folder.

    Raises:
        SepoError: scores that never finished, a model that gives ids another meaning, an unusable output folder.
    """
    config = config.resolved()
    accelerator = join_processes(config.mixed_precision, config.report_to)
    refuse_impossible(config, accelerator.device)
    refuse_closed_hub(config.push_to_hub)
    scores = open_scores(config.scores)
    model_folder = resolve_model(config.model, reporter)
    tokenizer = load_tokenizer(model_folder, trust_remote_code=config.trust_remote_code, reporter=reporter)
    refuse_other_vocabulary(tokenizer, scores, config.model)
    scores = scores._replace(ids_below=vocabulary_size(tokenizer))
    refuse_useless_optimizer(config, accelerator.device)
    refuse_useless_lora(config, model_folder, keeps_base=False)
    # What the first one has hashed, the others find in the cache.
    with accelerator.main_process_first():
        start = frozen(config.model, model_folder, quantize=config.quantize)
        reference = _reference(config, start, scores, reporter)
    inputs = {
        "model": Input(config.model, start.hash),
        **tokenizer_inputs(config.model, tokenizer),
        "scores": Input(str(scores.folder), scores.fingerprint),
    }
    if config.needs & {"reference", "kl"}:
        inputs["reference"] = Input(reference.name, reference.hash)
    with open_stage(STAGE, config, inputs, processes=accelerator, reporter=reporter) as work:
        # Now: what was done after the last checkpoint was spent too, and is about to be dropped from the log.
        work.earlier_seconds = seconds_spent(work.folder)
        job = Job(config, accelerator, work, scores, start, reference, reporter)
        return _already(job) if work.finished else _make(job, tokenizer, model_folder)


def _already(job: Job) -> Summary:
    folder, first = job.work.folder, job.accelerator.is_main_process
    if first:
        forget_checkpoints(folder)
    return job.work.nothing_to_do("policy", push_run(folder, job.config, job.reporter, first=first))


def _make(job: Job, tokenizer: Any, model_folder: Path) -> Summary:
    """Select, train, and write the model."""
    config, accelerator, work, scores, start, reference, reporter = job
    trust = config.trust_remote_code
    folders = {start.folder, reference.folder}
    max_length = usable_length(folders, config.max_length, trust_remote_code=trust, reporter=reporter)
    rows, too_long = scores.rows_within(max_length, reporter)
    warnings = _warnings(tokenizer, scores, rows)
    for warning in warnings:
        reporter.warn(warning)
    model = job.load(start)
    stop_at(model, Encoder(tokenizer).end_of_turn)
    refuse_unknown_ids(model, (row.pair for row in rows), config.model)
    weighed = _weigh(job, model, rows, {f"longer than {max_length:,} tokens": too_long})
    trainee = make_trainee(model, config, base_name(config.model, model_folder), reporter, merged=config.merge)
    last = _train(job, trainee, weighed.examples, partial(_keep_snapshot, job, trainee, tokenizer))
    refuse_not_finite(trainee.model, rows[0].pair, Around(accelerator, work.folder, config.tokens_read, reporter))
    warnings += training_warnings(work.folder)
    weights = gather_weights(trainee.model)
    if accelerator.is_main_process:
        finished = trainee.finished(merged=config.merge, aside=work.folder / UNMERGED)
        files = save_model_into(finished, tokenizer, work.folder, weights, promise=work.promise)
        write_policy_card(work.folder, Made(config, work.identity["inputs"], weighed.counts), last)
        # Promised is what the model needs: without its card and its log it is still whole, and not to be trained again.
        work.finish(files=files, device=str(accelerator.device), counts=weighed.counts, results=last, warnings=warnings)
        # Not before: a kill in the middle of it would leave neither a checkpoint nor a finished run.
        forget_checkpoints(work.folder)
    pushed = push_run(work.folder, config, reporter, first=accelerator.is_main_process)
    return Summary(f"policy in {work.folder}", [*_rows(weighed, last), *pushed])


def _reference(config: PolicyConfig, start: Frozen, scores: Scores, reporter: Reporter) -> Frozen:
    if not config.reference_model:
        return start
    reference = frozen(config.reference_model, resolve_model(config.reference_model, reporter))
    refuse_other_reference(reference, scores, trust_remote_code=config.trust_remote_code)
    return reference


def _warnings(tokenizer: Any, scores: Scores, rows: list[ScoredPair]) -> list[str]:
    scale = Scale()
    for row in rows:
        scale.add(row.scores)
    found = alarms(scale, scores.manifest)
    if tokenizer_hash(tokenizer) != scores.manifest["tokenizer"].get("hash"):
        found.append(
            "the policy's special tokens or chat template are not those that the scored text was rendered with; "
            "it is trained on the text as it was scored"
        )
    return found


def _weigh(job: Job, model: Any, rows: list[ScoredPair], dropped: dict[str, int]) -> Weighed:
    """Select, and add up the reference's log-probs of what was selected."""
    config = job.config
    around = Around(job.accelerator, job.work.folder, config.tokens_read, job.reporter)
    same = job.reference.hash == job.start.hash

    def logps(which: Frozen, file: str) -> list[PairLogps]:
        load = partial(job.load, which) if which.hash != job.start.hash else lambda: model
        return logps_of_rows(which, load, rows, job.scores, around, file=file)

    references = logps(job.reference, LOGPS) if "reference" in config.needs else None
    start_logps: list[PairLogps] = []
    if "start_logps" in config.needs:
        start_logps = references if references is not None and same else logps(job.start, LOGPS if same else START)
    evidence = Evidence(rows, start_logps, lookup(job.scores.manifest, ("results", "noise", "p99")), config.seed)
    selection = RULES[config.rule].load()(evidence, **config.rule_options)
    weighed = make_examples(rows, selection, references, dropped, alone=_alone(config))
    job.reporter.say(str(weighed))
    return weighed


def _train(job: Job, trainee: Trainee, examples: list[Example], after_step: Callable[[int], None]) -> dict[str, float]:
    """Train in place; returns the averages of the last logged step."""
    config, entry = job.config, OBJECTIVES[job.config.objective]
    reference = None
    if "kl" in config.needs:
        of_reference = entry.divergence == "reference||policy"
        divergence = kl_of_reference if of_reference else kl_from_reference
        reference = Reference(_reference_reader(job, trainee), divergence)
    return fit(
        trainee.model,
        examples,
        partial(entry.load(), **config.objective_options),
        config,
        phase=config.objective,
        folder=job.work.folder,
        reporter=job.reporter,
        fingerprint=job.work.fingerprint,
        size=_tokens if _alone(config) else _one_pair,
        reference=reference,
        after_step=after_step,
    )


def _alone(config: PolicyConfig) -> bool:
    """Whether the chosen responses are trained on without the rejected ones."""
    return OBJECTIVES[config.objective].chosen_only


def _reference_reader(job: Job, trainee: Trainee) -> Reader:
    """What reads the reference while the policy trains: the policy without its adapter, where that is the reference."""
    if trainee.adapter is not None and job.reference.hash == job.start.hash:
        return find_paths(trainee.model, job.reporter)._replace(as_read=trainee.adapter.disable_adapter)
    other = job.load(job.reference).requires_grad_(False).eval()
    refuse_other_head(trainee.model, other, job.reference.name)
    return find_paths(other, job.reporter)


def _keep_snapshot(job: Job, trainee: Trainee, tokenizer: Any, steps: int) -> None:
    """Write the policy as it is after so many steps, an adapter unmerged."""
    if not job.config.snapshot_steps or steps % job.config.snapshot_steps:
        return
    weights = gather_weights(trainee.model)
    if job.accelerator.is_main_process:
        save_model(trainee.unmerged, tokenizer, job.work.folder / SNAPSHOTS / f"step-{steps:08d}", weights)
    job.accelerator.wait_for_everyone()


def _tokens(example: Example) -> float:
    return float(example.weights.chosen.sum())


def _one_pair(example: Example) -> float:
    return 1.0


def _rows(weighed: Weighed, last: dict[str, float]) -> list[tuple[str, str]]:
    rows = [
        ("pairs", f"{weighed.counts['kept']:,}"),
        ("selected tokens", weighed.shares),
        *(("of them", f"{count:,} {what}") for what, count in weighed.counts["selection"].items()),
        ("loss of the last step", f"{last['loss']:.4f}"),
    ]
    if "accuracy" in last:
        rows += [
            ("its accuracy", f"{last['accuracy']:.3f}"),
            ("its reward margin", f"{last['reward_margin']:+.3f}"),
        ]
    return rows
