"""`sepo generate`: models answer prompts, a benchmark's or others.

    prompts --> shards of questions --> an engine --> a journal --> answers-00000.parquet ... --> official files

The unit of work is a shard: all answers of one model to a few questions. What is asked in it, and in which order, is
decided by the prompts and the settings alone, so that neither kills nor the number of workers change a byte.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch

from stages.benchmarks.benchmark import Benchmark, Decoding
from stages.benchmarks.registry import BENCHMARKS
from stages.configs import GenerateConfig
from stages.data.read import dataset_hash, read_rows, refuse_changed
from stages.data.sources import find_source
from stages.devices.processes import Team, Worker, join_processes, this_worker
from stages.errors import SepoError
from stages.generation.engines import (
    AnsweringModel,
    find_models,
    open_engine,
    refuse_unsafe_names,
    refuse_unserved,
    refuse_without_template,
)
from stages.generation.journal import Journal
from stages.generation.questions import Question, QuestionCounts, count_questions, read_questions
from stages.generation.shard import RequestSettings, answer_shard
from stages.generation.tally import AnswerTally, read_rate, tallied, write_timing
from stages.generation.together import asked_by_the_first
from stages.models.habits import NO_HABITS, Habits
from stages.models.tensor_parallel import who_holds
from stages.reporting import Reporter, Summary, Task, counted
from stages.store.answers import DAMAGED, Answer, answers_name, journal_name, read_answers, write_answers
from stages.store.files import write_text, writing
from stages.store.manifest import Input
from stages.store.place import place_of
from stages.store.run import Run, open_stage
from stages.store.shards import own_shard

STAGE: Final = "generate"
NEXT_STEPS: Final = "next-steps.sh"
_USUAL: Final = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=1024)
"""of prompts that are no benchmark's"""


class WorkUnit(NamedTuple):
    """A unit of work."""

    model: str
    shard: int

    @property
    def name(self) -> str:
        """Of its file, from the output folder."""
        return f"{self.model}/{answers_name(self.shard)}"


class GenerateJob(NamedTuple):
    """What is known before the output folder is opened."""

    config: GenerateConfig
    reporter: Reporter
    worker: Worker
    device: torch.device
    benchmark: Benchmark | None
    prompts: str
    counts: QuestionCounts
    settings: dict[str, RequestSettings]
    """by model"""
    models: dict[str, AnsweringModel]
    inputs: dict[str, Input]
    team: Team
    """which is one worker"""

    def questions(self) -> Iterator[Question]:
        """All that is asked, as a stream."""
        return _questions(self.benchmark, self.prompts)

    def units(self) -> list[WorkUnit]:
        """All there is to do, of all workers."""
        return [WorkUnit(name, shard) for name in self.models for shard in range(len(self.counts.answers))]


def run(config: GenerateConfig, reporter: Reporter) -> Summary:
    """Have all prompts answered, or this worker's share; shards that are there already are kept."""
    job = _check(config, reporter)
    # What a benchmark decides where nobody else does; of `temperature` it is the usual one, since prompts may differ.
    usual = _settings(config, job.benchmark)
    resolved = {name: getattr(usual, name) for name in ("usual_temperature", "top_p", "max_new_tokens")}
    processes, workers = job.team.processes, job.worker.workers
    with open_stage(
        STAGE, config, job.inputs, reporter=reporter, processes=processes, workers=workers, settings=resolved
    ) as work:
        if job.team.agreed(lambda: work.finished):
            return work.nothing_to_do("answers")
        _compute(job, work)
        return _write(job, work) if job.team.first else work.nothing_to_do("answers")


