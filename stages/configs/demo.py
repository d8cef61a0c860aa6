"""The demo with planted truth."""

from dataclasses import dataclass

from stages.configs import limits
from stages.configs.fields import ORACLE_SIZES, outside


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
        rules = {
            "train_pairs": limits.at_least_one,
            "test_pairs": limits.at_least_one,
            "oracle_size": limits.one_of(ORACLE_SIZES),
            "output_dir": limits.local,
        }
        limits.refuse(limits.check(self, **rules))


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
        faults = limits.check(self, samples=limits.at_least_two, seed=limits.not_negative, output_dir=limits.local)
        faults += [f"models takes NAME=FOLDER, got {item!r}" for item in self.models if "=" not in item]
        limits.refuse(faults)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """`sepo compare`: recipes side by side on the demo, from the evaluations of their runs."""

    runs: tuple[str, ...] = outside(())
    against: str | None = None
    output_dir: str = outside()
    overwrite: bool = outside(False)

    def __post_init__(self) -> None:
        faults = limits.check(self, output_dir=limits.local)
        limits.refuse(faults + [f"runs takes NAME=EVALUATION, got {item!r}" for item in self.runs if "=" not in item])
