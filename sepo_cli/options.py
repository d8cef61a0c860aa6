"""Every option once: its spelling, its type, its help and its place in `--help`. Defaults live in `stages.configs`.

An alias carries no default: a command's signature reads it from its dataclass. `tests/cli/test_options.py` holds that
fields and options are the same set.
"""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from stages.catalogue import defaults_in_words, measuring, objectives, rules, users
from stages.configs import (
    MIXED_PRECISIONS,
    OPTIMIZERS,
    ORACLE_SIZES,
    OVERLONG,
    PRECISIONS,
    QUANTIZATIONS,
    SCHEDULERS,
    TRACKERS,
)

REQUIRED: Final = "Required"
DATA: Final = "Data"
METHOD: Final = "Method"
REFERENCE: Final = "Reference (supervised fine-tuning)"
OPTIMISER: Final = "Optimiser"
LORA: Final = "LoRA and QLoRA"
MACHINE: Final = "Machine and output"
SWITCHES: Final = "Switches"


def _option(panel: str, text: str, *spellings: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*spellings, help=text, rich_help_panel=panel, metavar=metavar, **more)


def _switch(text: str) -> Any:
    # Typer would print <bool> behind both flags and `no-overwrite` as a default; off is what a switch is.
    return _option(SWITCHES, text, metavar="", show_default=False)


def _own(name: str, text: str) -> Any:
    """An option of some objectives or rules, each with a default of its own."""
    return _option(METHOD, f"{text} Default: {defaults_in_words(name)}.")


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
    float,
    _option(
        OPTIMISER,
        "Peak learning rate. Paper: 5e-7 (Table 5), for large models; small ones need more, and LoRA about ten times"
        " as much.",
    ),
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
MixedPrecision = Annotated[
    str,
    _option(
        OPTIMISER,
        "no: everything in float32; bf16, fp16 (GPUs only): half-precision products in the layers, while weights,"
        " moments, logits and losses stay float32.",
        metavar=_one_of(MIXED_PRECISIONS),
    ),
]
GradientCheckpointing = Annotated[
    bool, _switch("Compute every layer twice instead of keeping it for the backward pass: less memory, a third slower.")
]
Compile = Annotated[bool, _switch("Compile the layers with torch.compile: minutes at first, faster steps after that.")]
MaxGradNorm = Annotated[float, _option(OPTIMISER, "Gradients are scaled down to this norm.")]
Optim = Annotated[
    str,
    _option(
        OPTIMISER,
        "8bit: AdamW with its two moments in 8 bits; paged: moments move to the host's memory where a GPU's runs out."
        " Both by bitsandbytes.",
        metavar=_one_of(OPTIMIZERS),
    ),
]
AdamBeta1 = Annotated[float, _option(OPTIMISER, "AdamW's beta1. Authors' code: 0.9.")]
AdamBeta2 = Annotated[float, _option(OPTIMISER, "AdamW's beta2. Authors' code: 0.95.")]
AdamEpsilon = Annotated[float, _option(OPTIMISER, "AdamW's epsilon.")]

# --- LoRA ---
LoraRank = Annotated[
    int,
    _option(
        LORA,
        "Train an adapter of this rank and leave the model's own weights alone; 0 = train all weights. Wants about ten"
        " times the learning rate.",
    ),
]
LoraAlpha = Annotated[
    float | None,
    _option(LORA, "Scale of the adapter: what it adds is times alpha / rank. Without it, twice the rank."),
]
LoraTargetModules = Annotated[
    str | None,
    _option(
        LORA,
        "Layers that get an adapter, by their names: q_proj,v_proj. Without it, all linear layers but the head.",
        metavar="NAMES",
    ),
]
Quantize = Annotated[
    str | None,
    _option(
        LORA,
        "Hold the model's own weights in so many bits while the adapter is trained (QLoRA): 4bit is NF4, 8bit is"
        " LLM.int8.",
        metavar=_one_of(QUANTIZATIONS),
    ),
]
Merge = Annotated[bool, _switch("Add the adapter to its model's weights at the end: an ordinary model folder.")]

