"""`sepo train-oracle`: turn response-level preferences into a model that can score tokens.

    model --SFT on chosen responses--> O/reference --DPO on a share of the pairs--> O/oracle

(arXiv 2408.13518 section 3.2.) What is held out is never trained on, and says at the end whether the oracle learnt.
With several folds there are as many oracles, O/oracle-1 and so on, each trained without the pairs of its own fold.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from stages.configs import OracleConfig, column_names
from stages.data.read import dataset_hash, refuse_changed
from stages.data.template_arguments import given_arguments
from stages.devices.memory import move_model
from stages.devices.processes import join_processes
from stages.errors import SepoError
from stages.evaluation.oracle import OracleMetrics, oracle_metrics
from stages.logprobs.batches import reference_sums, whole
from stages.logprobs.head import kl_of_reference
from stages.logprobs.logps import Reference
from stages.method.examples import chosen_only
from stages.method.folds import fold_of, trains
from stages.method.objectives import dpo, sft
from stages.method.rewards import with_sequence_kl
from stages.models.adapters import is_adapter, put_on
from stages.models.ends import stop_at
from stages.models.folders import (
    holds_model,
    load_model,
    load_tokenizer,
    load_waiting,
    model_hash,
    resolve_model,
    save_model,
    usable_length,
)
from stages.models.quantization import load_trainable, quantized
from stages.models.references import (
    RunContext,
    WantedLogps,
    find_paths_of,
    frozen,
    highest_id,
    kept_logps,
    logps_of,
    refuse_unknown_ids,
)
from stages.models.scorer import oracle_names
from stages.report.card import FILE as CARD
from stages.report.card import Made, write_oracle_card, write_reference_card
from stages.report.curves import FILE as CURVES
from stages.report.scores import oracle_rows, oracle_warnings
from stages.reporting import Reporter, Summary, counted
from stages.store.hub import push_run, refuse_closed_hub
from stages.store.logps import FILE as LOGPS
from stages.store.manifest import Input
from stages.store.run import Run, open_stage
from stages.tokens.dataset import KeptPairs, LengthLimit, load_pairs, refuse_dropped, refuse_recorded
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_inputs, vocabulary_size
from stages.training.checkpoints import forget_checkpoints
from stages.training.loop import fit
from stages.training.lora import UNMERGED, Divided, Trainee, make_trainee, refuse_useless_lora
from stages.training.metrics import linear_warnings, seconds_spent, training_warnings
from stages.training.optimizers import refuse_useless_optimizer
from stages.training.schedule import split_pairs
from stages.training.step import Objective
from stages.training.training_mode import refuse_impossible
from stages.types import CausalLM, Example, Lazily, Lazy, PairLogps, ReferenceSums, Tokenizer, TokenPair

REFERENCE: Final = "reference"
STAGE: Final = "train-oracle"


class OracleJob(NamedTuple):
    """What is known before the output folder is opened."""

    config: OracleConfig
    reporter: Reporter
    accelerator: Accelerator
    model_folder: Path
    tokenizer: Tokenizer
    encoder: Encoder
    inputs: dict[str, Input]

    @property
    def oracles(self) -> list[str]:
        """The names of their folders, one for each fold."""
        return oracle_names(self.config.folds)

    def phase(self, oracle: str) -> str:
        """``dpo``, or ``dpo-1`` and so on."""
        return oracle.replace("oracle", "dpo")

    def load(self, folder: Path) -> CausalLM:
        """A model on this process's device, or that waits to be divided, ready to be saved as one."""
        if self.accelerator.is_fsdp2 and not quantized(folder):
            return load_waiting(folder, trust_remote_code=self.config.trust_remote_code)
        model = load_model(folder, trust_remote_code=self.config.trust_remote_code, ordinary=True)
        return move_model(model, self.accelerator.device)

    def load_trainable(self, folder: Path, on: torch.device | None = None) -> CausalLM:
        """The same, its weights held as they are in training; with a device, whole on that one."""
        divided = on is None and self.accelerator.is_fsdp2
        model = load_trainable(folder, self.config, on or self.accelerator.device, divided=divided)
        stop_at(model, self.encoder.end_of_turn)
        return model


class OracleData(NamedTuple):
    """What the reference and the oracle learn from, and what judges the oracle."""

    judged_first: Lazy[TokenPair]
    """what is held out, then what is trained on"""
    train: Lazy[TokenPair]
    held_out: Lazy[TokenPair]
    sft: Lazy[TokenPair]
    """conversations, or the chosen responses of `train`"""
    counts: dict[str, Any]


