"""The demo with planted truth."""

from dataclasses import dataclass
from typing import Annotated

from stages.configs import limits
from stages.configs.fields import ORACLE_SIZES
from stages.configs.option import DATA, METHOD, REQUIRED, Config, Option, required
from stages.configs.shared import Demo, OutputDir, Overwrite, Scores, Seed


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """Write pairs whose true token rewards are known, and a tiny model for them."""

    output_dir: OutputDir = required()
    train_pairs: Annotated[int, Option("Pairs in train.jsonl.", DATA, limit=limits.at_least_one)] = 4096
    test_pairs: Annotated[
        int,
        Option("Pairs in test.jsonl, whose prompts train.jsonl does not have.", DATA, limit=limits.at_least_one),
    ] = 512
    oracle_size: Annotated[
        str,
        Option(
            "same: the oracle is made of the one model. small: a weaker one beside it, oracle-model/, with half the"
            " layers and half the width, and the same tokenizer.",
            DATA,
            "|".join(ORACLE_SIZES),
            limit=limits.one_of(ORACLE_SIZES),
        ),
    ] = "same"
    seed: Seed = 42
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class DemoReportConfig(Config):
    """Compare what selection found and policies gained with the planted truth."""

    demo: Demo = required()
    scores: Scores = required()
    models: Annotated[
        tuple[str, ...],
        Option(
            "A model to sample from and its name in the table; give one for each.",
            REQUIRED,
            "NAME=FOLDER",
            content=False,
            flags=("--model",),
        ),
    ] = required(())
    reference: Annotated[
        str,
        Option("Model from which KL is measured: where every policy started.", REQUIRED, "FOLDER", content=False),
    ] = required()
    output_dir: OutputDir = required()
    samples: Annotated[
        int,
        Option("Responses to sample from each model, to held-out prompts.", DATA, limit=limits.at_least_two),
    ] = 512
    seed: Seed = 42
    overwrite: Overwrite = False

    def _faults(self) -> list[str]:
        return [f"models takes NAME=FOLDER, got {item!r}" for item in self.models if "=" not in item]


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """Compare recipes on the demo, over several runs, at equal divergence."""

    runs: Annotated[
        tuple[str, ...],
        Option(
            "A recipe's name and an evaluation of one of its runs; give one for each run, a name once for each seed.",
            REQUIRED,
            "NAME=FILE",
            content=False,
            flags=("--run",),
        ),
    ] = required(())
    against: Annotated[
        str | None,
        Option("Recipe from which the others' differences are counted, seed by seed; else the first.", METHOD, "NAME"),
    ] = None
    output_dir: OutputDir = required()
    overwrite: Overwrite = False

    def _faults(self) -> list[str]:
        return [f"runs takes NAME=EVALUATION, got {item!r}" for item in self.runs if "=" not in item]
