"""`sepo evaluate`: is it better? Models on held-out pairs and by their samples, each by itself and against each other.

What was measured of a model is kept in the cache as soon as it is there (`stages.data.arrays`), under a hash of the
model, the pairs' ids and the settings that decide it: an interrupted evaluation goes on, and a model that was measured
once is not measured again when it is compared with others.
"""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.configs import EvaluateConfig, column_names, content_settings
from stages.currency import Ids, TokenPair
from stages.data.arrays import Arrays, kept_arrays
from stages.data.dataset import Limit, load_pairs
from stages.data.demo_language import TRUTH, load_rewards, true_reward
from stages.data.held_out import HeldOut, Prompt, draw_prompts, read_held_out, refuse_other_ids, scored_pairs
from stages.data.read import dataset_hash
from stages.data.training import Hashes, Trained, hashes_of, recorded_sources, source_hash, trained_on
from stages.errors import SepoError
from stages.method.evaluation import (
    FEWEST,
    Measured,
    PairSums,
    describe,
    figures_of,
    pair_rows,
    sample_rows,
    sums_of,
)
from stages.method.evaluation_report import build_report, summarise
from stages.model.folders import (
    load_tokenizer,
    model_hash,
    most_positions,
    resolve_model,
    tokenizer_hash,
    vocabulary_hash,
)
from stages.model.judged import SAMPLE_BATCH, Judged, Sampling
from stages.model.named import named_models
from stages.model.processes import join_processes, refuse_several
from stages.reporting import Reporter, Summary
from stages.store.files import hash_file, hash_json
from stages.store.manifest import LIBRARIES, Input, identity_of, made_just_now, read_manifest
from stages.store.results import claim_results, write_results

Floats64 = NDArray[np.float64]
STAGE: Final = "evaluate"
REFERENCE: Final = "reference"


class Model(NamedTuple):
    """A model under evaluation, and the pairs in its ids."""

    name: str
    folder: Path
    hash: str
    held_out: HeldOut


class Job(NamedTuple):
    """What every part of the stage needs."""

    config: EvaluateConfig
    dataset: str
    models: list[Model]
    reference: Model | None
    judged: Judged
    reporter: Reporter

    def keep(self, what: str, model: Model, key: list[Any], make: Callable[[], Arrays]) -> Arrays:
        """Arrays that are measured once. Another version of a library may measure another number."""
        versions = [version(library) for library in LIBRARIES]
        name = f"{model.name}: {what}"
        return kept_arrays([STAGE, what, versions, model.hash, *key], make, name=name, reporter=self.reporter)


def run(config: EvaluateConfig, reporter: Reporter) -> Summary:
    """Measure what is not measured yet, and say what it means.

    Raises:
        SepoError: unusable models, data or output; a model given twice; a reference of another vocabulary.
    """
    started = time.monotonic()
    accelerator = join_processes()
    refuse_several(accelerator, STAGE)
    dataset = config.dataset or str(Path(str(config.demo)) / "test.jsonl")
    folders = named_models(config.models, reporter, taken=(REFERENCE,))
    hashes = {name: model_hash(folder) for name, folder in folders.items()}
    _refuse_twins(hashes)
    if config.reference_model:
        folders[REFERENCE] = resolve_model(config.reference_model, reporter)
        hashes[REFERENCE] = model_hash(folders[REFERENCE])
    identity = identity_of(STAGE, content_settings(config), _inputs(config, dataset, folders, hashes))
    finished = claim_results(config.output, identity, overwrite=config.overwrite)
    if finished is not None:
        return summarise(finished, output=config.output, fresh=False)

    models = _read(config, dataset, folders, hashes, reporter)
    reference = models.pop(REFERENCE, None)
    rows = list(models.values())
    if reference and reference.hash not in [model.hash for model in rows]:
        rows.insert(0, reference)
    judged = Judged(
        reference.folder if reference else None,
        max_tokens=config.max_tokens_per_device,
        device=accelerator.device,
        trust_remote_code=config.trust_remote_code,
        reporter=reporter,
    )
    job = Job(config, dataset, rows, reference, judged, reporter)
    warnings = [*_too_few(job), *_other_tokenizers(job), *_trained_on(job)]
    for warning in warnings:
        reporter.warn(warning)
    measured = {model.name: _measure(job, model) for model in rows}
    report = _report(job, measured, identity, warnings)
    report["made_by"] = made_just_now(str(accelerator.device), started)
    if config.output:
        write_results(config.output, report, {"pairs": pair_rows(measured), "samples": sample_rows(measured)})
    return summarise(report, output=config.output)


