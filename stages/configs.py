"""One frozen dataclass per command: every option, its default and its limits. Loads nothing heavy.

A field marked ``content=False`` decides where or how fast something is made, not what is made; all the others enter
the fingerprint of the stage (`stages.store.manifest`). Faults are collected and raised together, before any model
loads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from stages.catalogue import measuring, objectives, rules, unknown, users
from stages.errors import SepoError

SCHEDULERS: Final = ("cosine", "linear", "constant", "constant_with_warmup")
OVERLONG: Final = ("drop", "truncate", "error")
PRECISIONS: Final = ("float32", "tf32", "medium", "bfloat16")
MIXED_PRECISIONS: Final = ("no", "bf16", "fp16")
OPTIMIZERS: Final = ("adamw", "adamw-8bit", "adamw-paged", "adamw-8bit-paged")
QUANTIZATIONS: Final = ("4bit", "8bit")
ORACLE_SIZES: Final = ("same", "small")
TRACKERS: Final = (
    "none", "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab",
)  # fmt: skip


def outside(default: Any = None) -> Any:
    """A field that does not decide the content of what a stage makes."""
    return field(default=default, metadata={"content": False})


def required() -> Any:
    """A field that decides the content and has no default: None stands for "not given"."""
    return field(default=None)


def column_names(columns: str | None) -> dict[str, str]:
    """``prompt=question,chosen=good`` as ``{"prompt": "question", "chosen": "good"}``; nothing as ``{}``."""
    items = [item.partition("=") for item in columns.split(",")] if columns else []
    return {ours.strip(): theirs.strip() for ours, _, theirs in items}


def module_names(modules: str) -> list[str]:
    """``q_proj, v_proj`` as ``["q_proj", "v_proj"]``."""
    return [name.strip() for name in modules.split(",")]


def worker_numbers(worker: str) -> tuple[int, int]:
    """``3/16`` as ``(3, 16)``; ``(0, 0)`` for what is no such thing."""
    number, _, count = worker.partition("/")
    return (int(number), int(count)) if number.isdecimal() and count.isdecimal() else (0, 0)


def content_settings(config: Any) -> dict[str, Any]:
    """The settings that decide what a stage makes, by field name."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.metadata.get("content", True)}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What every training command shares. The defaults are the paper's (section 4.1, Table 5) where it gives them."""

    learning_rate: float = 5e-7
    batch_size: int = 128
    num_train_epochs: int = 1
    max_steps: int = 0
    warmup_ratio: float = 0.05
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = "adamw"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_target_modules: str | None = None
    quantize: str | None = None
    merge: bool = False
    max_length: int = 2048
    seed: int = 42
    trust_remote_code: bool = False
    mixed_precision: str = "no"
    gradient_checkpointing: bool = outside(False)
    compile: bool = outside(False)
    max_tokens_per_device: int = outside(4096)
    save_steps: int = outside(100)
    save_total_limit: int = outside(1)
    resume: bool = outside(True)
    report_to: str = outside("none")
    logging_steps: int = outside(1)
    overwrite: bool = outside(False)

    def _faults(self) -> list[str]:
        return self._lora_faults() + _check(
            self,
            learning_rate=_positive,
            batch_size=_at_least_one,
            num_train_epochs=_at_least_one,
            max_steps=_not_negative,
            warmup_ratio=_share_or_zero,
            lr_scheduler_type=_one_of(SCHEDULERS),
            weight_decay=_not_negative,
            max_grad_norm=_positive,
            optim=_one_of(OPTIMIZERS),
            adam_beta1=_fraction_below_one,
            adam_beta2=_fraction_below_one,
            adam_epsilon=_positive,
            lora_rank=_not_negative,
            lora_alpha=_positive_if_given,
            lora_target_modules=_modules,
            quantize=_one_of_if_given(QUANTIZATIONS),
            max_length=_at_least_two,
            mixed_precision=_one_of(MIXED_PRECISIONS),
            max_tokens_per_device=_at_least_two,
            save_steps=_not_negative,
            save_total_limit=_at_least_one,
            report_to=_one_of(TRACKERS),
            logging_steps=_at_least_one,
            seed=_not_negative,
        )

    def _lora_faults(self) -> list[str]:
        """Options that say how an adapter is trained, where none is."""
        names = ("lora_alpha", "lora_target_modules", "quantize", "merge")
        idle = [] if self.lora_rank else [name for name in names if getattr(self, name) not in (None, False)]
        return [f"{name} needs lora_rank: without it all weights are trained" for name in idle]

    def __post_init__(self) -> None:
        _raise(self._faults())


