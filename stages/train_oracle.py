"""`sepo train-oracle`: turn response-level preferences into a model that can score tokens.

    model --SFT on chosen responses--> O/reference --DPO on a share of the pairs--> O/oracle

(arXiv 2408.13518 section 3.2.) What is held out is never trained on, and says at the end whether the oracle learnt.
"""

import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from stages.configs import OracleConfig, column_names
from stages.data.read import dataset_hash, refuse_changed
from stages.data.template_arguments import given_arguments
from stages.devices.memory import move_model
from stages.devices.processes import gather_weights, join_processes
from stages.evaluation.oracle import OracleMetrics, oracle_metrics, with_reference
from stages.logprobs.batches import whole
from stages.logprobs.generate import stop_at
from stages.method.objectives.dpo import dpo
from stages.method.objectives.sft import sft
from stages.models.adapters import is_adapter
from stages.models.folders import (
    embedding_rows,
    holds_model,
    load_model,
    load_tokenizer,
    model_hash,
    resolve_model,
    save_model,
    usable_length,
)
from stages.models.quantization import load_trainable
from stages.models.references import Around, frozen, kept_logps, logps_of, refuse_unknown_ids
from stages.report.card import FILE as CARD
from stages.report.card import Made, write_oracle_card, write_reference_card
from stages.report.curves import FILE as CURVES
from stages.reporting import Reporter, Summary
from stages.store.hub import push_run, refuse_closed_hub
from stages.store.logps import FILE as LOGPS
from stages.store.manifest import Input
from stages.store.run import Run, open_stage
from stages.tokens.dataset import Counts, Limit, load_conversations, load_pairs, refuse_dropped, refuse_recorded
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_inputs
from stages.training.checkpoints import forget_checkpoints
from stages.training.loop import fit
from stages.training.lora import UNMERGED, Trainee, make_trainee, refuse_useless_lora, trained_again
from stages.training.metrics import seconds_spent, training_warnings
from stages.training.optimizers import refuse_useless_optimizer
from stages.training.training_mode import refuse_impossible
from stages.types import PairLogps, TokenPair

REFERENCE: Final = "reference"
ORACLE: Final = "oracle"
STAGE: Final = "train-oracle"


class Split(NamedTuple):
    """The pairs an oracle learns from, and those that judge it."""

    train: list[TokenPair]
    held_out: list[TokenPair]


class ReferenceLogps(NamedTuple):
    """The reference's log-probs of the pairs of a `Split`."""

    train: list[PairLogps]
    held_out: list[PairLogps]


class Job(NamedTuple):
    """What every part of the stage needs."""

    config: OracleConfig
    accelerator: Accelerator
    work: Run
    tokenizer: Any
    encoder: Encoder
    limit: Limit
    reporter: Reporter

    def load(self, folder: Path) -> Any:
        """A model on this process's device, ready to be saved as one."""
        model = load_model(folder, trust_remote_code=self.config.trust_remote_code, ordinary=True)
        return move_model(model, self.accelerator.device)

    def load_trainable(self, folder: Path) -> Any:
        """The same, its weights held as they are while an adapter is trained."""
        return load_trainable(folder, self.config, self.accelerator.device)

    def adapt(self, model: Any, base: Path, *, merged: bool) -> Trainee:
        return make_trainee(model, self.config, str(base.resolve()), self.reporter, merged=merged)

    def save(self, trainee: Trainee, name: str, *, merged: bool) -> None:
        weights = gather_weights(trainee.model)
        if self.accelerator.is_main_process:
            model = trainee.finished(merged=merged, aside=self.work.folder / f"{name}-{UNMERGED}")
            save_model(model, self.tokenizer, self.work.folder / name, weights)
            self.work.vouch(name)
            forget_checkpoints(self.work.folder)
        self.accelerator.wait_for_everyone()

    def done(self, phase: str, name: str) -> bool:
        """Whether an earlier attempt has written this model already, and nobody took it apart since."""
        # Agreed on before one of the processes writes it; what it holds is looked at once.
        there = holds_model(self.work.folder / name)
        sound = there and (not self.accelerator.is_main_process or self.work.keeps(name))
        if not all(gather_object([sound])):
            return False
        self.reporter.say(f"{phase}: {self.work.folder / name} is there already")
        return True

    @property
    def around(self) -> Around:
        """Where log-probs are kept, and how they are computed."""
        return Around(self.accelerator, self.work.folder, self.config.tokens_read, self.reporter)


