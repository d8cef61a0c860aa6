"""The commands that make scores, and those that look before that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from stages.configs import limits, shared
from stages.configs.fields import PRECISIONS
from stages.configs.option import DATA, MEMORY, METHOD, OUTPUT, REQUIRED, Config, Option, required
from stages.registry import RULES

_MODEL_FREE = tuple(name for name, rule in RULES.items() if "start_logps" not in rule.needs and name != "soft")
"""the rules that need no model and do not select every token with a weight of its own"""

COUNTS: str = "counts"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """Score every response token: oracle minus reference log-prob."""

    dataset: shared.Dataset = required()
    output_dir: shared.OutputUri = required()
    oracle: Annotated[str | None, Option(REQUIRED, "FOLDER", content=False)] = None
    """Folder of `sepo train-oracle`, which holds the oracle and its reference."""
    oracle_model: Annotated[str | None, Option(REQUIRED, "FOLDER|NAME", content=False)] = None
    """Instead of --oracle: the oracle alone; needs --reference-model beside it."""
    reference_model: Annotated[str | None, Option(REQUIRED, "FOLDER|NAME", content=False)] = None
    """Instead of --oracle: the model that the oracle was trained from."""
    columns: shared.Columns = None
    chat_template_kwargs: shared.ChatTemplateKwargs = None
    max_length: shared.MaxLength = 2048
    overlong: shared.Overlong = "drop"
    precision: Annotated[str, Option(MEMORY, choices=PRECISIONS)] = "float32"
    """How exactly the models are computed; logits are float32 always. A score is a small difference: see what the
    summary says of its noise. medium: products of bfloat16 on a CPU; tf32: on CUDA."""
    quantize: shared.Quantize = None
    device_map: shared.DeviceMap = None
    center: Annotated[bool, Option(METHOD)] = False
    """Measure KL(reference || oracle) over the whole vocabulary at every response token too, in columns beside the
    scores, for `denoise` to centre them by. Computes the reference's log-probs anew where they are known."""
    noise_check: Annotated[float, Option(MEMORY, limit=limits.share_or_zero, content=False)] = 0.01
    """Share of the pairs (at least 16, at most 512) that is scored again in float32, one at a time, to measure the
    noise of the scores; 0 = no check."""
    shard_size: Annotated[int, Option(OUTPUT, limit=limits.at_least_one)] = 4096
    """Pairs per Parquet file; a finished file survives an interruption."""
    trust_remote_code: shared.TrustRemoteCode = False
    max_tokens_per_device: shared.MaxTokensPerDevice = 4096
    strict: shared.Strict = False
    worker: shared.WorkerNumber = None
    overwrite: shared.Overwrite = False

    def _faults(self) -> list[str]:
        faults = []
        apart = [name for name in ("oracle_model", "reference_model") if getattr(self, name)]
        if self.oracle and apart:
            faults.append("oracle names both models; oracle_model and reference_model are for models kept apart")
        if not self.oracle and len(apart) < 2:
            faults.append("give oracle (a folder of `sepo train-oracle`), or both oracle_model and reference_model")
        return faults

    @classmethod
    def missing(cls, given: Mapping[str, Any]) -> list[str]:
        apart = {"--oracle-model": given["oracle_model"], "--reference-model": given["reference_model"]}
        named = sum(map(bool, apart.values()))
        if given["oracle"] or named == 2:
            return super().missing(given)
        either = (
            [name for name, value in apart.items() if not value] if named else [f"--oracle (or {' and '.join(apart)})"]
        )
        return super().missing(given) + either


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Config):
    """Say whether a folder of scores is sound, of this program or of another."""

    scores: Annotated[str, Option(REQUIRED, "SCORES", content=False, flags=("SCORES",))] = required()
    """Folder to check, or its URI."""
    model: Annotated[str | None, Option(DATA, "FOLDER|NAME", content=False)] = None
    """Oracle or policy whose tokenizer the scores should be of."""
    trust_remote_code: shared.TrustRemoteCode = False

    def _faults(self) -> list[str]:
        unused = self.trust_remote_code and not self.model
        return ["trust_remote_code needs model: without it no code of a model is run"] if unused else []


