"""`sepo evaluate`: is it better? Models on held-out pairs and by their samples, alone and against each other."""

import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from accelerate import Accelerator

from stages.configs import EvaluateConfig
from stages.data.read import dataset_hash, refuse_changed
from stages.demo.language import load_truth
from stages.devices.precision import products
from stages.devices.processes import ALONE, Team, join_processes
from stages.errors import SepoError
from stages.evaluation.contamination import contamination, source_hash
from stages.evaluation.evaluator import Candidate, Evaluator, Sampling
from stages.evaluation.figures import FEWEST, Measured, figures_of, table_of
from stages.evaluation.held_out import HeldOut, prompts_for, prompts_of, read_held_out, scored_pairs, truth_hash
from stages.models.folders import load_tokenizer, model_hash, most_positions, resolve_model
from stages.models.loading import loading_of, refuse_unloadable
from stages.models.named import named_models
from stages.models.tensor_parallel import who_holds
from stages.report.evaluation import build_report, show_again, summarise
from stages.reporting import Reporter, Summary
from stages.store.manifest import Input, made_just_now
from stages.store.results import TABLES, claim_results, write_results
from stages.tokens.dataset import refuse_recorded
from stages.tokens.fingerprint import refuse_other_tokens, tokenizer_hash

STAGE: Final = "evaluate"
REFERENCE: Final = "reference"


def run(config: EvaluateConfig, reporter: Reporter) -> Summary:
    """Measure what is not measured yet, and say what it means."""
    started = time.monotonic()
    accelerator = join_processes()
    config = replace(config, dataset=config.dataset or str(Path(str(config.demo)) / "test.jsonl"))
    # What the first process has hashed or tokenised, the others find in the cache.
    with accelerator.main_process_first():
        folders, inputs = _check(config, accelerator, reporter)
    identity, finished = claim_results(STAGE, config, inputs, TABLES[: 2 if config.samples else 1])
    if finished is not None:
        for model in finished["models"].values() if config.strict else ():
            refuse_recorded(model["counts"], str(config.dataset))
        return show_again(finished, str(config.output))
    with accelerator.main_process_first():
        candidates, reference = _load(config, folders, inputs, reporter)
    warnings = _warnings(config, candidates, reporter) if accelerator.is_main_process else []
    measured = _compute(config, candidates, reference, accelerator, reporter)
    made_by = made_just_now(str(accelerator.device), started)
    report = _report(config, candidates, reference, measured, identity | {"warnings": warnings, "made_by": made_by})
    if accelerator.is_main_process:
        _write(config, report, measured)
    return summarise(report, output=config.output)


def _check(
    config: EvaluateConfig, accelerator: Accelerator, reporter: Reporter
) -> tuple[dict[str, Path], dict[str, Input]]:
    """The folders of the models, by name, and all that is read."""
    folders = named_models(config.models, reporter)
    base = resolve_model(config.reference_model, reporter) if config.reference_model else None
    refuse_unloadable(config, accelerator, [*folders.values(), *([base] if base else [])])
    inputs = {f"model {name}": Input(str(folder), model_hash(folder)) for name, folder in folders.items()}
    for first, second in combinations(folders, 2):
        if inputs[f"model {first}"].hash == inputs[f"model {second}"].hash:
            raise SepoError(f"{first} and {second} are one and the same model", hint="give each model once")
    dataset = str(config.dataset)
    scores = scored_pairs(dataset)
    inputs["dataset"] = Input(dataset, scores.fingerprint if scores else dataset_hash(dataset), data=True)
    if base is not None:
        inputs[REFERENCE] = Input(str(config.reference_model), model_hash(base))
        if REFERENCE in folders and inputs[f"model {REFERENCE}"].hash != inputs[REFERENCE].hash:
            raise SepoError(
                f"a model is named {REFERENCE!r} and is not the reference {config.reference_model}",
                hint="give it another name: --model NAME=FOLDER",
            )
    if config.demo:
        inputs["truth"] = Input(config.demo, truth_hash(Path(config.demo)))
    for name in config.training_data:
        inputs[f"training data {name}"] = Input(name, source_hash(name), data=True)
    return folders, inputs


