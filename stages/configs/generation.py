"""`sepo generate`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from stages.configs import limits, shared
from stages.configs.fields import PRECISIONS
from stages.configs.option import MEMORY, METHOD, OUTPUT, REQUIRED, Config, Option, required

BENCHMARKS: Final = ("alpaca-eval", "arena-hard", "mt-bench", "ifeval")
ENGINES: Final = ("transformers", "vllm", "openai")
_USERS: Final = {
    "base_url": ("openai",),
    "concurrency": ("openai",),
    "precision": ("transformers",),
    "quantize": ("transformers",),
    "device_map": ("transformers",),
    "max_tokens_per_device": ("transformers",),
    "trust_remote_code": ("transformers", "vllm"),
    "use_generation_config": ("transformers", "vllm"),
}
"""the options that not every engine has, and the engines that have them"""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Config):
    """Let models answer the prompts of a benchmark, as its official judge wants them, or any others, once or several
    times."""

    models: Annotated[tuple[str, ...], Option(REQUIRED, "[NAME=]FOLDER|NAME", content=False, flags=("--model",))] = (
        required(())
    )
    """A model that shall answer, and what its answers are named (else as its folder is). Give several, each with a
    --model of its own. With --engine openai: its name on the server."""
    benchmark: Annotated[str | None, Option(REQUIRED, choices=BENCHMARKS)] = None
    """Whose prompts they are: decides the defaults of how they are asked, and writes the official files."""
    prompts: Annotated[str | None, Option(REQUIRED, "FILE|NAME", content=False)] = None
    """What is asked: files or a hub name, as for the other commands; rows with a prompt, an instruction, turns or
    messages, or those of the benchmark. Default: the benchmark's own prompts, from the hub."""
    output_dir: shared.OutputDir = required()
    chat_template_kwargs: shared.ChatTemplateKwargs = None
    seed: shared.Seed = 42
    trust_remote_code: shared.TrustRemoteCode = False
    samples: Annotated[int, Option(METHOD, limit=limits.at_least_one)] = 1
    """Answers to each prompt."""
    temperature: Annotated[float | None, Option(METHOD, limit=limits.not_negative)] = None
    """0: always the likeliest token. Default: the benchmark's, which may be another for each prompt; else 1."""
    top_p: Annotated[float | None, Option(METHOD, limit=limits.share)] = None
    """Draw from the likeliest tokens that have this share of the probability. Default: the benchmark's, else 1."""
    max_new_tokens: Annotated[int | None, Option(METHOD, limit=limits.at_least_one)] = None
    """Tokens at which an answer is cut. Default: the benchmark's, else 1024."""
    use_generation_config: Annotated[bool, Option(METHOD)] = False
    """Draw as each model's generation_config.json asks: its temperature, top_p, top_k, repetition_penalty, and always
    the likeliest token where do_sample is false. It stands in for the benchmark's temperature and top-p; --temperature
    and --top-p stand above it. What else changes what is drawn is refused; --max-new-tokens stays. Not with --engine
    openai: the file is on the server."""
    engine: Annotated[str, Option(MEMORY, choices=ENGINES)] = "transformers"
    """What computes: this process, vLLM in it, or any server with OpenAI's interface."""
    base_url: Annotated[str | None, Option(MEMORY, "URL", content=False)] = None
    """Of the server, such as http://localhost:8000/v1; its key, if it wants one, in OPENAI_API_KEY."""
    concurrency: Annotated[int, Option(MEMORY, limit=limits.at_least_one, content=False)] = 8
    """Requests that a server is given at a time. More is faster where it computes them together, as vLLM does."""
    precision: Annotated[str, Option(MEMORY, choices=PRECISIONS)] = "float32"
    """How exactly the model is computed; logits are float32 always. medium: products of bfloat16 on a CPU; tf32: on
    CUDA."""
    quantize: shared.Quantize = None
    device_map: shared.DeviceMap = None
    max_tokens_per_device: Annotated[int, Option(MEMORY, limit=limits.at_least_two, content=False)] = 32768
    """Token budget of one batch on one device, prompts and answers together: bounds the memory. Lower it when memory
    runs out; it changes no more than the rounding of answers that are still to come."""
    shard_size: Annotated[int, Option(OUTPUT, limit=limits.at_least_one)] = 128
    """Prompts per Parquet file. The answers of an unfinished one are in its journal."""
    worker: Annotated[str | None, Option(OUTPUT, "N/COUNT", limit=limits.worker, content=False)] = None
    """Number of this worker, from 1, and how many there are: 3/16. Each takes its share of the shards; whoever
    completes them writes the official files and the manifest."""
    overwrite: shared.Overwrite = False

    def _faults(self) -> list[str]:
        faults = []
        for name, engines in _USERS.items():
            if self.engine not in engines and getattr(self, name) != getattr(GenerateConfig, name):
                faults.append(f"{name} is no option of engine {self.engine}; {shared.have([*engines])} it")
        if self.engine == "openai" and not self.base_url:
            faults.append("engine openai needs base_url, such as http://localhost:8000/v1")
        if self.temperature == 0 and self.samples > 1:
            faults.append(f"temperature 0 gives the same answer every time: {self.samples} samples would be alike")
        return faults

    @classmethod
    def missing(cls, given: Mapping[str, Any]) -> list[str]:
        either = [] if given["benchmark"] or given["prompts"] else ["--benchmark (or --prompts)"]
        return super().missing(given) + either
