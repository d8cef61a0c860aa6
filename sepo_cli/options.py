"""Every option once: its spelling, its type, its help and its place in `--help`. Defaults live in `stages.configs`.

An alias carries no default: a command's signature reads it from its dataclass. `tests/cli/test_options.py` holds that
fields and options are the same set.
"""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from stages.configs import OBJECTIVES, OVERLONG, PRECISIONS, SCHEDULERS, SELECTIONS

REQUIRED: Final = "Required"
DATA: Final = "Data"
METHOD: Final = "Method"
REFERENCE: Final = "Reference (supervised fine-tuning)"
OPTIMISER: Final = "Optimiser"
MACHINE: Final = "Machine and output"
SWITCHES: Final = "Switches"


def _option(panel: str, text: str, *spellings: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*spellings, help=text, rich_help_panel=panel, metavar=metavar, **more)


def _switch(text: str) -> Any:
    # Typer would print <bool> behind both flags and `no-overwrite` as a default; off is what a switch is.
    return _option(SWITCHES, text, metavar="", show_default=False)


def _one_of(names: tuple[str, ...]) -> str:
    return "|".join(names)


# --- every command ---
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file with any of the options below; flags beat the file, the file beats the defaults.",
    ),
]
OutputDir = Annotated[
    str | None,
    _option(
        REQUIRED, "Folder to write; an interrupted run is continued, a finished one is not redone.", metavar="FOLDER"
    ),
]
Overwrite = Annotated[
    bool,
    _switch(
        "Replace an output folder that holds a run with other settings, instead of refusing it"
        " (also --overwrite-output-dir).",
    ),
]
Seed = Annotated[int, _option(DATA, "Seed of everything that is drawn; the same seed writes the same bytes.")]

# --- every command that loads a model or reads pairs ---
Model = Annotated[
    str | None,
    _option(
        REQUIRED, "Model to start from: a folder or a hub name (also --model-name-or-path).", metavar="FOLDER|NAME"
    ),
]
Dataset = Annotated[
    str | None,
    _option(
        REQUIRED,
        "Preference pairs: JSON Lines, JSON or Parquet (also .gz), or a hub name, org/name or org/name:split"
        " (also --dataset-name).",
        metavar="FILE|NAME",
    ),
]
MaxLength = Annotated[
    int,
    _option(DATA, "Most tokens of prompt and longer response together. Paper: 2048."),
]
TrustRemoteCode = Annotated[bool, _switch("Run Python code that comes with the model. Never on unless asked for.")]
MaxTokensPerDevice = Annotated[
    int,
    _option(
        MACHINE,
        "Token budget of one micro-batch on one device: bounds the memory and does not change the gradient."
        " Lower it when memory runs out.",
    ),
]

# --- the optimiser ---
LearningRate = Annotated[
    float, _option(OPTIMISER, "Peak learning rate. Paper: 5e-7 (Table 5), for large models; small ones need more.")
]
BatchSize = Annotated[int, _option(OPTIMISER, "Pairs per optimiser step, over all devices. Paper: 128.")]
NumTrainEpochs = Annotated[int, _option(OPTIMISER, "Times that every pair is seen. Paper: 1.")]
MaxSteps = Annotated[int, _option(OPTIMISER, "Stop each training phase after so many optimiser steps; 0 = all epochs.")]
WarmupRatio = Annotated[
    float, _option(OPTIMISER, "Share of the steps in which the learning rate rises from 0. Paper: 0.05.")
]
LrSchedulerType = Annotated[
    str,
    _option(
        OPTIMISER,
        f"Course of the learning rate after the warm-up: {', '.join(SCHEDULERS)}. Authors' code: cosine.",
        metavar="NAME",
    ),
]
WeightDecay = Annotated[float, _option(OPTIMISER, "AdamW's weight decay; 0 = none, as in the authors' code.")]
MaxGradNorm = Annotated[float, _option(OPTIMISER, "Gradients are scaled down to this norm.")]
SaveSteps = Annotated[
    int, _option(MACHINE, "Steps between checkpoints, from which an interrupted run goes on; 0 = no checkpoints.")
]
LoggingSteps = Annotated[int, _option(MACHINE, "Steps between lines of metrics.jsonl.")]