def run(config: OracleConfig, reporter: Reporter) -> Summary:
    """Train the reference and the oracle; go on where an interrupted run stopped."""
    job = _check(config, reporter)
    with open_stage(STAGE, config, job.inputs, processes=job.accelerator, reporter=reporter) as work:
        if work.finished:
            for name in ("dataset", "sft_dataset") if config.strict else ():
                refuse_recorded(work.manifest["counts"].get(name), str(getattr(config, name)))
            first = job.accelerator.is_main_process
            return work.nothing_to_do("oracle", push_run(work.folder, config, reporter, first=first))
        # Now: what was done after the last checkpoint was spent too, and is about to be dropped from the log.
        work.earlier_seconds = seconds_spent(work.folder)
        data = _load(job, work)
        metrics = _compute(job, work, data)
        return _write(job, work, data.counts, metrics)


def _check(config: OracleConfig, reporter: Reporter) -> OracleJob:
    accelerator = join_processes(config.mixed_precision, config.report_to)
    refuse_impossible(config, accelerator.device)
    refuse_useless_optimizer(config, accelerator.device, divided=accelerator.is_fsdp2)
    refuse_closed_hub(config.push_to_hub)
    folder = resolve_model(config.model_name, reporter)
    tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code, reporter=reporter)
    refuse_useless_lora(config, folder, keeps_base=True)
    encoder = Encoder(tokenizer, given_arguments(config.chat_template_kwargs))
    # What the first one has hashed, the others find in the cache.
    with accelerator.main_process_first():
        inputs = {
            "model": Input(config.model_name, model_hash(folder)),
            **tokenizer_inputs(config.model_name, tokenizer),
            "dataset": Input(config.dataset, dataset_hash(config.dataset)),
        }
        if config.sft_dataset:
            inputs["sft_dataset"] = Input(config.sft_dataset, dataset_hash(config.sft_dataset))
    return OracleJob(config, reporter, accelerator, folder, tokenizer, encoder, inputs)


def _load(job: OracleJob, work: Run) -> OracleData:
    """The pairs, split, and the conversations of the SFT data set, where there is one."""
    config, reporter = job.config, job.reporter
    trust = config.trust_remote_code
    max_length = usable_length([job.model_folder], config.max_length, trust_remote_code=trust, reporter=reporter)
    limit = LengthLimit(max_length, config.overlong)
    pairs, read = _read(job, work, "dataset", limit, column_names(config.columns))
    split = split_pairs(pairs, config.eval_fraction, config.data_fraction, config.seed)
    train, held_out = map(pairs.pick, split)
    left_out = len(pairs) - len(held_out) - len(train)
    reporter.say(
        f"{counted(len(pairs), 'pair')} = {len(held_out):,} held out + {len(train):,} to train on"
        + (f" + {left_out:,} left out by data_fraction {config.data_fraction}" if left_out else "")
    )
    sft: Lazy[TokenPair] = train
    counts: dict[str, Any] = {"dataset": read, "sft_dataset": None, "train": len(train), "held_out": len(held_out)}
    if config.sft_dataset and config.sft_epochs:
        sft, counts["sft_dataset"] = _read(job, work, "sft_dataset", limit)
    if config.folds > 1:
        trained_on = {
            name: sum(trains(pair, fold, config.folds) for pair in train) for fold, name in enumerate(job.oracles)
        }
        counts["trained_on"] = trained_on
        if not 0 < min(trained_on.values()) <= max(trained_on.values()) < len(train):
            raise SepoError(
                f"of {config.folds} folds of the {len(train):,} pairs to train on, told by their prompts, one is empty",
                hint="lower --folds, or give pairs of more prompts",
            )
        reporter.say(", ".join(f"{name}: {counted(count, 'pair')}" for name, count in trained_on.items()))
    return OracleData(pairs.pick(np.concatenate(split[::-1])), train, held_out, sft, counts)


def _read(
    job: OracleJob, work: Run, option: str, limit: LengthLimit, columns: dict[str, str] | None = None
) -> tuple[KeptPairs, dict[str, Any]]:
    """The pairs of the data set that an option names, with their counts."""
    config, dataset = job.config, str(getattr(job.config, option))
    sft = option == "sft_dataset"
    with job.accelerator.main_process_first():
        pairs, counts = load_pairs(dataset, job.encoder, limit, columns=columns, sft=sft, reporter=job.reporter)
    refuse_changed(dataset, work.identity["inputs"][option])
    if config.strict:
        refuse_dropped(counts, dataset)
    return pairs, counts.as_json()


