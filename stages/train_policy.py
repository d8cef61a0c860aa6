"""`sepo train-policy`: train a policy on the key tokens of scored pairs.

    u(y) = gamma / |selected| * sum over selected of log pi_theta(y_i | q, y_<i)
    L    = -log sigmoid(u(y_w) - u(y_l) - margin)

(arXiv 2408.13518 Eq. 11.) Reads scores and a model, and for objectives that have one a reference: no oracle, no text.
Other objectives are in `stages.method.objectives`, other ways to choose tokens in `stages.method.rules`.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from accelerate import Accelerator

from stages.configs import PolicyConfig
from stages.devices.memory import move_model
from stages.devices.processes import join_processes
from stages.evaluation.contamination import SNAPSHOTS
from stages.logprobs.head import kl_from_reference, kl_of_reference
from stages.logprobs.logps import Forward, Reference
from stages.method.examples import ExampleCounts, chosen_only, end_warnings, join
from stages.method.rewards import held
from stages.method.selection import RuleInputs
from stages.models.adapters import base_name
from stages.models.ends import stop_at
from stages.models.folders import (
    load_model,
    load_tokenizer,
    load_waiting,
    resolve_model,
    save_model,
    save_model_into,
    usable_length,
)
from stages.models.quantization import load_trainable, quantized
from stages.models.references import (
    Frozen,
    RunContext,
    find_paths_of,
    frozen,
    logps_of_rows,
    refuse_not_finite,
    refuse_other_head,
    refuse_other_vocabulary,
    refuse_unknown_ids,
)
from stages.registry import OBJECTIVES, RULES
from stages.report.card import Made, write_policy_card
from stages.reporting import Reporter, Summary, Task, counted
from stages.store.example_table import ExampleTable, write_examples
from stages.store.files import writing
from stages.store.hub import push_run, refuse_closed_hub
from stages.store.logps import FILE as LOGPS
from stages.store.logps import START
from stages.store.manifest import Input
from stages.store.run import Run, open_stage
from stages.store.score_table import ScoreTable, write_score_table
from stages.store.scores import Scores, open_scores
from stages.store.shape import lookup
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_hash, tokenizer_inputs, vocabulary_size
from stages.training.checkpoints import forget_checkpoints
from stages.training.loop import fit
from stages.training.lora import UNMERGED, Divided, Trainee, make_trainee, refuse_useless_lora
from stages.training.metrics import seconds_spent, training_warnings
from stages.training.optimizers import refuse_useless_optimizer
from stages.training.schedule import split_pairs
from stages.training.step import Objective
from stages.training.training_mode import refuse_impossible
from stages.types import CausalLM, Example, Joined, Lazy, PairLogps, Tokenizer

STAGE: Final = "train-policy"


class PolicyJob(NamedTuple):
    """What is known before the output folder is opened."""

    config: PolicyConfig
    reporter: Reporter
    accelerator: Accelerator
    scores: Scores
    tokenizer: Tokenizer
    start: Frozen
    """where the policy starts"""
    reference: Frozen
    """where distances are measured from; the same unless another one was named"""
    inputs: dict[str, Input]

    def load(self, model: Frozen, on: torch.device | None = None) -> CausalLM:
        """A model on this process's device, where the policy starts with its weights held as they are in training.

        Under FSDP2 it waits to be divided, unless a device is given.
        """
        device, divided = on or self.accelerator.device, on is None and self.accelerator.is_fsdp2
        if model.hash == self.start.hash:
            start = load_trainable(model.folder, self.config, device, divided=divided)
            stop_at(start, Encoder(self.tokenizer).end_of_turn)
            return start
        trust = self.config.trust_remote_code
        if divided and not quantized(model.folder):
            return load_waiting(model.folder, trust_remote_code=trust)
        return move_model(load_model(model.folder, trust_remote_code=trust), device)

    def context(self, work: Run) -> RunContext:
        return RunContext(self.accelerator, work.folder, self.config.tokens_read, self.reporter)


class PolicyData(NamedTuple):
    """The scored pairs, and where the first process puts the examples that it makes of them."""

    rows: ScoreTable
    dropped: dict[str, int]
    """reason -> pairs that were left out"""
    warnings: list[str]
    examples: Path


def run(config: PolicyConfig, reporter: Reporter) -> Summary:
    """Train the policy and write it as an ordinary model folder."""
    job = _check(config.resolved(), reporter)
    first = job.accelerator.is_main_process
    with open_stage(STAGE, job.config, job.inputs, processes=job.accelerator, reporter=reporter) as work:
        if work.finished:
            if first:
                forget_checkpoints(work.folder)
            return work.nothing_to_do("policy", push_run(work.folder, config, reporter, first=first))
        # Now: what was done after the last checkpoint was spent too, and is about to be dropped from the log.
        work.earlier_seconds = seconds_spent(work.folder)
        with _prepared(job, work) as prepared:
            model, data = _load(job, prepared)
            trainee, counts, last = _compute(job, work, model, data)
        return _write(job, work, trainee, counts, last, [*data.warnings, *training_warnings(work.folder)])


def _check(config: PolicyConfig, reporter: Reporter) -> PolicyJob:
    accelerator = join_processes(config.mixed_precision, config.report_to)
    refuse_impossible(config, accelerator.device)
    refuse_useless_optimizer(config, accelerator.device, divided=accelerator.is_fsdp2)
    refuse_closed_hub(config.push_to_hub)
    scores = open_scores(config.scores)
    folder, trust = resolve_model(config.model_name, reporter), config.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=trust, reporter=reporter)
    refuse_other_vocabulary(tokenizer, scores, config.model_name)
    refuse_useless_lora(config, folder, keeps_base=False)
    # What the first one has hashed, the others find in the cache.
    with accelerator.main_process_first():
        start = reference = frozen(config.model_name, folder, quantize=config.quantize)
        if config.reference_model:
            reference = frozen(config.reference_model, resolve_model(config.reference_model, reporter))
            theirs = load_tokenizer(reference.folder, trust_remote_code=trust)
            refuse_other_vocabulary(theirs, scores, reference.name)
    inputs = {
        "model": Input(config.model_name, start.hash),
        **tokenizer_inputs(config.model_name, tokenizer),
        "scores": Input(str(scores.folder), scores.fingerprint),
    }
    if config.needs & {"reference", "kl"}:
        inputs["reference"] = Input(reference.name, reference.hash)
    scores = scores._replace(ids_below=vocabulary_size(tokenizer))
    return PolicyJob(config, reporter, accelerator, scores, tokenizer, start, reference, inputs)


@contextmanager
def _prepared(job: PolicyJob, work: Run) -> Iterator[Path]:
    """A folder for what the first process makes of the scores, and all map into memory, while training lasts."""
    # As temporary files are called: what a kill leaves is removed when the run's folder is opened again.
    folder = work.folder / ".prepared.tmp"
    try:
        if job.accelerator.is_main_process:
            with writing(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
        yield folder
        job.accelerator.wait_for_everyone()
    finally:
        if job.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def _load(job: PolicyJob, prepared: Path) -> tuple[Any, PolicyData]:
    """The model, and the scored pairs that are short enough."""
    config, folders = job.config, {job.start.folder, job.reference.folder}
    trust = config.trust_remote_code
    max_length = usable_length(folders, config.max_length, trust_remote_code=trust, reporter=job.reporter)
    path = prepared / "scores.arrow"
    if job.accelerator.is_main_process:
        write_score_table(job.scores, path, max_length, job.reporter)
    job.accelerator.wait_for_everyone()
    rows = ScoreTable(path)
    model = job.load(job.start)
    refuse_unknown_ids(model, rows.highest_id, config.model_name)
    dropped = {f"longer than {max_length:,} tokens": rows.too_long}
    return model, PolicyData(rows, dropped, _warnings(job, rows), prepared / "examples.arrow")


def _warnings(job: PolicyJob, rows: ScoreTable) -> list[str]:
    found = [*rows.alarms]
    if tokenizer_hash(job.tokenizer) != job.scores.manifest["tokenizer"].get("hash"):
        found.append(
            "the policy's special tokens or chat template are not those that the scored text was rendered with; "
            "it is trained on the text as it was scored"
        )
    for warning in found:
        job.reporter.warn(warning)
    return found


def _compute(
    job: PolicyJob, work: Run, model: CausalLM, data: PolicyData
) -> tuple[Trainee, dict[str, Any], dict[str, float]]:
    """Select tokens and train on them; returns also the counts, and the averages of the last logged steps."""
    config, reporter, entry = job.config, job.reporter, OBJECTIVES[job.config.objective]
    examples, counts = _select(job, work, model, data)
    held_out: Sequence[Example] = ()
    if config.eval_fraction:
        pairs = examples.map(lambda example: example.pair)
        examples, held_out = map(examples.pick, split_pairs(pairs, config.eval_fraction, 1.0, config.seed))
        counts["held_out"] = len(held_out)
        reporter.say(f"{counted(len(held_out), 'pair')} held out, {len(examples):,} to train on")
    trainee = make_trainee(model, config, base_name(config.model_name, job.start.folder), reporter, merged=config.merge)
    reference = None
    if "kl" in config.needs:
        divergence = kl_of_reference if entry.divergence == "reference||policy" else kl_from_reference
        reference = Reference(_reference_forward(job, trainee), divergence)
    last = fit(
        trainee.model,
        examples,
        _objective(config),
        config,
        phase=config.objective,
        folder=work.folder,
        reporter=reporter,
        fingerprint=work.fingerprint,
        size=lambda example: float(example.weights.chosen.sum()) if entry.chosen_only else 1.0,
        reference=reference,
        held_out=held_out,
        after_step=partial(_keep_snapshot, job, work, trainee),
    )
    refuse_not_finite(trainee.model, data.rows[0].pair, job.context(work))
    return trainee, counts, last


def _select(job: PolicyJob, work: Run, model: CausalLM, data: PolicyData) -> tuple[Lazy[Example], dict[str, Any]]:
    """Examples of the selected tokens, with the reference's log-probs of them added up, and the counts."""
    config, rows = job.config, data.rows
    same = job.reference.hash == job.start.hash

    def logps(which: Frozen, file: str) -> Sequence[PairLogps]:
        load = partial(job.load, which) if which.hash != job.start.hash else lambda: model
        return logps_of_rows(which, load, rows, job.scores, job.context(work), file=file)

    references = logps(job.reference, LOGPS) if "reference" in config.needs else None
    start_logps: Sequence[PairLogps] = ()
    if "start_logps" in config.needs:
        start_logps = references if references is not None and same else logps(job.start, LOGPS if same else START)
    inputs = RuleInputs(rows, start_logps, lookup(job.scores.manifest, "results.noise.p99"), config.seed)
    alone = OBJECTIVES[config.objective].chosen_only
    if job.accelerator.is_main_process:
        _write_examples(job, data, inputs, references, alone=alone)
    job.accelerator.wait_for_everyone()
    table = ExampleTable(data.examples, rows)
    examples, counts = table.map(chosen_only) if alone else table, table.summary
    left_out = "".join(f", {count:,} dropped: {reason}" for reason, count in counts["dropped"].items())
    notes = "".join(f"; {count:,} {what}" for what, count in counts["selection"].items())
    job.reporter.say(f"{counted(counts['kept'], 'pair')}{left_out}; selected {_shares(counts)}{notes}")
    for warning in [] if config.is_held else end_warnings(counts):
        data.warnings.append(warning)
        job.reporter.warn(warning)
    return examples, counts


