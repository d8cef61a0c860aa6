"""The demo with planted truth."""

from dataclasses import dataclass
from typing import Annotated

from stages.configs import limits, shared
from stages.configs.option import DATA, METHOD, REQUIRED, Config, Option, required


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """Write pairs whose true token rewards are known, and a tiny model for them."""

    output_dir: shared.OutputDir = required()
    train_pairs: Annotated[int, Option(DATA, limit=limits.at_least_one)] = 4096
    """Pairs in train.jsonl."""
    test_pairs: Annotated[int, Option(DATA, limit=limits.at_least_one)] = 512
    """Pairs in test.jsonl, whose prompts train.jsonl does not have."""
    rewards: Annotated[str, Option(DATA, choices=("lexical", "contextual", "dense", "sparse"))] = "lexical"
    """What words are worth. lexical: 16 planted words 1 or 2, or as much less. contextual: these, with the other sign
    after a verb or "near" in their sentence. dense: all words but the small ones, N(0, 0.55^2). sparse: two words, 4
    and -4."""
    label_noise: Annotated[float, Option(DATA, limit=limits.fraction_below_one)] = 0.0
    """Share of the labels that a coin decides instead of the rewards."""
    oracle_size: Annotated[str, Option(DATA, choices=("same", "small"))] = "same"
    """same: the oracle is made of the one model. small: a weaker one beside it, oracle-model/, with half the layers and
    half the width, and the same tokenizer."""
    seed: shared.Seed = 42
    overwrite: shared.Overwrite = False


@dataclass(frozen=True, kw_only=True)
class DemoReportConfig(Config):
    """Compare what selection found and policies gained with the planted truth."""

    demo: shared.Demo = required()
    scores: shared.Scores = required()
    models: Annotated[tuple[str, ...], Option(REQUIRED, "NAME=FOLDER", content=False, flags=("--model",))] = required(
        ()
    )
    """A model to sample from and its name in the table; give one for each."""
    reference: Annotated[str, Option(REQUIRED, "FOLDER", content=False)] = required()
    """Model from which KL is measured: where every policy started."""
    output_dir: shared.OutputDir = required()
    samples: Annotated[int, Option(DATA, limit=limits.at_least_two)] = 512
    """Responses to sample from each model, to held-out prompts."""
    seed: shared.Seed = 42
    overwrite: shared.Overwrite = False

    def _faults(self) -> list[str]:
        return [f"models takes NAME=FOLDER, got {item!r}" for item in self.models if "=" not in item]


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """Compare recipes on the demo, over several runs, at equal divergence."""

    runs: Annotated[tuple[str, ...], Option(REQUIRED, "NAME=FILE", content=False, flags=("--run",))] = required(())
    """A recipe's name and an evaluation of one of its runs; give one for each run, a name once for each seed."""
    against: Annotated[str | None, Option(METHOD, "NAME")] = None
    """Recipe from which the others' differences are counted, seed by seed; else the first."""
    output_dir: shared.OutputDir = required()
    overwrite: shared.Overwrite = False

    def _faults(self) -> list[str]:
        return [f"runs takes NAME=EVALUATION, got {item!r}" for item in self.runs if "=" not in item]