@dataclass(frozen=True, kw_only=True)
class OracleConfig(OptimizerConfig):
    """`sepo train-oracle`: SFT, then DPO (arXiv 2408.13518 section 3.2)."""

    model: str = outside()
    dataset: str = outside()
    output_dir: str = outside()
    beta: float = 0.1
    data_fraction: float = 1.0
    eval_fraction: float = 0.05
    columns: str | None = None
    overlong: str = "drop"
    sft_dataset: str | None = outside(None)
    sft_epochs: int = 1
    sft_learning_rate: float = 1e-5
    sft_batch_size: int = 512
    sft_weight: float = 0.0
    strict: bool = outside(False)

    def _faults(self) -> list[str]:
        return super()._faults() + _check(
            self,
            columns=_columns,
            overlong=_one_of(OVERLONG),
            beta=_positive,
            data_fraction=_share,
            eval_fraction=_fraction_below_one,
            sft_epochs=_not_negative,
            sft_learning_rate=_positive,
            sft_batch_size=_at_least_one,
            sft_weight=_not_negative,
        )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """`sepo score`: one score for every response token."""

    dataset: str = outside()
    output_dir: str = outside()
    oracle: str | None = outside(None)
    oracle_model: str | None = outside(None)
    reference_model: str | None = outside(None)
    columns: str | None = None
    max_length: int = 2048
    overlong: str = "drop"
    precision: str = "float32"
    noise_check: float = outside(0.01)
    shard_size: int = 4096
    trust_remote_code: bool = False
    max_tokens_per_device: int = outside(4096)
    strict: bool = outside(False)
    worker: str | None = outside(None)
    overwrite: bool = outside(False)
    check: str | None = outside(None)

    def __post_init__(self) -> None:
        faults = _check(
            self,
            columns=_columns,
            overlong=_one_of(OVERLONG),
            worker=_worker,
            max_length=_at_least_two,
            precision=_one_of(PRECISIONS),
            noise_check=_share_or_zero,
            shard_size=_at_least_one,
            max_tokens_per_device=_at_least_two,
        )
        apart = [name for name in ("oracle_model", "reference_model") if getattr(self, name)]
        if self.oracle and apart:
            faults.append(
                "oracle already names both models; oracle_model and reference_model are for models kept apart"
            )
        if not self.oracle and len(apart) < 2 and not self.check:
            faults.append("give oracle (a folder of `sepo train-oracle`), or both oracle_model and reference_model")
        _raise(faults)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(OptimizerConfig):
    """`sepo train-policy`: an objective on weighted tokens (arXiv 2408.13518 Eq. 11).

    An option that is None (or off) has the default of the objective or of the rule that uses it; see `resolved`.
    """

    model: str = outside()
    scores: str = outside()
    output_dir: str = outside()
    objective: str = "sepo"
    select: str | None = None
    reference_model: str | None = outside(None)
    # Options of objectives.
    gamma: float | None = None
    margin: float | None = None
    beta: float | None = None
    alpha: float | None = None
    sft_weight: float | None = None
    kl_weight: float | None = None
    anchor_margin: bool = False
    # Options of selection rules.
    chosen_ratio: float | None = None
    rejected_ratio: float | None = None
    authors_rule: bool = False
    threshold: float | None = None
    soft_k: float | None = None
    soft_mu: float | None = None
    soft_low: float | None = None
    soft_high: float | None = None
    auto_share: float | None = None

    @property
    def rule(self) -> str:
        """The selection rule: the one asked for, or the objective's own."""
        return self.select or str(objectives()[self.objective].constants.get("SELECT", "all"))

    @property
    def needs(self) -> frozenset[str]:
        """What has to be there beside the policy: reference (log-probs), kl, start_logps, weights."""
        needs = {*objectives()[self.objective].needs, *rules()[self.rule].needs}
        return frozenset(
            needs | ({"reference"} if self.anchor_margin else set()) | ({"kl"} if self.kl_weight else set())
        )

    @property
    def objective_options(self) -> dict[str, Any]:
        """The objective's options, by name."""
        return self._options(objectives()[self.objective].options)

    @property
    def rule_options(self) -> dict[str, Any]:
        """The selection rule's options, by name."""
        return self._options(rules()[self.rule].options)

    def resolved(self) -> "PolicyConfig":
        """The same with the defaults of this objective and this rule filled in; what they do not use stays None."""
        return replace(self, select=self.rule, **self.objective_options, **self.rule_options)

    def _options(self, defaults: dict[str, Any]) -> dict[str, Any]:
        return {name: getattr(self, name) if self._given(name) else default for name, default in defaults.items()}

    def _given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False

    def _faults(self) -> list[str]:
        faults = super()._faults() + _check(
            self,
            gamma=_unless_none(_positive),
            margin=_unless_none(_not_negative),
            beta=_unless_none(_positive),
            alpha=_unless_none(_not_negative),
            sft_weight=_unless_none(_not_negative),
            kl_weight=_unless_none(_not_negative),
            chosen_ratio=_unless_none(_share),
            rejected_ratio=_unless_none(_share),
            threshold=_unless_none(_finite),
            soft_k=_unless_none(_positive),
            soft_mu=_unless_none(_not_negative),
            soft_low=_unless_none(_finite),
            soft_high=_unless_none(_finite),
            auto_share=_unless_none(_share),
        )
        named = [("objective", self.objective, objectives()), ("select", self.select or "all", rules())]
        wrong = [unknown(kind, name, entries) for kind, name, entries in named if name not in entries]
        return faults + (wrong or self._useless())

    def _useless(self) -> list[str]:
        """One sentence for each option that was given and changes nothing."""
        faults = []
        for kind, used, entries in (
            (f"objective {self.objective}", self.objective_options, objectives()),
            (f"select {self.rule}", self.rule_options, rules()),
        ):
            for name in dict.fromkeys(option for entry in entries.values() for option in entry.options):
                if self._given(name) and name not in used:
                    faults.append(f"{name} is no option of {kind}; {_have(users(name))} it")
        if self.reference_model and not self.needs & {"reference", "kl"}:
            faults.append(
                f"reference_model is not used by objective {self.objective} as it is set;"
                f" {_have(measuring())} one, and so have anchor_margin and kl_weight"
            )
        low, high = (self.rule_options.get(name, 0.0) for name in ("soft_low", "soft_high"))
        if low > high:
            faults.append(f"soft_low must be at most soft_high, got {low} and {high}")
        return faults