def _check(config: GenerateConfig, reporter: Reporter) -> GenerateJob:
    """The prompts, all of them, and the models, as far as that needs no weights."""
    accelerator = join_processes()
    refuse_unsafe_names(config.models)
    benchmark = BENCHMARKS[config.benchmark] if config.benchmark else None
    with accelerator.main_process_first():
        prompts = config.prompts or str(_published(benchmark))
        inputs = {"prompts": Input(prompts, dataset_hash(prompts), data=True)}
    counts = count_questions(lambda: _questions(benchmark, prompts), config.shard_size)
    deviation = benchmark.deviation(counts) if benchmark else ""
    if deviation:
        reporter.warn(deviation)
    # What the first process has hashed, the others find in the cache.
    with accelerator.main_process_first():
        models = find_models(config, accelerator, reporter)
    refuse_without_template(models, counts, reporter)
    settings = {name: _settings(config, benchmark, model.habits) for name, model in models.items()}
    _refuse_alike(settings, config, counts, reporter)
    refuse_changed(prompts, inputs["prompts"].hash)
    for model in models.values():
        inputs |= model.inputs
    team = who_holds(config.device_map, accelerator)
    worker = this_worker(accelerator, config.worker, team)
    job = (config, reporter, worker, accelerator.device, benchmark, prompts, counts, settings, models, inputs, team)
    return GenerateJob(*job)


def _published(benchmark: Benchmark | None) -> Path:
    assert benchmark is not None
    return benchmark.prompts()


def _questions(benchmark: Benchmark | None, prompts: str) -> Iterator[Question]:
    if benchmark is None:
        return read_questions(prompts)
    rows = ((row.where, row.columns) for row in read_rows(prompts))
    return benchmark.questions(rows, find_source(prompts).rows.start)


def _settings(config: GenerateConfig, benchmark: Benchmark | None, habits: Habits = NO_HABITS) -> RequestSettings:
    """What was asked for, else the model's habits, else the benchmark's own, else ours."""
    usual = benchmark.decoding if benchmark else _USUAL
    temperature = habits.temperature if config.temperature is None else config.temperature
    top_p = config.top_p or (usual.top_p if habits.top_p is None else habits.top_p)
    max_new_tokens = config.max_new_tokens or usual.max_new_tokens
    return RequestSettings(temperature, usual.temperature, top_p, max_new_tokens, config.samples, config.seed)


def _refuse_alike(
    settings: dict[str, RequestSettings], config: GenerateConfig, counts: QuestionCounts, reporter: Reporter
) -> None:
    """Several samples at temperature 0 are one sample several times."""
    if config.samples == 1:
        return
    for name, each in settings.items():
        own = each.temperature is None
        if (each.usual_temperature if own else each.temperature) == 0:
            whose = f"is usual for {config.benchmark}" if own else f"generation_config.json of {name} asks for"
            raise SepoError(
                f"{config.samples} samples at temperature 0, which {whose}, would be alike",
                hint="give --temperature 1, or leave out --samples",
            )
    if counts.greedy and any(each.temperature is None for each in settings.values()):
        reporter.warn(
            f"{counts.greedy:,} of {counts.questions:,} prompts are asked at temperature 0, as {config.benchmark}"
            f" has it: the {config.samples} samples of each are alike; --temperature asks all prompts at one"
        )


def _compute(job: GenerateJob, work: Run) -> None:
    """Fill this worker's shards that are not there, whole, yet."""
    units, config = job.units(), job.config
    mine = [units[index] for index in job.worker.share(len(units))]
    missing = job.team.agreed(lambda: [unit for unit in mine if not _is_there(work, unit)])
    job.reporter.say(
        f"{counted(job.counts.questions, 'prompt')} = {counted(len(job.counts.answers), 'shard')}"
        f" of up to {config.shard_size:,}"
    )
    if len(missing) < len(mine):
        job.reporter.say(f"there already: {counted(len(mine) - len(missing), 'shard')}")
    wanted = {name: {unit.shard for unit in missing if unit.model == name} for name in job.models}
    refuse_unserved([job.models[name] for name, shards in wanted.items() if shards], config)
    total = sum(job.counts.answers[unit.shard] for unit in missing) * config.samples
    with job.reporter.task("generate", total, "answers") as task:
        for name, shards in wanted.items():
            if shards:
                _answer(job, work, job.models[name], shards, task)