SaveSteps = Annotated[
    int,
    _option(
        MACHINE,
        "Steps between checkpoints, from which an interrupted run goes on; SIGTERM and Ctrl-C leave one too;"
        " 0 = no checkpoints.",
    ),
]
SaveTotalLimit = Annotated[
    int, _option(MACHINE, "Checkpoints to keep: the newest ones; an older one serves where the newest is damaged.")
]
Resume = Annotated[
    bool,
    _switch(
        "Go on with an interrupted run of the same settings; --no-resume deletes what it made and starts anew."
        " A finished run is left as it is either way."
    ),
]
ReportTo = Annotated[
    str,
    _option(
        MACHINE,
        f"Where metrics go beside metrics.jsonl: {', '.join(TRACKERS)}. Needs that package; for tensorboard:"
        " pip install 'sepo[report]'.",
        metavar="NAME",
    ),
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
        "The loss. On selected tokens: sepo (Eq. 11), sepo-hinge (the ranking variant in the authors' code). On all"
        " tokens unless --select says otherwise: simpo and the others, each by its paper's name.",
        metavar=_one_of(tuple(objectives())),
    ),
]
Select = Annotated[
    str | None,
    _option(
        METHOD,
        "Which tokens count. oracle: by their score; random: as many by chance, the control that an oracle has to beat;"
        " the README has the others. Default: oracle for sepo and sepo-hinge, else all.",
        metavar=_one_of(tuple(rules())),
    ),
]
PolicyReference = Annotated[
    str | None,
    _option(
        METHOD,
        f"Model that {', '.join(measuring())}, --anchor-margin and --kl-weight measure from; without it, the one the"
        " policy starts from.",
        metavar="FOLDER|NAME",
    ),
]
Gamma = Annotated[float | None, _own("gamma", "Scale of a response's reward (Eq. 11; SimPO's beta). Paper: 2.1.")]
Margin = Annotated[
    float | None,
    _own(
        "margin",
        "Lambda, by which the chosen reward has to lead (Eq. 11; SimPO's gamma; SLiC's delta)."
        " Paper: 0.5 for TinyLlama-1.1B, 0.9 for LLaMA2-7B, 1.3 for LLaMA2-13B.",
    ),
]
PolicyBeta = Annotated[
    float | None, _own("beta", "How dearly leaving the reference is paid for; IPO's tau, ORPO's lambda.")
]
Alpha = Annotated[
    float | None, _own("alpha", "TDPO2's weight of the sequential KL; R-DPO's weight of the difference in length.")
]
PolicySftWeight = Annotated[
    float | None, _own("sft_weight", "Weight of an SFT term on the chosen response beside the loss.")
]
KlWeight = Annotated[
    float | None,
    _own(
        "kl_weight",
        "Weight of KL(policy || reference) over the whole vocabulary, a mean over all response tokens, beside a loss"
        " that has no reference.",
    ),
]
AnchorMargin = Annotated[
    bool, _switch(f"Count the log-probs of selected tokens from the reference's ({', '.join(users('anchor_margin'))}).")
]
ChosenRatio = Annotated[
    float | None,
    _own("chosen_ratio", "Share k of a chosen response's tokens to train on. Paper: 0.3, the highest scores."),
]
RejectedRatio = Annotated[
    float | None,
    _own("rejected_ratio", "Share k of a rejected response's tokens to train on. Paper: 0.3, the lowest scores."),
]
AuthorsRule = Annotated[
    bool,
    _switch(
        "Select as the authors' code does: never the first token of a response, and floor(k (n - 1)) of the others"
        f" ({', '.join(users('authors_rule'))})."
    ),
]
Threshold = Annotated[
    float | None, _own("threshold", "Least score of a chosen token, and its negative the most of a rejected one, nats.")
]
SoftK = Annotated[float | None, _own("soft_k", "k of the weights k exp(mu clamp(score, low, high)).")]
SoftMu = Annotated[float | None, _own("soft_mu", "mu of these weights; its sign is turned in rejected responses.")]
SoftLow = Annotated[float | None, _own("soft_low", "Scores below it count as it in these weights, nats.")]
SoftHigh = Annotated[float | None, _own("soft_high", "Scores above it count as it in these weights, nats.")]
AutoShare = Annotated[
    float | None,
    _own("auto_share", "Share of a response's reward beyond the scorer's noise that the selected tokens have to hold."),
]

# --- weak to strong ---
Layers = Annotated[
    int | None,
    _option(REQUIRED, "Layers to keep, counted from the embedding; fewer than the model has.", metavar="N"),
]
OtherTokenizer = Annotated[
    str | None,
    _option(
        DATA,
        "Tokenizer that the scores were made with; without it, the one that the scores' manifest names.",
        metavar="FOLDER|NAME",
    ),
]

# --- the demo ---
OracleSize = Annotated[
    str,
    _option(
        DATA,
        "same: the oracle is made of the one model. small: a weaker one beside it, oracle-model/, with half the layers"
        " and half the width, and the same tokenizer.",
        metavar=_one_of(ORACLE_SIZES),
    ),
]
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
