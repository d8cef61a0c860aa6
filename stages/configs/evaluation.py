"""`sepo evaluate` and `sepo results`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from stages.configs import limits, shared
from stages.configs.fields import PRECISIONS
from stages.configs.option import DATA, MEMORY, METHOD, OUTPUT, REQUIRED, Config, Option, required


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Is it better? Judge models on held-out pairs and by their samples, and compare them."""

    models: Annotated[
        tuple[str, ...], Option(REQUIRED, "[NAME=]FOLDER", content=False, flags=("--model", "--compare"))
    ] = required(())
    """A model to evaluate, and its name in the tables (else that of its folder). Give several, each with a --model of
    its own (or --compare): they are compared on the same pairs and prompts."""
    dataset: Annotated[str | None, Option(REQUIRED, "FILE|NAME", content=False)] = None
    """Held-out preference pairs: files or a hub name, as for the other commands. With --demo, its test.jsonl."""
    demo: Annotated[str | None, Option(DATA, "FOLDER", content=False)] = None
    """Folder of `sepo make-demo`, whose planted rewards tell the true reward of samples."""
    reference_model: Annotated[str | None, Option(METHOD, "FOLDER|NAME", content=False)] = None
    """Model from which implicit reward and KL are counted: where the policy started. Without one they are left out."""
    training_data: Annotated[tuple[str, ...], Option(DATA, "FOLDER|FILE", content=False)] = ()
    """Pairs that a model was trained on: a folder of `sepo score`, `train-oracle` or `train-policy`, or a data set.
    What the manifests beside a model tell is looked at anyway. May be given several times."""
    output: Annotated[str | None, Option(OUTPUT, "FILE.json", limit=limits.new_file, content=False)] = None
    """JSON file for all figures; NAME.pairs.parquet and NAME.samples.parquet beside NAME.json have a row for each pair
    and each sample."""
    columns: shared.Columns = None
    chat_template_kwargs: shared.ChatTemplateKwargs = None
    max_length: shared.MaxLength = 2048
    overlong: shared.Overlong = "drop"
    samples: Annotated[int, Option(METHOD, limit=(lambda x: x == 0 or x >= 2, "0 (none) or at least 2"))] = 64
    """Responses to sample from each model, at temperature 1; 0 = none."""
    skip_kl: Annotated[bool, Option(METHOD)] = False
    """Leave out KL, which takes most of the time: two forward passes of every pair, and the whole vocabulary."""
    max_new_tokens: Annotated[int, Option(METHOD, limit=limits.at_least_one)] = 256
    """Tokens at which a sampled response is cut."""
    seed: shared.Seed = 42
    strict: shared.Strict = False
    trust_remote_code: shared.TrustRemoteCode = False
    precision: Annotated[str, Option(MEMORY, choices=PRECISIONS)] = "float32"
    """How exactly the models are computed, as in `sepo score`; logits are float32 always. Models that are compared are
    computed alike, and what rounding adds to their figures is not measured: float32 tells what it was."""
    quantize: shared.Quantize = None
    device_map: shared.DeviceMap = None
    max_tokens_per_device: shared.MaxTokensPerDevice = 4096
    overwrite: shared.Overwrite = False

    @classmethod
    def missing(cls, given: Mapping[str, Any]) -> list[str]:
        either = [] if given["dataset"] or given["demo"] else ["--dataset (or --demo)"]
        return super().missing(given) + either

    def _faults(self) -> list[str]:
        faults = []
        if self.demo and not self.samples:
            faults.append("demo tells the true reward of samples: samples must be at least 2 with it, got 0")
        if self.skip_kl and not self.reference_model:
            faults.append("skip_kl without reference_model: there is no KL to leave out")
        return faults


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(Config):
    """What official judges and verifiers say of models' answers: every figure with its interval, and every lead that is
    none."""

    paths: Annotated[tuple[str, ...], Option(REQUIRED, "PATH...", content=False, flags=("PATH",))] = required(())
    """Folders of `sepo generate`, files that official tools wrote, or folders with any of these below: AlpacaEval's
    annotations.json and leaderboard.csv, Arena-Hard's and MT-Bench's judgments, IFEval's results of lm-eval or of
    Google's script. Answers to IFEval are verified here."""
    seed: shared.Seed = 42
    output: Annotated[str | None, Option(OUTPUT, "FILE.json", limit=limits.new_file, content=False)] = None
    """JSON file for all figures; `sepo report` shows it."""
    json: Annotated[bool, Option(OUTPUT, content=False)] = False
    """Print one JSON object for programs, and nothing else, on stdout."""
    overwrite: Annotated[bool, Option(OUTPUT, content=False)] = False
    """Replace an --output that holds other results."""