def _answer(job: GenerateJob, work: Run, model: AnsweringModel, wanted: set[int], task: Task) -> None:
    """One model's answers, shard by shard; one shard is in memory at a time."""
    folder = work.folder / model.name
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with (
        open_engine(model, job.config, job.device, job.reporter, task) as own,
        asked_by_the_first(own, job.team) as engine,
    ):
        for shard, questions in _shards(job.questions(), job.config.shard_size, wanted) if job.team.first else ():
            # What is asked from here on is what was read; a journal holds no answer to other prompts than the run's.
            refuse_changed(job.prompts, job.inputs["prompts"].hash)
            started = time.monotonic()
            with Journal(folder / journal_name(shard), work.fingerprint) as journal:
                answers = answer_shard(questions, engine, job.settings[model.name], journal, task)
                work.refuse_if_lost()
                write_answers(place_of(folder), answers_name(shard), answers, work.fingerprint)
                write_timing(folder, shard, journal.tokens, time.monotonic() - started)
                journal.remove()


def _shards(questions: Iterable[Question], size: int, wanted: set[int]) -> Iterator[tuple[int, list[Question]]]:
    """The questions of each shard that is wanted, in order."""
    stream = iter(questions)
    for shard in range(max(wanted) + 1):
        part = list(itertools.islice(stream, size))
        if shard in wanted:
            yield shard, part


def _is_there(work: Run, unit: WorkUnit) -> bool:
    return own_shard(place_of(work.folder / unit.model), answers_name(unit.shard), work.fingerprint) is not None


def _write(job: GenerateJob, work: Run) -> Summary:
    """Where the shards of all workers are there, write the official files and finish the run."""
    missing = [unit.name for unit in job.units() if not _is_there(work, unit)]
    if work.finished_by_another():
        return work.nothing_to_do("answers")
    if missing:
        return work.unfinished(str(job.worker), missing)
    tallies = {name: tallied(_answers(job, work, name), job.settings[name].max_new_tokens) for name in job.models}
    official, steps, warnings = _official(job, work)
    warnings = [each for name, tally in tallies.items() for each in tally.warnings(name)] + warnings
    for warning in warnings:
        job.reporter.warn(warning)
    rates = {name: read_rate(work.folder / name) for name in job.models}
    models = {
        name: {"model": model.source, "hash": model.weights.hash, "tokens_per_second": rates[name]}
        | {"generation_config": model.habits.given(), "counts": tallies[name].as_json()}
        for name, model in job.models.items()
    }
    work.finish(
        files=[unit.name for unit in job.units()] + official,
        device=str(job.config.base_url or job.device),
        benchmark=job.config.benchmark,
        counts={"questions": job.counts.questions, "samples": job.config.samples},
        models=models,
        warnings=warnings,
    )
    return _summary(work, tallies, rates, official, steps, warnings)


def _answers(job: GenerateJob, work: Run, model: str) -> Iterator[Answer]:
    for shard in range(len(job.counts.answers)):
        yield from read_answers(place_of(work.folder / model), answers_name(shard), DAMAGED)


def _official(job: GenerateJob, work: Run) -> tuple[list[str], str, list[str]]:
    """Write what the benchmark's own tools read: the names of the files, how to go on, and what to be warned of."""
    if job.benchmark is None:
        return [], "", []
    files, warnings = [NEXT_STEPS], []
    for name in job.models:
        written = job.benchmark.write_files(work.folder, name, _answers(job, work, name))
        # Models share one: the answers of the baseline that all are compared with.
        files += [each for each in written.files if each not in files]
        warnings += written.warnings
        work.promise(files)
    steps = job.benchmark.next_steps(work.folder, [*job.models])
    # In a script: at a prompt it would close the shell.
    write_text(work.folder / NEXT_STEPS, f"set -e\n{steps.text}\n")
    return [*files, *steps.files], steps.text, warnings


def _summary(
    work: Run,
    tallies: dict[str, AnswerTally],
    rates: dict[str, float | None],
    files: list[str],
    steps: str,
    warnings: list[str],
) -> Summary:
    rows = [(name, tally.in_words(rates[name])) for name, tally in tallies.items()]
    # Of several processes only the first one's reporter speaks, and any of them may be the one that finishes.
    rows += [("warning", warning) for warning in warnings]
    rows += [("file", work.place.at(name)) for name in files]
    rows += [("next" * (not number), line) for number, line in enumerate(steps.strip().split("\n")) if steps]
    return Summary(f"answers in {work.place}", rows, every_process=True)