def _load(
    config: EvaluateConfig, folders: dict[str, Path], inputs: dict[str, Input], reporter: Reporter
) -> tuple[list[Candidate], Candidate | None]:
    """The models with the pairs in their ids, and the reference: it comes first, unless it is one of them already."""
    base = resolve_model(config.reference_model, reporter) if config.reference_model else None
    trust = config.trust_remote_code
    theirs = load_tokenizer(base, trust_remote_code=trust, reporter=reporter) if base else None
    read: dict[tuple[str, int], HeldOut] = {}
    candidates = []
    for name, folder in folders.items():
        tokenizer = load_tokenizer(folder, trust_remote_code=trust, reporter=reporter)
        if theirs is not None:
            hint = "give the model that it was trained from, or leave out --reference-model"
            refuse_other_tokens(tokenizer, theirs, f"{name} and the reference {config.reference_model}", hint)
        # The reference reads the same rows.
        positions = most_positions(folder, *([base] if base else []), trust_remote_code=trust)
        most = min(config.max_length, positions or config.max_length)
        if most < config.max_length:
            reporter.say(f"{name}: no row may be longer than the {most:,} positions that it was made for")
        key = (tokenizer_hash(tokenizer), most)
        if key not in read:
            read[key] = read_held_out(name, tokenizer, replace(config, max_length=most), reporter)
        prompts = prompts_for(name, read[key].pairs, positions, config, reporter)
        candidates.append(Candidate(name, folder, inputs[f"model {name}"].hash, read[key], prompts))
    if scored_pairs(str(config.dataset)) is None:
        refuse_changed(str(config.dataset), inputs["dataset"].hash)
    if base is None:
        return candidates, None
    for candidate in candidates:
        if candidate.hash == inputs[REFERENCE].hash:
            return candidates, candidate
    # Without a name of its own it is asked in the words of the first model: the ids are the same.
    reference = candidates[0]._replace(name=REFERENCE, folder=base, hash=inputs[REFERENCE].hash)
    return [reference, *candidates], reference


def _warnings(config: EvaluateConfig, candidates: list[Candidate], reporter: Reporter) -> list[str]:
    """What to know before the figures are trusted."""
    warnings = []
    # What is independent are prompts, not the answers to one of them.
    for items, prompts_of_each in (
        ("pairs", [prompts_of(model.held_out.pairs) for model in candidates]),
        ("samples", [np.array([prompt.pair_id for prompt in model.prompts]) for model in candidates]),
    ):
        prompts, count = min((len(np.unique(each)), len(each)) for each in prompts_of_each)
        if 0 < prompts < FEWEST:
            words = f"{count:,} {items}" if count == prompts else f"{count:,} {items} of {prompts:,} prompts"
            warnings.append(f"{words} are few: an interval of fewer than {FEWEST} is narrower than it should be")
    tokenizers = {model.held_out.tokenizer_hash for model in candidates}
    if len(tokenizers) > 1:
        warnings.append(
            f"the models have {len(tokenizers)} tokenizers: each reads the data set in its own ids, and two are"
            " compared on the rows that both keep"
        )
    warnings += contamination(candidates, config, reporter)
    for warning in warnings:
        reporter.warn(warning)
    return warnings


def _compute(
    config: EvaluateConfig,
    candidates: list[Candidate],
    reference: Candidate | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> dict[str, Measured]:
    evaluator = Evaluator(
        reference,
        Sampling(config.max_new_tokens, config.seed),
        max_tokens=config.max_tokens_per_device,
        loading=loading_of(config, accelerator.device, reporter),
        reporter=reporter,
        team=Team(accelerator) if accelerator.num_processes > 1 else ALONE,
        divides=who_holds(config.device_map, accelerator) is ALONE,
        kl=not config.skip_kl,
        truth=load_truth(Path(config.demo)) if config.demo else None,
    )
    with products(config.precision):
        return {candidate.name: evaluator.measure(candidate) for candidate in candidates}


def _report(
    config: EvaluateConfig,
    candidates: list[Candidate],
    reference: Candidate | None,
    measured: dict[str, Measured],
    record: dict[str, Any],
) -> dict[str, Any]:
    about = {
        model.name: {
            "folder": str(model.folder),
            "hash": model.hash,
            "tokenizer": model.held_out.tokenizer_hash,
            "counts": model.held_out.counts.as_json(),
        }
        for model in candidates
    }
    rival = measured[reference.name] if reference else None
    figures = {name: figures_of(found, rival) for name, found in measured.items()}
    return {**record, **build_report(figures, about, config.seed)}


def _write(config: EvaluateConfig, report: dict[str, Any], measured: dict[str, Measured]) -> None:
    if config.output:
        pairs = table_of({name: found.pairs for name, found in measured.items()})
        samples = table_of({name: found.samples for name, found in measured.items()})
        write_results(config.output, report, [pairs, samples])