# --- validate ---
Json = Annotated[bool, _switch("Print one JSON object for programs, and nothing else, on stdout.")]

# --- train-oracle ---
Beta = Annotated[
    float,
    _option(METHOD, "DPO's beta: how dearly the oracle pays for leaving the reference. Authors' code: 0.1."),
]
Overlong = Annotated[
    str,
    _option(
        DATA,
        "What becomes of a longer pair: drop it; truncate the ends of its responses, without an end of turn; or stop"
        " with an error. Dropped and truncated pairs are counted.",
        metavar=_one_of(OVERLONG),
    ),
]
Strict = Annotated[
    bool, _switch("Stop if a row of a data set would be dropped, for whatever reason; the reasons are named.")
]
Columns = Annotated[
    str | None,
    _option(
        DATA,
        "Names of the columns, where they are not those of a known layout: prompt=question,chosen=good,rejected=bad.",
        metavar="NAMES",
    ),
]
DataFraction = Annotated[
    float,
    _option(DATA, "Share of the pairs that SFT and DPO train on, drawn without replacement; 1.0 = all (section 3.2)."),
]
EvalFraction = Annotated[
    float, _option(DATA, "Share of the pairs that is never trained on and judges the oracle; 0 = no judgement.")
]
SftDataset = Annotated[
    str | None,
    _option(
        REFERENCE,
        "Conversations to fine-tune the reference on; without it, the chosen responses of --dataset.",
        metavar="FILE|NAME",
    ),
]
SftEpochs = Annotated[
    int, _option(REFERENCE, "Epochs of fine-tuning; 0 takes the model as the reference as it is. Paper: 2.")
]
SftLearningRate = Annotated[float, _option(REFERENCE, "Peak learning rate of fine-tuning. Paper: 1e-5.")]
SftBatchSize = Annotated[int, _option(REFERENCE, "Responses per optimiser step of fine-tuning. Paper: 512.")]
SftWeight = Annotated[
    float,
    _option(
        METHOD,
        "Weight of an SFT term on the chosen responses beside DPO, against drift of tokens that both responses share;"
        " 0 = pure DPO, as in the paper.",
    ),
]

# --- score ---
Oracle = Annotated[
    str | None,
    _option(REQUIRED, "Folder of `sepo train-oracle`, which holds the oracle and its reference.", metavar="FOLDER"),
]
OracleModel = Annotated[
    str | None,
    _option(
        REQUIRED, "Instead of --oracle: the oracle alone; needs --reference-model beside it.", metavar="FOLDER|NAME"
    ),
]
ReferenceModel = Annotated[
    str | None,
    _option(REQUIRED, "Instead of --oracle: the model that the oracle was trained from.", metavar="FOLDER|NAME"),
]
Precision = Annotated[
    str,
    _option(
        METHOD,
        "How exactly the models are computed; logits are float32 always. A score is a small difference: see what the"
        " summary says of its noise. medium: products of bfloat16 on a CPU; tf32: on CUDA.",
        metavar=_one_of(PRECISIONS),
    ),
]
NoiseCheck = Annotated[
    float,
    _option(
        METHOD,
        "Share of the pairs (at least 16, at most 512) that is scored again in float32, one at a time, to measure the"
        " noise of the scores; 0 = no check.",
    ),
]
ShardSize = Annotated[int, _option(MACHINE, "Pairs per Parquet file; a finished file survives an interruption.")]
Worker = Annotated[
    str | None,
    _option(
        MACHINE,
        "Number of this worker, from 1, and how many there are: 3/16. Each takes its share of the shards; whoever"
        " completes them writes the manifest.",
        metavar="N/COUNT",
    ),
]
Check = Annotated[
    str | None,
    _option(
        MACHINE,
        "Only verify a folder of scores, of this program or of another: nothing is scored, no other option is needed."
        " With --oracle or --oracle-model its tokenizer is compared too.",
        metavar="FOLDER",
    ),
]

