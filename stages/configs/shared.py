"""The options that several commands have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from stages.configs import limits
from stages.configs.option import DATA, MEMORY, METHOD, OUTPUT, REQUIRED, Config, Option, required
from stages.registry import RULES, Objective, Rule, users

_MODEL = "Model to start from: a folder or a hub name (also --model-name-or-path)."
Model = Annotated[str, Option(REQUIRED, "FOLDER|NAME", content=False, help=_MODEL)]
TrustRemoteCode = Annotated[bool, Option(DATA, help="Run Python code that comes with the model.")]


@dataclass(frozen=True, kw_only=True)
class StartsFromModel(Config):
    """What the commands share that start from a model."""

    model: Model = required()
    model_revision: Annotated[str | None, Option(DATA, "REVISION", limit=limits.revision, content=False)] = None
    """Branch, tag or commit of a model on the hub; where a command takes further models, org/name@revision says it."""
    trust_remote_code: TrustRemoteCode = False

    @property
    def model_name(self) -> str:
        """The model as `resolve_model` takes it: ``org/name@revision``."""
        return f"{self.model}@{self.model_revision}" if self.model_revision else self.model


_DATASET = (
    "Preference pairs: JSON Lines, JSON, CSV, TSV (also .gz, .zst), Parquet or Arrow files, or a hub name, org/name"
    " or org/name:split (also --dataset-name)."
)
Dataset = Annotated[str, Option(REQUIRED, "FILE|NAME", content=False, help=_DATASET)]

_SCORES = "Folder of `sepo score`, or its URI, such as s3://bucket/scores."
Scores = Annotated[str, Option(REQUIRED, "FOLDER|URI", content=False, help=_SCORES)]
Demo = Annotated[str, Option(REQUIRED, "FOLDER", content=False, help="Folder of `sepo make-demo`.")]

_OUTPUT = "Folder to write; an interrupted run is continued, a finished one is not redone."
OutputDir = Annotated[str, Option(REQUIRED, "FOLDER", limit=limits.local, content=False, help=_OUTPUT)]
OutputUri = Annotated[str, Option(REQUIRED, "FOLDER|URI", content=False, help=_OUTPUT)]

_OVERWRITE = (
    "Replace an output folder that holds a run with other settings, instead of refusing it"
    " (also --overwrite-output-dir)."
)
Overwrite = Annotated[bool, Option(OUTPUT, content=False, help=_OVERWRITE)]

_COLUMNS = "Names of the columns, where they are not those of a known layout: prompt=question,chosen=good,rejected=bad."
Columns = Annotated[str | None, Option(DATA, "NAMES", limit=limits.columns, help=_COLUMNS)]

_KWARGS = (
    "What the chat template is given for every row, as a JSON object: '{\"enable_thinking\": false}'. What a row's own"
    " column of that name says goes before it."
)
ChatTemplateKwargs = Annotated[str | None, Option(DATA, "JSON", limit=limits.an_object, help=_KWARGS)]

_LENGTH = "Most tokens of prompt and longer response together. Paper: 2048."
MaxLength = Annotated[int, Option(DATA, limit=limits.at_least_two, help=_LENGTH)]

_OVERLONG = (
    "What becomes of a longer pair: drop it; truncate the ends of its responses, without an end of turn; or stop with"
    " an error. Dropped and truncated pairs are counted."
)
Overlong = Annotated[str, Option(DATA, choices=("drop", "truncate", "error"), help=_OVERLONG)]

_EVAL = "Share of the pairs that is never trained on, but judges an oracle and serves --eval-steps; 0 = none."
EvalFraction = Annotated[float, Option(DATA, limit=limits.fraction_below_one, help=_EVAL)]

_STRICT = "Stop if a row of a data set would be dropped, for whatever reason; the reasons are named."
Strict = Annotated[bool, Option(DATA, content=False, help=_STRICT)]

_SEED = "Seed of everything that is drawn; the same seed writes the same bytes."
Seed = Annotated[int, Option(DATA, limit=limits.not_negative, help=_SEED)]

_TOKENS = (
    "Token budget of one forward pass on one device: bounds the memory and does not change the result. Lower it when"
    " memory runs out."
)
MaxTokensPerDevice = Annotated[int, Option(MEMORY, limit=limits.at_least_two, content=False, help=_TOKENS)]

_WORKER = (
    "Number of this worker, from 1, and how many there are: 3/16. Each takes its share of the shards; whoever"
    " completes them writes the manifest."
)
WorkerNumber = Annotated[str | None, Option(OUTPUT, "N/COUNT", limit=limits.worker, content=False, help=_WORKER)]

_QUANTIZE = (
    "Hold the layers' weights in so many bits, by bitsandbytes: 4bit is NF4, 8bit is LLM.int8. Embeddings and head stay"
    " as they are. It computes another, rounded model."
)
Quantize = Annotated[str | None, Option(MEMORY, choices=("4bit", "8bit"), help=_QUANTIZE)]

_DEVICE_MAP = (
    "For models larger than one GPU. auto: divide them, layer by layer, over all GPUs; layers for which there is no"
    " room wait in the host's memory and are fetched for every batch; in one process. tensor-parallel: divide every"
    " layer over all processes of `torchrun` or `accelerate launch`, which read the same pairs or prompts together."
)
_DEVICE_MAPS = ("auto", "tensor-parallel")
DeviceMap = Annotated[str | None, Option(MEMORY, choices=_DEVICE_MAPS, content=False, help=_DEVICE_MAP)]


@dataclass(frozen=True, kw_only=True)
class RuleOptions(Config):
    """The options of the selection rules; one that is None (or off) has the default of the rule that uses it."""

    chosen_ratio: Annotated[float | None, Option(METHOD, limit=limits.share)] = None
    """Share k of a chosen response's tokens to train on. Paper: 0.3, the highest scores."""
    rejected_ratio: Annotated[float | None, Option(METHOD, limit=limits.share)] = None
    """Share k of a rejected response's tokens to train on. Paper: 0.3, the lowest scores."""
    authors_rule: Annotated[bool, Option(METHOD)] = False
    """Select as the authors' code does: never the first token of a response, and floor(k (n - 1)) of the others."""
    threshold: Annotated[float | None, Option(METHOD, limit=limits.finite)] = None
    """Least score of a chosen token, and its negative the most of a rejected one, nats."""
    soft_k: Annotated[float | None, Option(METHOD, limit=limits.positive)] = None
    """k of the weights k exp(mu clamp(score, low, high))."""
    soft_mu: Annotated[float | None, Option(METHOD, limit=limits.not_negative)] = None
    """mu of these weights; its sign is turned in rejected responses."""
    soft_low: Annotated[float | None, Option(METHOD, limit=limits.finite)] = None
    """Scores below it count as it in these weights, nats."""
    soft_high: Annotated[float | None, Option(METHOD, limit=limits.finite)] = None
    """Scores above it count as it in these weights, nats."""
    auto_share: Annotated[float | None, Option(METHOD, limit=limits.share)] = None
    """Share of a response's reward beyond the scorer's noise that the selected tokens have to hold."""

    def _options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        return {name: getattr(self, name) if self._given(name) else default for name, default in defaults.items()}

    def _given(self, name: str) -> bool:
        value = getattr(self, name, None)
        return value is not None and value is not False

    def _rule_faults(self, rule: str) -> list[str]:
        used = self._options(RULES[rule].options)
        faults = self._unused(f"select {rule}", used, RULES)
        low, high = (used.get(name, 0.0) for name in ("soft_low", "soft_high"))
        return faults + [f"soft_low must be at most soft_high, got {low} and {high}"] * (low > high)

    def _unused(self, kind: str, used: Mapping[str, Any], entries: Mapping[str, Objective | Rule]) -> list[str]:
        """One sentence for each option of the entries that was given and changes nothing."""
        names = dict.fromkeys(option for entry in entries.values() for option in entry.options)
        return [
            f"{name} is no option of {kind}; {have(users(name))} it"
            for name in names
            if self._given(name) and name not in used
        ]


def have(names: list[str]) -> str:
    """``dpo, ipo have`` or ``threshold has``."""
    return f"{', '.join(names)} {'have' if len(names) > 1 else 'has'}"