def _refuse_twins(hashes: dict[str, str]) -> None:
    for (first, a), (second, b) in pairwise(sorted(hashes.items(), key=lambda item: item[1])):
        if a == b:
            raise SepoError(f"{first} and {second} are one and the same model", hint="give each model once")


def _inputs(config: EvaluateConfig, dataset: str, folders: dict[str, Path], hashes: dict[str, str]) -> dict[str, Input]:
    scores = scored_pairs(dataset)
    inputs = {f"model {name}": Input(str(folder), hashes[name]) for name, folder in folders.items()}
    inputs["dataset"] = Input(dataset, scores.fingerprint if scores else dataset_hash(dataset))
    if config.demo:
        read_manifest(Path(config.demo), "make-demo", "run `sepo make-demo` first")
        inputs["truth"] = Input(config.demo, hash_file(Path(config.demo) / TRUTH))
    return inputs | {f"training data {name}": Input(name, source_hash(name)) for name in config.training_data}


def _read(
    config: EvaluateConfig, dataset: str, folders: dict[str, Path], hashes: dict[str, str], reporter: Reporter
) -> dict[str, Model]:
    """The models with the pairs in their ids; the reference, if there is one, with those of the first model."""
    tokenizers = {
        name: load_tokenizer(folder, trust_remote_code=config.trust_remote_code) for name, folder in folders.items()
    }
    vocabularies = {name: vocabulary_hash(tokenizer) for name, tokenizer in tokenizers.items()}
    reference = tokenizers.pop(REFERENCE, None)
    read: dict[str, HeldOut] = {}
    models = {}
    for name, tokenizer in tokenizers.items():
        if reference and vocabularies[name] != vocabularies[REFERENCE]:
            raise SepoError(
                f"{name} and the reference {config.reference_model} do not share a token->id map"
                f" ({len(tokenizer):,} and {len(reference):,} tokens)",
                hint="give the model that it was trained from, or leave out --reference-model",
            )
        refuse_other_ids(dataset, vocabularies[name], name)
        key = tokenizer_hash(tokenizer)
        if key not in read:
            read[key] = read_held_out(dataset, tokenizer, config, reporter)
        models[name] = Model(name, folders[name], hashes[name], read[key])
    if reference:
        first = next(iter(models.values()))
        models[REFERENCE] = Model(REFERENCE, folders[REFERENCE], hashes[REFERENCE], first.held_out)
    return models


def _too_few(job: Job) -> list[str]:
    pairs, samples = min(len(model.held_out.pairs) for model in job.models), job.config.samples
    counts = {f"{pairs:,} pairs": pairs} | ({f"{samples:,} samples": samples} if samples else {})
    return [
        f"{words} are few: an interval of fewer than {FEWEST} is narrower than it should be"
        for words, count in counts.items()
        if count < FEWEST
    ]


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
    for model in job.models:
        tokenizer = tokenizer_hash(model.held_out.tokenizer)
        sources = list(dict.fromkeys([*recorded_sources(model.folder), *job.config.training_data]))
        for source in sources:
            if (source, tokenizer) not in looked_into:
                looked_into[source, tokenizer] = _look_into(job, model, source)
        if not sources:
            job.reporter.say(f"{model.name}: nothing is known of its training pairs; --training-data names them")
        trained = [each for source in sources for each in looked_into[source, tokenizer]]
        warnings += [
            f"{model.name}: whether {each.source} overlaps the data set is unknown: {each.why_not}"
            for each in trained
            if each.hashes is None
        ]
        warnings += _overlap(model, [each.hashes for each in trained if each.hashes is not None])
    return warnings