# --- train-policy ---
Scores = Annotated[
    str | None,
    _option(REQUIRED, "Folder of `sepo score`, or its URI, such as s3://bucket/scores.", metavar="FOLDER|URI"),
]
Objective = Annotated[
    str,
    _option(
        METHOD,
        "sepo: the loss of Eq. 11 on the selected tokens; simpo: the same loss on all tokens, the baseline.",
        metavar=_one_of(OBJECTIVES),
    ),
]
Select = Annotated[
    str,
    _option(
        METHOD,
        "oracle: tokens by their score; random: as many tokens by chance, the control that an oracle has to beat.",
        metavar=_one_of(SELECTIONS),
    ),
]
ChosenRatio = Annotated[
    float, _option(METHOD, "Share k of a chosen response's tokens to train on: the highest scores. Paper: 0.3.")
]
RejectedRatio = Annotated[
    float, _option(METHOD, "Share k of a rejected response's tokens to train on: the lowest scores. Paper: 0.3.")
]
Gamma = Annotated[float, _option(METHOD, "Scale of a response's reward (Eq. 11). Paper: 2.1.")]
Margin = Annotated[
    float,
    _option(
        METHOD,
        "Lambda, by which the chosen reward has to lead (Eq. 11)."
        " Paper: 0.5 for TinyLlama-1.1B, 0.9 for LLaMA2-7B, 1.3 for LLaMA2-13B.",
    ),
]

# --- the demo ---
TrainPairs = Annotated[int, _option(DATA, "Pairs in train.jsonl.")]
TestPairs = Annotated[int, _option(DATA, "Pairs in test.jsonl, whose prompts train.jsonl does not have.")]
Demo = Annotated[str | None, _option(REQUIRED, "Folder of `sepo make-demo`.", metavar="FOLDER")]
Models = Annotated[
    list[str] | None,
    _option(
        REQUIRED,
        "A model to sample from and its name in the table; give one for each.",
        "--model",
        metavar="NAME=FOLDER",
    ),
]
DemoReference = Annotated[
    str | None,
    _option(REQUIRED, "Model from which KL is measured: where every policy started.", "--reference", metavar="FOLDER"),
]
Samples = Annotated[int, _option(DATA, "Responses to sample from each model, to held-out prompts.")]

# --- evaluate ---
Evaluated = Annotated[
    list[str] | None,
    _option(
        REQUIRED,
        "A model to evaluate, and its name in the tables (else that of its folder). Give several, each with a --model"
        " of its own (or --compare): they are compared on the same pairs and prompts.",
        "--model",
        "--compare",
        metavar="[NAME=]FOLDER",
    ),
]
HeldOut = Annotated[
    str | None,
    _option(
        REQUIRED,
        "Held-out preference pairs: files or a hub name, as for the other commands. With --demo, its test.jsonl.",
        "--dataset",
        metavar="FILE|NAME",
    ),
]
EvaluationReference = Annotated[
    str | None,
    _option(
        METHOD,
        "Model from which implicit reward and KL are counted: where the policy started. Without one they are left out.",
        "--reference-model",
        metavar="FOLDER|NAME",
    ),
]
Output = Annotated[
    str | None,
    _option(
        MACHINE,
        "JSON file for all figures; FILE.pairs.parquet and FILE.samples.parquet beside it have a row for each pair and"
        " each sample.",
        metavar="FILE.json",
    ),
]
TrainingData = Annotated[
    list[str] | None,
    _option(
        DATA,
        "Pairs that a model was trained on: a folder of `sepo score`, `train-oracle` or `train-policy`, or a data set."
        " What the manifests beside a model tell is looked at anyway. May be given several times.",
        metavar="FOLDER|FILE",
    ),
]
EvaluationDemo = Annotated[
    str | None,
    _option(
        DATA,
        "Folder of `sepo make-demo`, whose planted rewards tell the true reward of samples.",
        "--demo",
        metavar="FOLDER",
    ),
]
EvaluationSamples = Annotated[
    int, _option(DATA, "Responses to sample from each model, at temperature 1; 0 = none.", "--samples")
]
MaxNewTokens = Annotated[int, _option(DATA, "Tokens at which a sampled response is cut.")]
