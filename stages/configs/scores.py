"""The commands that make scores, and those that look before that."""

from dataclasses import dataclass

from stages.configs import limits
from stages.configs.fields import OVERLONG, PRECISIONS, outside, required


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
        faults = limits.check(
            self,
            columns=limits.columns,
            overlong=limits.one_of(OVERLONG),
            worker=limits.worker,
            max_length=limits.at_least_two,
            precision=limits.one_of(PRECISIONS),
            noise_check=limits.share_or_zero,
            shard_size=limits.at_least_one,
            max_tokens_per_device=limits.at_least_two,
        )
        apart = [name for name in ("oracle_model", "reference_model") if getattr(self, name)]
        if self.oracle and apart:
            faults.append(
                "oracle already names both models; oracle_model and reference_model are for models kept apart"
            )
        if not self.oracle and len(apart) < 2 and not self.check:
            faults.append("give oracle (a folder of `sepo train-oracle`), or both oracle_model and reference_model")
        limits.refuse(faults)


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
        limits.refuse(limits.check(self, columns=limits.columns))


@dataclass(frozen=True, kw_only=True)
class CutModelConfig:
    """`sepo cut-model`: the first layers of a model, to make a small oracle of."""

    model: str = outside()
    layers: int = required()
    output_dir: str = outside()
    trust_remote_code: bool = False
    overwrite: bool = outside(False)

    def __post_init__(self) -> None:
        limits.refuse(limits.check(self, layers=limits.at_least_one, output_dir=limits.local))


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
        limits.refuse(
            limits.check(self, columns=limits.columns, overlong=limits.one_of(OVERLONG), max_length=limits.at_least_two)
        )
