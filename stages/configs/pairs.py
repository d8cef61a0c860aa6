"""`sepo pair`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from stages.configs import limits, shared
from stages.configs.fields import PRECISIONS
from stages.configs.option import DATA, MEMORY, METHOD, OUTPUT, REQUIRED, Config, Option, required

REWARD: str = "reward"
_OF_THE_ORACLE = ("max_length", "per_token", "precision", "quantize", "device_map")


@dataclass(frozen=True, kw_only=True)
class PairConfig(Config):
    """Make preference pairs of a model's own samples: the best against the worst answer to each prompt.

    What is best says an oracle, a verifier or a file of rewards.
    """

    answers: Annotated[str, Option(REQUIRED, "ANSWERS", content=False, flags=("ANSWERS",))] = required()
    """Folder of `sepo generate`, with several samples a prompt."""
    output: Annotated[str, Option(REQUIRED, "FILE.jsonl", limit=limits.jsonl_file, content=False)] = required()
    """File of pairs to write, a data set for the other commands; NAME.manifest.json beside NAME.jsonl tells how it was
    made, and what was left out."""
    oracle: Annotated[str | None, Option(REQUIRED, "FOLDER", content=False)] = None
    """Rank by the oracle in this folder of `sepo train-oracle`: an answer's reward is the sum of its token scores."""
    oracle_model: Annotated[str | None, Option(REQUIRED, "FOLDER|NAME", content=False)] = None
    """Instead of --oracle: the oracle alone; needs --reference-model beside it."""
    reference_model: Annotated[str | None, Option(REQUIRED, "FOLDER|NAME", content=False)] = None
    """Instead of --oracle: the model that the oracle was trained from."""
    verifier: Annotated[str | None, Option(REQUIRED, "NAME|MODULE:FUNCTION", limit=limits.verifier)] = None
    """Rank by a function of the prompt's row and the answer's text, function(row: dict, answer: str) -> float: one of
    a module of your own, in this folder or installed. Or ifeval, the share of IFEval's instructions that an answer
    follows, and ifeval-loose, the same by its loose reading."""
    rewards: Annotated[str | None, Option(REQUIRED, "FILE", content=False)] = None
    """Rank by a file (JSON Lines, CSV, Parquet ...) with a row for each answer: question_id, sample (from 0), and its
    reward, such as a judge's grade."""
    column: Annotated[str | None, Option(DATA, "NAME")] = None
    """Column of --rewards that holds the reward. Default: reward."""
    model: Annotated[str | None, Option(DATA, "NAME")] = None
    """Whose answers, where the folder has those of several models."""
    min_gap: Annotated[float, Option(METHOD, limit=limits.not_negative)] = 0.0
    """Least difference of the two rewards. Equal rewards make no pair, whatever this is. What differs by less than a
    billionth counts as equal."""
    per_token: Annotated[bool, Option(METHOD)] = False
    """Rank by the oracle's mean score of a token, and not by the sum."""
    keep_cut: Annotated[bool, Option(METHOD)] = False
    """Take also answers that were cut before their end. In a pair every answer has its end of turn: they teach to
    end in the middle of a sentence."""
    max_length: shared.MaxLength = 2048
    precision: Annotated[str, Option(MEMORY, choices=PRECISIONS)] = "float32"
    """How exactly the oracle and its reference are computed, as in `sepo score`."""
    quantize: shared.Quantize = None
    device_map: shared.DeviceMap = None
    trust_remote_code: shared.TrustRemoteCode = False
    max_tokens_per_device: shared.MaxTokensPerDevice = 4096
    overwrite: Annotated[bool, Option(OUTPUT, content=False)] = False
    """Replace pairs that were made with other settings, instead of refusing."""

    @property
    def reward_column(self) -> str:
        return REWARD if self.column is None else self.column

    def _faults(self) -> list[str]:
        by_oracle = bool(self.oracle or self.oracle_model or self.reference_model)
        named = {"oracle": by_oracle, "verifier": self.verifier, "rewards": self.rewards}
        given = [name for name, value in named.items() if value]
        faults = []
        if len(given) > 1:
            faults.append(f"{' and '.join(given)} each rank the answers; give one of them")
        if self.oracle and (self.oracle_model or self.reference_model):
            faults.append("oracle names both models; oracle_model and reference_model are for models kept apart")
        if by_oracle and not self.oracle and not (self.oracle_model and self.reference_model):
            faults.append("oracle_model and reference_model go together")
        if self.column is not None and not self.rewards:
            faults.append("column is of the file that rewards names")
        if given and not by_oracle:
            changed = (name for name in _OF_THE_ORACLE if getattr(self, name) != getattr(type(self), name))
            faults += [f"{name} changes nothing without an oracle" for name in changed]
        return faults

    @classmethod
    def missing(cls, given: Mapping[str, Any]) -> list[str]:
        rankings = ("oracle", "oracle_model", "reference_model", "verifier", "rewards")
        either = [] if any(given[name] for name in rankings) else ["--oracle (or --verifier or --rewards)"]
        return super().missing(given) + either