def _write_examples(
    job: PolicyJob, data: PolicyData, inputs: RuleInputs, references: Sequence[PairLogps] | None, *, alone: bool
) -> None:
    config, counts = job.config, ExampleCounts(alone)
    selection = RULES[config.rule].load()(inputs, **config.rule_options)
    per_token = "per_token" in config.needs
    summary: dict[str, Any] = {}

    def joined(task: Task) -> Iterator[Joined]:
        for each in join(data.rows, selection, references, counts, per_token=per_token):
            task.advance()
            yield each
        summary.update(counts.as_json(data.dropped, selection.notes))

    # Around the writing, so that it has ended when an error is said.
    with job.reporter.task(f"select {config.rule}", len(data.rows), "pairs") as task:
        write_examples(data.examples, joined(task), summary)


def _objective(config: PolicyConfig) -> Objective:
    objective = partial(OBJECTIVES[config.objective].load(), **config.objective_options)
    if not config.is_held:
        return objective
    return partial(held, objective, kl_selected=config.kl_selected, kl_unselected=config.kl_unselected)


def _reference_forward(job: PolicyJob, trainee: Trainee) -> Forward:
    """What reads the reference while the policy trains: the policy without its adapter, where that is the reference."""
    if trainee.adapter is not None and job.reference.hash == job.start.hash:
        forward = find_paths_of(trainee.model, job.accelerator, job.reporter)
        return forward._replace(model=trainee.model, context=trainee.adapter.disable_adapter)
    other = job.load(job.reference).requires_grad_(False).eval()
    refuse_other_head(trainee.model, other, job.reference.name)
    return find_paths_of(other, job.accelerator, job.reporter)


