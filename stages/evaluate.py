"""`sepo evaluate`: is it better? Models on held-out pairs and by their samples, each by itself and against each other.

What was measured of a model is kept in the cache as soon as it is there (`stages.tokens.arrays`), under a hash of the
model, the pairs' ids and the settings that decide it: an interrupted evaluation goes on, and a model that was measured
once is not measured again when it is compared with others.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.configs import EvaluateConfig, column_names, content_defaults, content_settings
from stages.data.read import dataset_hash, refuse_changed
from stages.data.template_arguments import given_arguments
from stages.demo.language import load_rewards, true_reward
from stages.devices.processes import join_processes, refuse_several
from stages.errors import SepoError
from stages.evaluation.figures import (
    FEWEST,
    Measured,
    PairSums,
    describe,
    figures_of,
    pair_rows,
    sample_rows,
    sums_of,
)
from stages.evaluation.held_out import (
    HeldOut,
    Prompt,
    content_of,
    draw_prompts,
    prompts_of,
    read_held_out,
    refuse_other_ids,
    scored_pairs,
    truth_hash,
)
from stages.evaluation.judged import SAMPLE_BATCH, Judged, Sampling
from stages.evaluation.training_data import (
    Hashes,
    Trained,
    Writing,
    hashes_of,
    recorded_sources,
    source_hash,
    trained_on,
)
from stages.logprobs.divergence import as_pair
from stages.models.folders import load_tokenizer, model_hash, most_positions, resolve_model
from stages.models.named import named_models
from stages.report.evaluation import build_report, show_again, summarise
from stages.reporting import Reporter, Summary
from stages.store.files import hash_json
from stages.store.manifest import LIBRARIES, Input, identity_of, made_just_now
from stages.store.results import claim_results, write_results
from stages.tokens.cache import Arrays, cached_arrays
from stages.tokens.dataset import Limit, load_pairs, refuse_recorded
from stages.tokens.fingerprint import modules_hash, tokenizer_hash, vocabulary_hash
from stages.types import Ids, TokenPair

Floats64 = NDArray[np.float64]
STAGE: Final = "evaluate"
REFERENCE: Final = "reference"


class Model(NamedTuple):
    """A model under evaluation, and in its ids the pairs and the prompts to be answered."""

    name: str
    folder: Path
    hash: str
    held_out: HeldOut
    prompts: list[Prompt]


class Chosen(NamedTuple):
    """What is to be evaluated: folders of models, each with the hash of the model in it."""

    models: dict[str, tuple[Path, str]]
    """by name"""
    reference: tuple[Path, str] | None


class Job(NamedTuple):
    """What every part of the stage needs."""

    config: EvaluateConfig
    models: list[Model]
    """one for each line of the tables"""
    reference: Model | None
    judged: Judged
    reporter: Reporter
    known: dict[str, Arrays]
    """what was measured so far, where the cache cannot hold it"""

    def keep(self, what: str, model: Model, more: list[Any], make: Callable[[], Arrays]) -> Arrays:
        """Arrays that are measured once. Another device, code or version of a library may measure another number."""
        code = [modules_hash("logprobs", "models", "evaluation", "method"), *map(version, LIBRARIES)]
        key = [STAGE, what, self.judged.device.type, code, model.hash, *more]
        name = hash_json(key)
        if name not in self.known:
            self.known[name] = cached_arrays(key, make, name=f"{model.name}: {what}", reporter=self.reporter)
        return self.known[name]


def run(config: EvaluateConfig, reporter: Reporter) -> Summary:
    """Measure what is not measured yet, and say what it means.

    Raises:
        SepoError: unusable models, data or output; a model given twice; a reference of another vocabulary.
    """
    started = time.monotonic()
    accelerator = join_processes()
    refuse_several(accelerator, STAGE)
    dataset = config.dataset or str(Path(str(config.demo)) / "test.jsonl")
    chosen = _chosen(config, reporter)
    inputs = _inputs(config, dataset, chosen)
    defaults = content_defaults(EvaluateConfig)
    identity = identity_of(STAGE, content_settings(config), inputs, defaults)
    samples, overwrite = config.samples > 0, config.overwrite
    finished = claim_results(config.output, identity, inputs, defaults=defaults, samples=samples, overwrite=overwrite)
    if finished is not None:
        for model in finished["models"].values() if config.strict else ():
            refuse_recorded(model["counts"], dataset)
        return show_again(finished, str(config.output))

    models, reference = _read(config, dataset, chosen, reporter)
    if scored_pairs(dataset) is None:
        refuse_changed(dataset, inputs["dataset"].hash)
    judged = Judged(
        reference.folder if reference else None,
        max_tokens=config.max_tokens_per_device,
        device=accelerator.device,
        trust_remote_code=config.trust_remote_code,
        reporter=reporter,
    )
    job = Job(config, models, reference, judged, reporter, known={})
    warnings = [*_too_few(job), *_other_tokenizers(job), *_trained_on(job)]
    for warning in warnings:
        reporter.warn(warning)
    measured = {model.name: _measure(job, model) for model in models}
    report = _report(job, measured, identity, warnings)
    report["made_by"] = made_just_now(str(accelerator.device), started)
    if config.output:
        write_results(config.output, report, [pair_rows(measured), sample_rows(measured)])
    return summarise(report, output=config.output)


def _chosen(config: EvaluateConfig, reporter: Reporter) -> Chosen:
    """The models that were asked for.

    Raises:
        SepoError: one of them is no model, or two are the same, or have the same name.
    """
    folders = named_models(config.models, reporter)
    models = {name: (folder, model_hash(folder)) for name, folder in folders.items()}
    for (first, (_, a)), (second, (_, b)) in combinations(models.items(), 2):
        if a == b:
            raise SepoError(f"{first} and {second} are one and the same model", hint="give each model once")
    if not config.reference_model:
        return Chosen(models, None)
    folder = resolve_model(config.reference_model, reporter)
    reference = (folder, model_hash(folder))
    if REFERENCE in models and models[REFERENCE][1] != reference[1]:
        raise SepoError(
            f"a model is named {REFERENCE!r} and is not the reference {config.reference_model}",
            hint="give it another name: --model NAME=FOLDER",
        )
    return Chosen(models, reference)


def _inputs(config: EvaluateConfig, dataset: str, chosen: Chosen) -> dict[str, Input]:
    scores = scored_pairs(dataset)
    inputs = {f"model {name}": Input(str(folder), hash_) for name, (folder, hash_) in chosen.models.items()}
    inputs["dataset"] = Input(dataset, scores.fingerprint if scores else dataset_hash(dataset), data=True)
    if chosen.reference:
        inputs[REFERENCE] = Input(str(config.reference_model), chosen.reference[1])
    if config.demo:
        inputs["truth"] = Input(config.demo, truth_hash(Path(config.demo)))
    return inputs | {
        f"training data {name}": Input(name, source_hash(name), data=True) for name in config.training_data
    }


def _read(config: EvaluateConfig, dataset: str, chosen: Chosen, reporter: Reporter) -> tuple[list[Model], Model | None]:
    """The models with the pairs in their ids, and the reference: it comes first, unless it is one of them already."""
    read: dict[tuple[str, int], HeldOut] = {}
    models = []
    theirs = _tokenizer(chosen.reference[0], config, reporter) if chosen.reference else None
    for name, (folder, hash_) in chosen.models.items():
        tokenizer = _tokenizer(folder, config, reporter)
        if theirs is not None and vocabulary_hash(tokenizer) != vocabulary_hash(theirs):
            raise SepoError(
                f"{name} and the reference {config.reference_model} do not share a token->id map"
                f" ({len(tokenizer):,} and {len(theirs):,} tokens)",
                hint="give the model that it was trained from, or leave out --reference-model",
            )
        refuse_other_ids(dataset, vocabulary_hash(tokenizer), name)
        # The reference reads the same rows.
        beside = [chosen.reference[0]] if chosen.reference else []
        positions = most_positions(folder, *beside, trust_remote_code=config.trust_remote_code)
        most = min(config.max_length, positions or config.max_length)
        if most < config.max_length:
            reporter.say(f"{name}: no row may be longer than the {most:,} positions that it was made for")
        key = (tokenizer_hash(tokenizer), most)
        if key not in read:
            read[key] = read_held_out(dataset, tokenizer, replace(config, max_length=most), reporter)
        models.append(
            Model(name, folder, hash_, read[key], _prompts(name, read[key].pairs, positions, config, reporter))
        )
    if chosen.reference is None:
        return models, None
    # Without a name of its own it is asked in the words of the first model: the ids are the same.
    own = [model for model in models if model.hash == chosen.reference[1]]
    reference = own[0] if own else Model(REFERENCE, *chosen.reference, *models[0][3:])
    return (models if own else [reference, *models]), reference


def _prompts(
    name: str, pairs: list[TokenPair], positions: int | None, config: EvaluateConfig, reporter: Reporter
) -> list[Prompt]:
    """The prompts to be answered by a model: those after which there is room for an answer."""
    if not config.samples:
        return []
    room = None if positions is None else positions - config.max_new_tokens
    prompts = {pair.prompt_ids.tobytes(): len(pair.prompt_ids) for pair in pairs}
    fit = sum(room is None or length <= room for length in prompts.values())
    if fit < 2:
        raise SepoError(
            f"{name}: {fit or 'no'} prompt leaves room for {config.max_new_tokens:,} tokens in {positions:,} positions"
            " (an interval needs 2)",
            hint="lower --max-new-tokens, or leave sampling out with --samples 0",
        )
    if fit < len(prompts):
        reporter.say(f"{name}: {len(prompts) - fit:,} prompts that leave no room for an answer are not sampled from")
    return draw_prompts(pairs, config.samples, room, config.seed)


def _tokenizer(folder: Path, config: EvaluateConfig, reporter: Reporter) -> Any:
    return load_tokenizer(folder, trust_remote_code=config.trust_remote_code, reporter=reporter)


def _too_few(job: Job) -> list[str]:
    """What is independent are prompts, not the answers to one of them."""
    warnings = []
    for items, prompts_of_each in (
        ("pairs", [prompts_of(model.held_out.pairs) for model in job.models]),
        ("samples", [np.array([prompt.pair_id for prompt in model.prompts]) for model in job.models]),
    ):
        prompts, count = min((len(np.unique(each)), len(each)) for each in prompts_of_each)
        if 0 < prompts < FEWEST:
            words = f"{count:,} {items}" if count == prompts else f"{count:,} {items} of {prompts:,} prompts"
            warnings.append(f"{words} are few: an interval of fewer than {FEWEST} is narrower than it should be")
    return warnings


def _other_tokenizers(job: Job) -> list[str]:
    hashes = {tokenizer_hash(model.held_out.tokenizer) for model in job.models}
    if len(hashes) == 1:
        return []
    return [
        f"the models have {len(hashes)} tokenizers: each reads the data set in its own ids, and two are compared on the"
        " rows that both keep"
    ]


def _trained_on(job: Job) -> list[str]:
    """What of the data set each model has seen in training, as far as that can be known."""
    warnings = []
    looked_into: dict[tuple[str, str], list[Trained]] = {}
    bases: dict[str, list[str]] = {}
    for model in job.models:
        tokenizer = tokenizer_hash(model.held_out.tokenizer)
        recorded = recorded_sources(model.folder)
        bases.setdefault(recorded.base, []).append(model.name)
        sources = list(dict.fromkeys([*recorded.sources, *job.config.training_data]))
        for source in sources:
            if (source, tokenizer) not in looked_into:
                looked_into[source, tokenizer] = _look_into(job, model, source)
        trained = [each for source in sources for each in looked_into[source, tokenizer]]
        trained += [Trained(source, None, why) for source, why in recorded.lost.items()]
        warnings += [
            f"{model.name}: whether {each.source} overlaps the data set is unknown: {each.why_not}"
            for each in trained
            if each.hashes is None
        ]
        warnings += _overlap(model, [each.hashes for each in trained if each.hashes is not None])
    if not job.config.training_data:
        for base, names in bases.items():
            job.reporter.say(
                f"nothing is known of what {base} was trained on (behind {', '.join(names)}); --training-data names it"
            )
    return warnings


def _look_into(job: Job, model: Model, source: str) -> list[Trained]:
    config, encoder = job.config, model.held_out.encoder
    writing = Writing(tokenizer_hash(model.held_out.tokenizer), given_arguments(config.chat_template_kwargs))

    def read(name: str) -> Sequence[TokenPair]:
        limit = Limit(config.max_length, config.overlong)
        return load_pairs(name, encoder, limit, columns=column_names(config.columns), reporter=job.reporter)[0]

    try:
        return trained_on(source, writing, read)
    except SepoError as error:
        if source in config.training_data:
            raise
        return [Trained(source, None, error.message)]


def _overlap(model: Model, trained: list[Hashes]) -> list[str]:
    pairs = hashes_of(model.held_out.pairs)
    seen = int(np.isin(pairs, np.concatenate(trained)).sum()) if trained else 0
    share = f"{seen:,} of the {len(pairs):,} pairs ({seen / len(pairs):.1%})"
    return [f"{model.name} was trained on {share}: what they say of it is too good"] if seen else []


def _measure(job: Job, model: Model) -> Measured:
    """All that is wanted of one model; what the cache has is not measured again."""
    pairs = model.held_out.pairs
    prompts = model.prompts
    sums = _sums(job, model)
    reference = _sums(job, job.reference._replace(held_out=model.held_out)) if job.reference else None
    kl = _kl(job, model, "pairs", pairs)
    answers = _answers(job, model, prompts)
    sampled = [as_pair(number, prompts[number].ids, answer) for number, answer in enumerate(answers)]
    sample_kl = _kl(job, model, "samples", sampled)
    texts = model.held_out.tokenizer.batch_decode(answers, skip_special_tokens=True) if answers else []
    planted = load_rewards(Path(job.config.demo)) if job.config.demo else None
    return Measured(
        pair_ids=np.array([pair.pair_id for pair in pairs], np.int64),
        prompts=prompts_of(pairs),
        sums=sums,
        reference=reference,
        kl=kl,
        sample_keys=np.array([prompt.key for prompt in prompts], np.int64),
        sample_prompts=np.array([prompt.pair_id for prompt in prompts], np.int64),
        responses=texts,
        samples=describe(answers, model.held_out.encoder.end_of_turn),
        sample_kl=None if sample_kl is None else sample_kl[:, 0],
        rewards=None if planted is None else np.array([true_reward(text, planted) for text in texts]),
    )


def _sums(job: Job, model: Model) -> PairSums:
    """Log-probs of the pairs' responses, summed."""

    def make() -> Arrays:
        return sums_of(job.judged.logps(model.folder, model.held_out.pairs, model.name))._asdict()

    return PairSums(**job.keep("log-probs", model, [content_of(model.held_out.pairs)], make))