def run(config: OracleConfig, reporter: Reporter) -> Summary:
    """Train the reference and the oracle; go on where an interrupted run stopped.

    Raises:
        SepoError: unusable model, data or output folder, all found before training starts where that is possible.
    """
    accelerator = join_processes(config.mixed_precision, config.report_to)
    refuse_impossible(config, accelerator.device)
    refuse_closed_hub(config.push_to_hub)
    model_folder = resolve_model(config.model, reporter)
    tokenizer = load_tokenizer(model_folder, trust_remote_code=config.trust_remote_code, reporter=reporter)
    refuse_useless_optimizer(config, accelerator.device)
    refuse_useless_lora(config, model_folder, keeps_base=True)
    encoder = Encoder(tokenizer, given_arguments(config.chat_template_kwargs))
    # What the first one has hashed, the others find in the cache.
    with accelerator.main_process_first():
        inputs = _inputs(config, model_folder, tokenizer)
    limit = Limit(
        usable_length([model_folder], config.max_length, trust_remote_code=config.trust_remote_code, reporter=reporter),
        config.overlong,
    )
    with open_stage(STAGE, config, inputs, processes=accelerator, reporter=reporter) as work:
        # Now: what was done after the last checkpoint was spent too, and is about to be dropped from the log.
        work.earlier_seconds = seconds_spent(work.folder)
        job = Job(config, accelerator, work, tokenizer, encoder, limit, reporter)
        return _already(job) if work.finished else _make(job, model_folder)


def _already(job: Job) -> Summary:
    folder = job.work.folder
    if job.config.strict:
        for name in ("dataset", "sft_dataset"):
            refuse_recorded(job.work.manifest["counts"].get(name), str(getattr(job.config, name)))
    return job.work.nothing_to_do(
        "oracle", push_run(folder, job.config, job.reporter, first=job.accelerator.is_main_process)
    )


def _make(job: Job, model_folder: Path) -> Summary:
    """Split the pairs, train both models, judge the oracle."""
    config, accelerator, _, _, encoder, limit, reporter = job
    with accelerator.main_process_first():
        pairs, counts = load_pairs(
            config.dataset, encoder, limit, columns=column_names(config.columns), reporter=reporter
        )
    refuse_changed(config.dataset, job.work.identity["inputs"]["dataset"])
    if config.strict:
        refuse_dropped(counts, config.dataset)
    split = split_pairs(pairs, config.eval_fraction, config.data_fraction, config.seed)
    left_out = len(pairs) - len(split.held_out) - len(split.train)
    reporter.say(
        f"{len(pairs):,} pairs = {len(split.held_out):,} held out + {len(split.train):,} to train on"
        + (f" + {left_out:,} left out by data_fraction {config.data_fraction}" if left_out else "")
    )
    sft_counts = _make_reference(job, model_folder, split)
    verdict = _make_oracle(job, split)
    all_counts = {
        "dataset": counts.as_json(),
        "sft_dataset": sft_counts.as_json() if sft_counts else None,
        "train": len(split.train),
        "held_out": len(split.held_out),
    }
    return _conclude(job, all_counts, verdict)


