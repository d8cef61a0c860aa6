"""The options of `sepo evaluate`, their defaults and their limits; see `stages.configs`."""

from dataclasses import dataclass, field
from typing import Final

from stages.configs import limits
from stages.configs.fields import OVERLONG, outside

_none_or_two: Final[limits.Rule] = (lambda x: x == 0 or x >= 2, "0 (none) or at least 2")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`sepo evaluate`: what held-out pairs and samples say of models, each by itself and one against the other."""

    models: tuple[str, ...] = outside(())
    dataset: str | None = outside(None)
    demo: str | None = outside(None)
    reference_model: str | None = outside(None)
    training_data: tuple[str, ...] = field(default=(), metadata={"content": False, "may_be_empty": True})
    output: str | None = outside(None)
    columns: str | None = None
    max_length: int = 2048
    overlong: str = "drop"
    samples: int = 64
    skip_kl: bool = False
    max_new_tokens: int = 256
    seed: int = 42
    strict: bool = outside(False)
    trust_remote_code: bool = False
    max_tokens_per_device: int = outside(4096)
    overwrite: bool = outside(False)

    def __post_init__(self) -> None:
        faults = limits.check(
            self,
            columns=limits.columns,
            overlong=limits.one_of(OVERLONG),
            max_length=limits.at_least_two,
            samples=_none_or_two,
            max_new_tokens=limits.at_least_one,
            seed=limits.not_negative,
            max_tokens_per_device=limits.at_least_two,
        )
        if self.demo and not self.samples:
            faults.append("demo tells the true reward of samples: samples must be at least 2 with it, got 0")
        if self.skip_kl and not self.reference_model:
            faults.append("skip_kl without reference_model: there is no KL to leave out")
        limits.refuse(faults)