@dataclass(frozen=True, kw_only=True)
class InspectConfig(shared.RuleOptions):
    """Look at scores: what an oracle rewards in all pairs, or every token of some.

    Without --pair, --search, --sort and --limit a summary of the folder.
    """

    scores: Annotated[str, Option(REQUIRED, "SCORES", content=False, flags=("SCORES",))] = required()
    """Folder to look at, or its URI."""
    pair: Annotated[int | None, Option(DATA, "N", limit=limits.not_negative, content=False)] = None
    """Show the pair whose pair_id this is."""
    search: Annotated[str | None, Option(DATA, "TEXT", content=False)] = None
    """Show pairs whose prompt or response has this text, in capital or small letters."""
    sort: Annotated[str | None, Option(DATA, choices=("margin", "wrong", "noise", "length"), content=False)] = None
    """Show first the pairs of the highest margin; the wrong ones, whose margin is the lowest below 0; those with the
    largest share of tokens within the scorer's noise; or the longest. Without it they stay in order."""
    limit: Annotated[int | None, Option(DATA, limit=limits.at_least_one, content=False)] = None
    """Pairs to show. Default: 5."""
    tokenizer: Annotated[str | None, Option(DATA, "FOLDER|NAME", content=False)] = None
    """Tokenizer that the scores were made with; without it, the one that the scores' manifest names."""
    select: Annotated[str, Option(METHOD, choices=_MODEL_FREE, content=False)] = "oracle"
    """Rule of `sepo train-policy` whose tokens are called selected."""
    seed: shared.Seed = 42
    json: Annotated[bool, Option(OUTPUT, content=False)] = False
    """Print one JSON object for programs, and nothing else, on stdout."""

    @property
    def shows_pairs(self) -> bool:
        """Whether pairs are asked for, and not a summary."""
        return any(value is not None for value in (self.pair, self.search, self.sort, self.limit))

    @property
    def rule_options(self) -> dict[str, Any]:
        """The rule's options, by name."""
        return self._options(RULES[self.select].options)

    def _faults(self) -> list[str]:
        faults = super()._faults() + self._rule_faults(self.select)
        if self.pair is not None and (self.search is not None or self.sort is not None):
            faults.append("pair names what to show; search and sort are for other pairs")
        return faults


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Config):
    """Show what the cache of ids and measurements holds, or remove what was not used for long."""

    action: Annotated[str, Option(OUTPUT, "ACTION", choices=("show", "prune"), content=False, flags=("ACTION",))] = (
        "show"
    )
    """What to do: show or prune."""
    older_than: Annotated[float, Option(OUTPUT, "DAYS", limit=limits.not_negative, content=False)] = 30
    """With prune: remove what nobody made or read for so many days."""

    def _faults(self) -> list[str]:
        unused = self.action == "show" and self.older_than != CacheConfig.older_than
        return ["older_than needs prune: show removes nothing"] if unused else []


@dataclass(frozen=True, kw_only=True)
class ProjectScoresConfig(shared.StartsFromModel):
    """Carry scores over to the tokens of a model with another tokenizer."""

    scores: shared.Scores = required()
    dataset: shared.Dataset = required()
    output_dir: shared.OutputUri = required()
    tokenizer: Annotated[str | None, Option(DATA, "FOLDER|NAME", content=False)] = None
    """Tokenizer that the scores were made with; without it, the one that the scores' manifest names."""
    columns: shared.Columns = None
    chat_template_kwargs: shared.ChatTemplateKwargs = None
    worker: shared.WorkerNumber = None
    overwrite: shared.Overwrite = False


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig(Config):
    """Replace each token's score by what tokens like it score over the data set."""

    scores: shared.Scores = required()
    output_dir: shared.OutputUri = required()
    pool: Annotated[str, Option(METHOD, choices=("type", "predecessor", COUNTS))] = "predecessor"
    """Tokens that are alike: those of one type (id), or, beyond what the type scores, those of one type after the same
    token. Means are shrunk by how well they are known. counts: instead of any score, what counts of types in the pairs
    tell of each by themselves, in nats: what an oracle has to beat."""
    calibrate: Annotated[bool, Option(METHOD)] = False
    """Weigh what the type says, what its predecessor adds, what one token alone adds, and what counts of types in the
    pairs tell by themselves, by how much of it preferences bear out; needs scores by `train-oracle --folds`. Calibrated
    scores are rewards in nats."""
    overwrite: shared.Overwrite = False

    def _faults(self) -> list[str]:
        alone = self.calibrate and self.pool == COUNTS
        return (
            super()._faults()
            + ["calibrate weighs counts beside scores, which pool counts leaves out; leave out either"] * alone
        )


@dataclass(frozen=True, kw_only=True)
class CutModelConfig(shared.StartsFromModel):
    """Cut a model to its first layers, to fine-tune a weak oracle from."""

    layers: Annotated[int, Option(REQUIRED, "N", limit=limits.at_least_one)] = required()
    """Layers to keep, counted from the embedding; fewer than the model has."""
    output_dir: shared.OutputDir = required()
    overwrite: shared.Overwrite = False


@dataclass(frozen=True, kw_only=True)
class ExtrapolateConfig(shared.StartsFromModel):
    """Move a model's weights nearer to its reference's or farther from them, without training."""

    reference_model: Annotated[str, Option(REQUIRED, "FOLDER|NAME", content=False)] = required()
    """Model that --model was trained from."""
    scale: Annotated[float, Option(REQUIRED, "C", limit=limits.finite)] = required()
    """Where to go on the line through both: 0 is the reference, 1 the model, 2 twice as far."""
    output_dir: shared.OutputDir = required()
    overwrite: shared.Overwrite = False