def split_pairs(pairs: Sequence[TokenPair], eval_fraction: float, data_fraction: float, seed: int) -> Split:
    """Hold out a share of the pairs, then take a share of the rest: both by chance, seeded, without replacement.

    Pairs of one prompt stay together: a held-out pair is of a prompt that was never trained on. The held-out pairs do
    not depend on `data_fraction`, so oracles trained on different shares meet the same judges.
    """
    by_prompt: dict[bytes, list[int]] = {}
    for place, pair in enumerate(pairs):
        by_prompt.setdefault(pair.prompt_ids.tobytes(), []).append(place)
    groups = list(by_prompt.values())
    random.Random(f"split/{seed}").shuffle(groups)
    held: list[int] = []
    wanted = math.ceil(eval_fraction * len(pairs))
    # A prompt with many pairs is passed over where smaller ones will do.
    fitting = [group for group in groups if len(group) <= wanted] or [min(groups, key=len)]
    for group in fitting:
        if len(held) >= wanted or len(groups) == 1:
            break
        held += group
        groups.remove(group)
    rest = [place for group in groups for place in group]
    taken = rest[: max(1, round(data_fraction * len(rest)))]
    return Split([pairs[place] for place in sorted(taken)], [pairs[place] for place in sorted(held)])


def _inputs(config: OracleConfig, model_folder: Path, tokenizer: Any) -> dict[str, Input]:
    inputs = {
        "model": Input(config.model, model_hash(model_folder)),
        **tokenizer_inputs(config.model, tokenizer),
        "dataset": Input(config.dataset, dataset_hash(config.dataset)),
    }
    if config.sft_dataset:
        inputs["sft_dataset"] = Input(config.sft_dataset, dataset_hash(config.sft_dataset))
    return inputs


def _make_reference(job: Job, model_folder: Path, split: Split) -> Counts | None:
    """Write O/reference: the model after SFT, or as it is. Returns the counts of the SFT data set, if there is one."""
    config = job.config
    conversations, counts = _sft_data(job, split)
    if job.done("sft", REFERENCE):
        return counts
    # An oracle is made from its reference: a new reference needs a new oracle.
    if job.accelerator.is_main_process:
        shutil.rmtree(job.work.folder / ORACLE, ignore_errors=True)
    model = job.load_trainable(model_folder) if config.sft_epochs else job.load(model_folder)
    stop_at(model, job.encoder.end_of_turn)
    refuse_unknown_ids(model, [*split.train, *split.held_out, *conversations], config.model)
    trainee = Trainee(model, None)
    if config.sft_epochs:
        trainee = job.adapt(model, model_folder, merged=True)
        fit(
            trainee.model,
            [whole(pair._replace(rejected_ids=np.empty(0, np.int32))) for pair in conversations],
            sft,
            replace(
                config,
                learning_rate=config.sft_learning_rate,
                batch_size=config.sft_batch_size,
                num_train_epochs=config.sft_epochs,
            ),
            phase="sft",
            folder=job.work.folder,
            reporter=job.reporter,
            fingerprint=job.work.fingerprint,
            size=lambda example: float(len(example.pair.chosen_ids)),
        )
    # An adapter on an adapter has no base to be loaded on: the oracle's reference is an ordinary folder.
    job.save(trainee, REFERENCE, merged=True)
    return counts


def _sft_data(job: Job, split: Split) -> tuple[Sequence[TokenPair], Counts | None]:
    """What the reference is trained on: a data set of its own, or the chosen responses of the training pairs."""
    source = job.config.sft_dataset
    if source is None or not job.config.sft_epochs:
        return split.train, None
    with job.accelerator.main_process_first():
        conversations, counts = load_conversations(source, job.encoder, job.limit, reporter=job.reporter)
    refuse_changed(source, job.work.identity["inputs"]["sft_dataset"])
    if job.config.strict:
        refuse_dropped(counts, source)
    return conversations, counts


