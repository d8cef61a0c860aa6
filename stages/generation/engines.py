"""The models that answer, found and checked before their weights are read, and the engine that runs one."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import torch
from accelerate import Accelerator

from stages.configs import GenerateConfig
from stages.data.template_arguments import given_arguments
from stages.devices.extras import refuse_without
from stages.devices.precision import products
from stages.errors import SepoError
from stages.generation.engine import GenerationEngine
from stages.generation.questions import QuestionCounts
from stages.generation.tally import LiveRate
from stages.generation.transformers_engine import TransformersEngine
from stages.models.ends import ids_named
from stages.models.folders import load_tokenizer, model_hash
from stages.models.habits import NO_HABITS, Habits, habits_of, read_generation_config
from stages.models.loading import loading_of, refuse_unloadable
from stages.models.named import named_models, split_names
from stages.reporting import Quiet, Reporter, Task, printable
from stages.store.files import hash_json
from stages.store.manifest import FINISHED, UNFINISHED, Input
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_fingerprint
from stages.types import Tokenizer

_SAFE: Final = re.compile(r"[A-Za-z0-9_][\w.+@-]{0,99}", re.ASCII)
_TAKEN: Final = (
    "alpaca_eval",
    "arena_hard",
    "config",
    "data",
    "ifeval",
    "mt_bench",
    "next-steps.sh",
    FINISHED,
    UNFINISHED,
)
"""what lies beside the folders of the models: official files, the run's own"""


class AnsweringModel(NamedTuple):
    """A model that answers: a folder, or a name on a server."""

    name: str
    """of its folder of answers, and in official files"""
    source: str
    """its folder, or its name on the server"""
    weights: Input
    tokens: Input | None
    """its tokenizer; None on a server"""
    tokenizer: Tokenizer | None
    generation_config: Input | None = None
    """what counts of its generation_config.json: where answers end, and the habits that are asked for"""
    habits: Habits = NO_HABITS

    @property
    def inputs(self) -> dict[str, Input]:
        """What decides its answers, by name."""
        parts = {"model": self.weights, "tokenizer": self.tokens, "generation config": self.generation_config}
        return {f"{what} {self.name}": part for what, part in parts.items() if part}


def refuse_unsafe_names(items: Iterable[str]) -> None:
    """Names of models become names of folders and files, of other people's tools too."""
    for name in split_names(items):
        if not _SAFE.fullmatch(name) or name in _TAKEN:
            why = (
                "is the name of what else lies in the output folder"
                if name in _TAKEN
                else "cannot be the name of a file"
            )
            raise SepoError(
                f"the model name {printable(name)[:100]!r} {why}",
                hint="give --model NAME=FOLDER, with a NAME of letters, digits and ._+@-",
            )


def find_models(config: GenerateConfig, accelerator: Accelerator, reporter: Reporter) -> dict[str, AnsweringModel]:
    """The models by name, without their weights."""
    if config.engine == "openai":
        refuse_without("openai", "--engine openai", "openai")
        return {name: _served(name, model, config) for name, model in split_names(config.models).items()}
    if config.engine == "vllm":
        refuse_without("vllm", "--engine vllm", "vllm")
    folders = named_models(config.models, reporter)
    refuse_unloadable(config, accelerator, folders.values())
    return {name: _local(name, folder, config, reporter) for name, folder in folders.items()}


def _served(name: str, model: str, config: GenerateConfig) -> AnsweringModel:
    # What stands behind the name is the server's secret, and the server's address another one in every job.
    return AnsweringModel(name, model, Input(str(config.base_url), hash_json([model])), None, None)


def _local(name: str, folder: Path, config: GenerateConfig, reporter: Reporter) -> AnsweringModel:
    tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code, reporter=reporter)
    said = read_generation_config(folder)
    habits = _left_open(habits_of(said, name), config) if config.use_generation_config else NO_HABITS
    if habits.given():
        asked = ", ".join(f"{what} {value:g}" for what, value in habits.given().items())
        reporter.say(f"{name} is asked as its generation_config.json has it: {asked}")
    elif config.use_generation_config:
        asked = "asks for nothing that the options leave open"
        reporter.warn(f"{name}'s generation_config.json {asked}: --use-generation-config changes nothing")
    counted = hash_json([sorted(ids_named(said.get("eos_token_id")), key=str), habits.given()])
    hashes = (model_hash(folder), tokenizer_fingerprint(tokenizer), counted)
    weights, tokens, generation = (Input(str(folder), each) for each in hashes)
    return AnsweringModel(name, str(folder), weights, tokens, tokenizer, generation, habits)


def _left_open(habits: Habits, config: GenerateConfig) -> Habits:
    """Those that no option stands above."""
    given = {"temperature": config.temperature, "top_p": config.top_p}
    return habits._replace(**{name: None for name, value in given.items() if value is not None})


def refuse_without_template(models: dict[str, AnsweringModel], counts: QuestionCounts, reporter: Reporter) -> None:
    """Without a chat template there is no way to say more than one turn; one turn is given as plain text."""
    for name, model in models.items():
        if model.tokenizer is None or model.tokenizer.chat_template:
            continue
        if counts.needs_template is not None:
            raise SepoError(
                f"{name} has no chat template, and row {counts.needs_template:,} of the prompts has several turns",
                hint="take a model with a chat template: one that was trained to answer",
            )
        reporter.warn(f"{name} has no chat template: it is given the prompts as plain text, to go on with")


@contextmanager
def open_engine(
    model: AnsweringModel, config: GenerateConfig, device: torch.device, reporter: Reporter, task: Task
) -> Iterator[GenerationEngine]:
    """The engine that answers for a model, ready to be asked; between answers it shows in the task how fast it is."""
    if config.engine == "openai":
        yield _ask_server(model, config, reporter)
        return
    assert model.tokenizer is not None
    encoder = Encoder(model.tokenizer, given_arguments(config.chat_template_kwargs))
    if encoder.ignored_arguments:
        unknown = ", ".join(encoder.ignored_arguments)
        reporter.warn(f"{model.name}'s chat template does not know {unknown}: --chat-template-kwargs changes nothing")
    if config.engine == "vllm":
        from stages.generation.vllm_engine import VllmEngine

        folder, trust = Path(model.source), config.trust_remote_code
        yield VllmEngine(folder, encoder, trust_remote_code=trust, habits=model.habits)
        return
    loaded = loading_of(config, device, reporter).load(Path(model.source))
    with products(config.precision):
        yield TransformersEngine(
            loaded,
            encoder,
            max_tokens=config.max_tokens_per_device,
            habits=model.habits,
            reporter=reporter,
            told=LiveRate(task),
        )


def refuse_unserved(models: Iterable[AnsweringModel], config: GenerateConfig) -> None:
    """Ask a server, before it answers for the first of several models, whether it serves them all."""
    for model in models if config.engine == "openai" else ():
        _ask_server(model, config, Quiet())


def _ask_server(model: AnsweringModel, config: GenerateConfig, reporter: Reporter) -> GenerationEngine:
    from stages.generation.openai_engine import OpenAIEngine

    return OpenAIEngine(
        str(config.base_url),
        model.source,
        concurrency=config.concurrency,
        template_arguments=given_arguments(config.chat_template_kwargs),
        reporter=reporter,
    )