def _look_into(job: Job, model: Model, source: str) -> list[Trained]:
    config, encoder = job.config, model.held_out.encoder

    def read(name: str) -> Sequence[TokenPair]:
        limit = Limit(config.max_length, config.overlong)
        return load_pairs(name, encoder, limit, columns=column_names(config.columns), reporter=job.reporter)[0]

    try:
        return trained_on(source, tokenizer_hash(model.held_out.tokenizer), read)
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
    prompts = _prompts(job, model)
    answers = _answers(job, model, prompts)
    kl, sample_kl = None, None
    if job.reference:
        both = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
        kl = _kl(job, model, "pairs", [pair.prompt_ids for pair in pairs] * 2, both, model.held_out.content)
        sample_kl = _kl(job, model, "samples", [prompt.ids for prompt in prompts], answers, _content(prompts, answers))
    texts = model.held_out.tokenizer.batch_decode(answers, skip_special_tokens=True) if answers else []
    planted = load_rewards(Path(job.config.demo)) if job.config.demo else None
    return Measured(
        pair_ids=np.array([pair.pair_id for pair in pairs], np.int64),
        sums=_sums(job, model),
        reference=_sums(job, job.reference._replace(held_out=model.held_out)) if job.reference else None,
        kl=kl,
        sample_keys=np.array([prompt.key for prompt in prompts], np.int64),
        sample_pair_ids=np.array([prompt.pair_id for prompt in prompts], np.int64),
        responses=texts,
        samples=describe(answers, model.held_out.encoder.end_of_turn),
        sample_kl=sample_kl,
        rewards=None if planted is None else np.array([true_reward(text, planted) for text in texts]),
    )


def _sums(job: Job, model: Model) -> PairSums:
    """Log-probs of the pairs' responses, summed."""

    def make() -> Arrays:
        return sums_of(job.judged.logps(model.folder, model.held_out.pairs, model.name))._asdict()

    return PairSums(**job.keep("log-probs", model, [model.held_out.content], make))


def _kl(job: Job, model: Model, what: str, prompts: list[Ids], responses: list[Ids], content: str) -> Floats64:
    """KL from the reference, summed over each response; that of the reference from itself is 0."""
    assert job.reference
    if model.hash == job.reference.hash or not responses:
        return np.zeros(len(responses))

    def make() -> Arrays:
        return {"kl": job.judged.kl(model.folder, prompts, responses, f"{model.name}: KL, {what}")}

    return job.keep(f"KL of {what}", model, [job.reference.hash, content], make)["kl"]


def _prompts(job: Job, model: Model) -> list[Prompt]:
    """The prompts to be answered: those of the pairs after which there is room for an answer."""
    config = job.config
    if not config.samples:
        return []
    positions = most_positions(model.folder, trust_remote_code=config.trust_remote_code)
    room = None if positions is None else positions - config.max_new_tokens
    pairs = model.held_out.pairs
    long = sum(room is not None and len(pair.prompt_ids) > room for pair in pairs)
    if long == len(pairs):
        raise SepoError(
            f"{model.name}: no prompt leaves room for {config.max_new_tokens:,} tokens in {positions:,} positions",
            hint="lower --max-new-tokens, or leave sampling out with --samples 0",
        )
    if long:
        job.reporter.say(f"{model.name}: {long:,} prompts that leave no room for an answer are not sampled from")
    return draw_prompts(pairs, config.samples, room, config.seed)


def _answers(job: Job, model: Model, prompts: list[Prompt]) -> list[Ids]:
    if not prompts:
        return []
    how = Sampling(model.held_out.encoder.end_of_turn, job.config.max_new_tokens, job.config.seed)

    def make() -> Arrays:
        answers = job.judged.answers(model.folder, [prompt.ids for prompt in prompts], how, model.name)
        return {"ids": np.concatenate(answers), "lengths": np.array([len(answer) for answer in answers])}

    found = job.keep("samples", model, [_content(prompts, []), SAMPLE_BATCH, how._asdict()], make)
    return np.split(found["ids"], np.cumsum(found["lengths"])[:-1])


def _content(prompts: list[Prompt], answers: list[Ids]) -> str:
    return hash_json([[prompt.ids.tolist() for prompt in prompts], [answer.tolist() for answer in answers]])


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
    rivals = [model.name for model in job.models if job.reference and model.hash == job.reference.hash]
    rival = measured[rivals[0]] if rivals else None
    figures = {name: figures_of(found, rival) for name, found in measured.items()}
    return {**identity, **build_report(figures, about, job.config.seed), "warnings": warnings}