def _kl(job: Job, model: Model, what: str, pairs: list[TokenPair]) -> Floats64 | None:
    """KL from the reference, summed over each response, (N, 2); that of the reference from itself is 0."""
    if job.reference is None or job.config.skip_kl:
        return None
    if model.hash == job.reference.hash or not pairs:
        return np.zeros((len(pairs), 2))

    def make() -> Arrays:
        return {"kl_N2": job.judged.kl(model.folder, pairs, f"{model.name}: KL, {what}")}

    return job.keep(f"KL of {what}", model, [job.reference.hash, content_of(pairs)], make)["kl_N2"]


def _answers(job: Job, model: Model, prompts: list[Prompt]) -> list[Ids]:
    if not prompts:
        return []
    how = Sampling(model.held_out.encoder.end_of_turn, job.config.max_new_tokens, job.config.seed)

    def make() -> Arrays:
        answers = job.judged.answers(model.folder, [prompt.ids for prompt in prompts], how, model.name)
        return {"ids": np.concatenate(answers), "lengths": np.array([len(answer) for answer in answers])}

    found = job.keep(
        "samples", model, [hash_json([prompt.ids.tolist() for prompt in prompts]), SAMPLE_BATCH, how._asdict()], make
    )
    return np.split(found["ids"], np.cumsum(found["lengths"])[:-1])


def _report(job: Job, measured: dict[str, Measured], identity: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    about = {
        model.name: {
            "folder": str(model.folder),
            "hash": model.hash,
            "tokenizer": tokenizer_hash(model.held_out.tokenizer),
            "counts": model.held_out.counts.as_json(),
        }
        for model in job.models
    }
    rival = measured[job.reference.name] if job.reference else None
    figures = {name: figures_of(found, rival) for name, found in measured.items()}
    return {**identity, **build_report(figures, about, job.config.seed), "warnings": warnings}