@dataclass(frozen=True, kw_only=True)
class CutModelConfig:
    """`sepo cut-model`: the first layers of a model, to make a small oracle of."""

    model: str = outside()
    layers: int = required()
    output_dir: str = outside()
    trust_remote_code: bool = False
    overwrite: bool = outside(False)

    def __post_init__(self) -> None:
        _raise(_check(self, layers=_at_least_one))


@dataclass(frozen=True, kw_only=True)
class ProjectScoresConfig:
    """`sepo project-scores`: scores carried over to the tokens of another tokenizer."""

    scores: str = outside()
    model: str = outside()
    dataset: str = outside()
    output_dir: str = outside()
    tokenizer: str | None = outside(None)
    columns: str | None = None
    trust_remote_code: bool = False
    overwrite: bool = outside(False)

    def __post_init__(self) -> None:
        _raise(_check(self, columns=_columns))


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """`sepo validate`: what the stages would make of a data set and what that would cost."""

    model: str = outside()
    dataset: str = outside()
    columns: str | None = None
    max_length: int = 2048
    overlong: str = "drop"
    strict: bool = False
    trust_remote_code: bool = False
    json: bool = outside(False)

    def __post_init__(self) -> None:
        _raise(_check(self, columns=_columns, overlong=_one_of(OVERLONG), max_length=_at_least_two))


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """`sepo make-demo`: preference pairs in a planted language, and a tiny model for it."""

    output_dir: str = outside()
    train_pairs: int = 4096
    test_pairs: int = 512
    oracle_size: str = "same"
    seed: int = 42
    overwrite: bool = outside(False)

    def __post_init__(self) -> None:
        rules = {"train_pairs": _at_least_one, "test_pairs": _at_least_one, "oracle_size": _one_of(ORACLE_SIZES)}
        _raise(_check(self, **rules))