def _compute(job: OracleJob, work: Run, data: OracleData) -> OracleMetrics | None:
    """Write O/reference and the oracles, and judge these on the held-out pairs (None if none were held out)."""
    if not _written(job, work, "sft", REFERENCE):
        _make_reference(job, work, data)
    config, folder = job.config, work.folder
    context = RunContext(job.accelerator, folder, config.tokens_read, job.reporter)
    # Computed once, and kept for `sepo score`, which does not take those of weights in few bits.
    model = frozen(REFERENCE, folder / REFERENCE, config.quantize)
    load = partial(job.load_trainable, folder / REFERENCE)
    reference = kept_logps(WantedLogps(model, load, data.judged_first, context, LOGPS, title=REFERENCE))
    sums = reference_sums(reference)
    logps: dict[int, PairLogps] = {}
    for fold in range(config.folds):
        logps |= _oracle_of_fold(job, work, data, sums, fold, context)
    if not data.held_out:
        return None
    oracle = [logps[pair.pair_id] for pair in data.held_out]
    rows, decode = vocabulary_size(job.tokenizer), job.tokenizer.decode
    return oracle_metrics(data.held_out, oracle, reference[: len(oracle)], config.beta, rows, decode)


def _oracle_of_fold(
    job: OracleJob, work: Run, data: OracleData, sums: NDArray[np.float64], fold: int, context: RunContext
) -> dict[int, PairLogps]:
    """Write the oracle of a fold; its log-probs of the held-out pairs that it is to score, by their numbers.

    Args:
        sums: (N, 2) of the log-probs under the reference, of the held-out pairs, then of those to train on.
    """
    config, name = job.config, job.oracles[fold]
    model = job.load_trainable(work.folder / REFERENCE)
    if not _written(job, work, job.phase(name), name):
        pairs, known = data.judged_first, len(data.held_out)
        examples = Lazily(len(pairs), lambda index: whole(pairs[index], ReferenceSums(*sums[index].tolist())))
        mine = (trains(pair, fold, config.folds) for pair in data.train)
        train = examples.pick(known + np.flatnonzero(np.fromiter(mine, np.bool_)))
        model = _make_oracle(job, work, name, model, train, examples.pick(np.arange(known)))
    else:
        model = _read_oracle(job, work.folder / name, lambda: model)
    judged = [pair for pair in data.held_out if fold_of(pair.prompt_ids, config.folds) == fold]
    logps = logps_of(model, judged, context, f"{name}, held-out pairs") if judged else []
    return {pair.pair_id: each for pair, each in zip(judged, logps, strict=True)}


def _make_reference(job: OracleJob, work: Run, data: OracleData) -> None:
    """The model after SFT, or as it is."""
    config, accelerator, folder = job.config, job.accelerator, job.model_folder
    # An oracle is made from its reference: a new reference needs a new oracle.
    if accelerator.is_main_process:
        for name in job.oracles:
            shutil.rmtree(work.folder / name, ignore_errors=True)
    model = job.load_trainable(folder) if config.sft_epochs else job.load(folder)
    stop_at(model, job.encoder.end_of_turn)
    refuse_unknown_ids(model, highest_id(chain(data.judged_first, data.sft)), config.model_name)
    trainee = Trainee(model, None)
    if config.sft_epochs:
        # An adapter on an adapter has no base to be loaded on: the oracle's reference is an ordinary folder.
        trainee = make_trainee(model, config, str(folder.resolve()), job.reporter, merged=True)
        fit(
            trainee.model,
            data.sft.map(_chosen),
            sft,
            replace(
                config,
                learning_rate=config.sft_learning_rate,
                batch_size=config.sft_batch_size,
                num_train_epochs=config.sft_epochs,
            ),
            phase="sft",
            folder=work.folder,
            reporter=job.reporter,
            fingerprint=work.fingerprint,
            size=lambda example: float(len(example.pair.chosen_ids)),
            held_out=data.held_out.map(_chosen),
        )
    _save(job, work, trainee, REFERENCE, folder, merged=True)


def _chosen(pair: TokenPair) -> Example:
    return chosen_only(whole(pair))