def _keep_snapshot(job: PolicyJob, work: Run, trainee: Trainee, steps: int) -> None:
    """Write the policy as it is after so many steps, an adapter unmerged."""
    if not job.config.snapshot_steps or steps % job.config.snapshot_steps:
        return
    weights = trainee.gathered()
    if job.accelerator.is_main_process:
        save_model(trainee.unmerged, job.tokenizer, work.folder / SNAPSHOTS / f"step-{steps:08d}", weights)
    job.accelerator.wait_for_everyone()


def _write(
    job: PolicyJob, work: Run, trainee: Trainee, counts: dict[str, Any], last: dict[str, float], warnings: list[str]
) -> Summary:
    config, accelerator, folder = job.config, job.accelerator, work.folder
    weights = trainee.gathered()
    if accelerator.is_main_process:
        divided = None if weights is None else Divided(weights, lambda: job.load(job.start, on=torch.device("cpu")))
        finished = trainee.finished(merged=config.merge, aside=folder / UNMERGED, divided=divided)
        # A model that an adapter was merged into is whole.
        mine = weights if finished is trainee.unmerged else None
        files = save_model_into(finished, job.tokenizer, folder, mine, promise=work.promise)
        write_policy_card(folder, Made(config, work.identity["inputs"], counts), last)
        # Promised is what the model needs: without its card and its log it is still whole, and not to be trained again.
        work.finish(files=files, device=str(accelerator.device), counts=counts, results=last, warnings=warnings)
        # Not before: a kill in the middle of it would leave neither a checkpoint nor a finished run.
        forget_checkpoints(folder)
    rows = [("pairs", f"{counts['kept']:,}"), ("selected tokens", _shares(counts))]
    rows += [("of them", f"{count:,} {what}") for what, count in counts["selection"].items()]
    rows.append(("loss of the last step", f"{last['loss']:.4f}"))
    if "accuracy" in last:
        rows += [("its accuracy", f"{last['accuracy']:.3f}"), ("its reward margin", f"{last['reward_margin']:+.3f}")]
    rows += push_run(folder, config, job.reporter, first=accelerator.is_main_process)
    return Summary(f"policy in {folder}", rows)


def _shares(counts: dict[str, Any]) -> str:
    """``80 of 246 chosen tokens (32.5%) and 77 of 231 rejected tokens (33.3%)``."""
    return " and ".join(
        f"{counts['selected'][side]:,} of {total:,} {side} tokens ({counts['selected'][side] / max(1, total):.1%})"
        for side, total in counts["tokens"].items()
    )