@dataclass(frozen=True, kw_only=True)
class DemoReportConfig:
    """`sepo demo-report`: what selection found of the planted tokens, and what the policies gained by it."""

    demo: str = outside()
    scores: str = outside()
    models: tuple[str, ...] = outside(())
    reference: str = outside()
    output_dir: str = outside()
    samples: int = 512
    seed: int = 42
    overwrite: bool = outside(False)

    def __post_init__(self) -> None:
        faults = _check(self, samples=_at_least_two)
        faults += [f"models takes NAME=FOLDER, got {item!r}" for item in self.models if "=" not in item]
        _raise(faults)


Rule = tuple[Callable[[Any], bool], str]

_positive: Rule = (lambda x: 0 < x < math.inf, "above 0 and finite")
_not_negative: Rule = (lambda x: 0 <= x < math.inf, "at least 0 and finite")
_at_least_one: Rule = (lambda x: x >= 1, "at least 1")
_at_least_two: Rule = (lambda x: x >= 2, "at least 2")
_finite: Rule = (lambda x: math.isfinite(x), "finite")
_share: Rule = (lambda x: 0 < x <= 1, "in (0, 1]")
_share_or_zero: Rule = (lambda x: 0 <= x <= 1, "in [0, 1]")
_fraction_below_one: Rule = (lambda x: 0 <= x < 1, "in [0, 1)")


_positive_if_given: Rule = (lambda x: x is None or 0 < x < math.inf, _positive[1])


_modules: Rule = (lambda x: x is None or all(module_names(x)), "names of layers, like q_proj,v_proj")


_columns: Rule = (
    lambda x: all(ours and theirs for ours, theirs in column_names(x).items()),
    "like prompt=question,chosen=good,rejected=bad",
)


_worker: Rule = (
    lambda x: x is None or 1 <= worker_numbers(x)[0] <= worker_numbers(x)[1],
    "like 3/16: its number, from 1, and how many there are",
)


def _unless_none(rule: Rule) -> Rule:
    holds, wanted = rule
    return (lambda x: x is None or holds(x), wanted)


def _have(names: list[str]) -> str:
    """``dpo, ipo have`` or ``threshold has``."""
    return f"{', '.join(names)} {'have' if len(names) > 1 else 'has'}"


def _one_of(names: tuple[str, ...]) -> Rule:
    return (lambda x: x in names, "one of " + ", ".join(names))


def _one_of_if_given(names: tuple[str, ...]) -> Rule:
    return (lambda x: x is None or x in names, _one_of(names)[1])


def _check(config: Any, **rules: Rule) -> list[str]:
    """One sentence for each field that breaks its rule."""
    return [
        f"{name} must be {wanted}, got {getattr(config, name)!r}"
        for name, (holds, wanted) in rules.items()
        if not holds(getattr(config, name))
    ]


def _raise(faults: list[str]) -> None:
    if faults:
        raise SepoError("; ".join(faults), hint="nothing was started and nothing was written")