def _make_oracle(job: Job, split: Split) -> OracleMetrics | None:
    """Write O/oracle, and judge it on the held-out pairs (None if none were held out)."""
    config = job.config
    folder = job.work.folder
    model = job.load_trainable(folder / REFERENCE)
    reference = _reference_logps(job, model, split)
    if job.done("dpo", ORACLE):
        adapter = is_adapter(folder / ORACLE)
        model = trained_again(model, folder / ORACLE) if adapter else job.load(folder / ORACLE)
    else:
        trainee = job.adapt(model, folder / REFERENCE, merged=config.merge)
        fit(
            trainee.model,
            with_reference(split.train, reference.train),
            partial(dpo, beta=config.beta, sft_weight=config.sft_weight),
            config,
            phase="dpo",
            folder=folder,
            reporter=job.reporter,
            fingerprint=job.work.fingerprint,
        )
        job.save(trainee, ORACLE, merged=config.merge)
        if job.accelerator.is_fsdp2:
            # Its parts are spread over the processes; each of them reads a whole one.
            model = job.load(folder / ORACLE)
    if not split.held_out:
        return None
    oracle = logps_of(model, split.held_out, job.around, "oracle, held-out pairs")
    return oracle_metrics(split.held_out, oracle, reference.held_out, config.beta, embedding_rows(model))


def _reference_logps(job: Job, model: Any, split: Split) -> ReferenceLogps:
    """Log-probs of all pairs under the reference: computed once, and kept for `sepo score`.

    Of weights held in few bits they are others than it needs, which reads the reference in full.
    """
    reference = frozen(REFERENCE, job.work.folder / REFERENCE, job.config.quantize)
    pairs = [*split.held_out, *split.train]
    found = kept_logps(reference, lambda: model, pairs, job.around, file=LOGPS, title=REFERENCE)
    return ReferenceLogps(train=found[len(split.held_out) :], held_out=found[: len(split.held_out)])


def _conclude(job: Job, counts: dict[str, Any], verdict: OracleMetrics | None) -> Summary:
    """Warn, write the manifest, and make the summary."""
    folder = job.work.folder
    rows = [("trained on", f"{counts['train']:,} pairs"), ("held out", f"{counts['held_out']:,} pairs")]
    results: dict[str, Any] = {}
    if verdict is None:
        reason = "all have one prompt" if job.config.eval_fraction else "eval_fraction 0"
        warnings = [f"no pair was held out ({reason}): nothing tells whether the oracle learnt"]
    else:
        token = job.tokenizer.decode([verdict.drift.worst_id]) if verdict.drift.worst_id >= 0 else ""
        warnings, results = verdict.warnings(token), verdict.as_json(token)
        rows += verdict.rows(token)
    for warning in warnings:
        job.reporter.warn(warning)
    warnings += training_warnings(folder)
    if job.accelerator.is_main_process:
        _write_cards(job, counts, verdict)
        # A kill may have left some of it behind.
        forget_checkpoints(folder)
        job.work.finish(
            files=[LOGPS, *_model_files(folder)],
            device=str(job.accelerator.device),
            counts=counts,
            results=results,
            warnings=warnings,
        )
    rows += [("reference", str(folder / REFERENCE)), ("oracle", str(folder / ORACLE))]
    rows += push_run(folder, job.config, job.reporter, first=job.accelerator.is_main_process)
    return Summary(f"oracle in {folder}", rows)


def _write_cards(job: Job, counts: dict[str, Any], verdict: OracleMetrics | None) -> None:
    folder, made = job.work.folder, Made(job.config, job.work.identity["inputs"], counts)
    held_out = {"accuracy": verdict.accuracy.value, "reward margin": verdict.margin.value} if verdict else {}
    write_reference_card(folder / REFERENCE, folder, made)
    write_oracle_card(folder / ORACLE, folder, made, held_out)


def _model_files(folder: Path) -> list[str]:
    """What the models need: without card, picture and log they are still whole, and not to be trained again."""
    paths = [path for name in (REFERENCE, ORACLE) for path in sorted((folder / name).iterdir())]
    return [str(path.relative_to(folder)) for path in paths if path.name not in (CARD, CURVES)]