def _make_oracle(
    job: OracleJob, work: Run, name: str, reference: Any, examples: Lazy[Example], held_out: Lazy[Example]
) -> Any:
    """The reference after DPO, as each process can read it."""
    config, base = job.config, work.folder / REFERENCE
    trainee = make_trainee(reference, config, str(base.resolve()), job.reporter, merged=config.merge)
    objective: Objective = partial(dpo, beta=config.beta, sft_weight=config.sft_weight)
    if config.kl_weight:
        objective = partial(with_sequence_kl, objective, kl_weight=config.kl_weight)
    fit(
        trainee.model,
        examples,
        objective,
        config,
        phase=job.phase(name),
        folder=work.folder,
        reporter=job.reporter,
        fingerprint=work.fingerprint,
        reference=_measured_from(job, trainee, base) if config.kl_weight else None,
        held_out=held_out,
    )
    _save(job, work, trainee, name, work.folder / REFERENCE, merged=config.merge)
    if not job.accelerator.is_fsdp2:
        return reference
    return _read_oracle(job, work.folder / name, partial(job.load_trainable, work.folder / REFERENCE))


def _read_oracle(job: OracleJob, folder: Path, reference: Callable[[], CausalLM]) -> CausalLM:
    """The oracle that was written; an adapter on the reference with its weights held as they were in training."""
    return put_on(reference(), folder).model if is_adapter(folder) else job.load(folder)


def _measured_from(job: OracleJob, trainee: Trainee, base: Path) -> Reference:
    """What reads the reference while the oracle is trained: the oracle without its adapter, or a second model."""
    if trainee.adapter is not None:
        forward = find_paths_of(trainee.model, job.accelerator, job.reporter)
        forward = forward._replace(model=trainee.model, context=trainee.adapter.disable_adapter)
    else:
        forward = find_paths_of(job.load(base).requires_grad_(False).eval(), job.accelerator, job.reporter)
    return Reference(forward, kl_of_reference)


def _written(job: OracleJob, work: Run, phase: str, name: str) -> bool:
    """Whether an earlier attempt has written this model already, and nobody took it apart since."""
    # Agreed on before one of the processes writes it; what it holds is looked at once.
    there = holds_model(work.folder / name)
    sound = there and (not job.accelerator.is_main_process or work.keeps(name))
    if not all(gather_object([sound])):
        return False
    job.reporter.say(f"{phase}: {work.folder / name} is there already")
    return True


def _save(job: OracleJob, work: Run, trainee: Trainee, name: str, base_folder: Path, *, merged: bool) -> None:
    weights = trainee.gathered()
    if job.accelerator.is_main_process:
        base = partial(job.load_trainable, base_folder, torch.device("cpu"))
        divided = None if weights is None else Divided(weights, base)
        model = trainee.finished(merged=merged, aside=work.folder / f"{name}-{UNMERGED}", divided=divided)
        # A model that an adapter was merged into is whole.
        mine = weights if model is trainee.unmerged else None
        save_model(model, job.tokenizer, work.folder / name, mine)
        work.vouch(name)
        forget_checkpoints(work.folder)
    job.accelerator.wait_for_everyone()


def _write(job: OracleJob, work: Run, counts: dict[str, Any], metrics: OracleMetrics | None) -> Summary:
    config, accelerator, folder = job.config, job.accelerator, work.folder
    rows = [("trained on", counted(counts["train"], "pair")), ("held out", counted(counts["held_out"], "pair"))]
    results: dict[str, Any] = {}
    held_out: dict[str, float] = {}
    if metrics is None:
        reason = "all have one prompt" if config.eval_fraction else "eval_fraction 0"
        warnings = [f"no pair was held out ({reason}): nothing tells whether the oracle learnt"]
    else:
        warnings, results = oracle_warnings(metrics), metrics.as_json()
        held_out = {"accuracy": metrics.accuracy.value, "reward margin": metrics.margin.value}
        rows += oracle_rows(metrics)
    warnings += [warning for name in job.oracles for warning in linear_warnings(folder, job.phase(name))]
    for warning in warnings:
        job.reporter.warn(warning)
    warnings += training_warnings(folder)
    if accelerator.is_main_process:
        made = Made(config, work.identity["inputs"], counts)
        write_reference_card(folder / REFERENCE, folder, made)
        for name in job.oracles:
            write_oracle_card(folder / name, folder, made, held_out, job.phase(name))
        # A kill may have left some of it behind.
        forget_checkpoints(folder)
        # What the models need: without card, picture and log they are still whole, and not to be trained again.
        paths = [path for name in (REFERENCE, *job.oracles) for path in sorted((folder / name).iterdir())]
        files = [str(path.relative_to(folder)) for path in paths if path.name not in (CARD, CURVES)]
        device = str(accelerator.device)
        work.finish(files=[LOGPS, *files], device=device, counts=counts, results=results, warnings=warnings)
    rows += [("reference", str(folder / REFERENCE)), *(("oracle", str(folder / name)) for name in job.oracles)]
    rows += push_run(folder, config, job.reporter, first=accelerator.is_main_process)
    return Summary(f"oracle in {folder}", rows)
