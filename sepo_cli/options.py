"""Every option once: its spelling, its type, its help and its place in `--help`. Defaults live in `stages.configs`.

An alias carries no default: a command's signature reads it from its dataclass. `tests/cli/test_options.py` holds that
fields and options are the same set.
"""

from pathlib import Path
from typing import Annotated

import typer

from sepo_cli.option_kinds import DATA, MACHINE, METHOD, REFERENCE, REQUIRED, one_of, option, own, switch
from stages.catalogue import measuring, objectives, rules, users
from stages.configs import (
    ORACLE_SIZES,
    OVERLONG,
    PRECISIONS,
)

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
    option(
        REQUIRED, "Folder to write; an interrupted run is continued, a finished one is not redone.", metavar="FOLDER"
    ),
]
Overwrite = Annotated[
    bool,
    switch(
        "Replace an output folder that holds a run with other settings, instead of refusing it"
        " (also --overwrite-output-dir).",
    ),
]
Seed = Annotated[int, option(DATA, "Seed of everything that is drawn; the same seed writes the same bytes.")]

# --- every command that loads a model or reads pairs ---
Model = Annotated[
    str | None,
    option(REQUIRED, "Model to start from: a folder or a hub name (also --model-name-or-path).", metavar="FOLDER|NAME"),
]
Dataset = Annotated[
    str | None,
    option(
        REQUIRED,
        "Preference pairs: JSON Lines, JSON or Parquet (also .gz), or a hub name, org/name or org/name:split"
        " (also --dataset-name).",
        metavar="FILE|NAME",
    ),
]
MaxLength = Annotated[
    int,
    option(DATA, "Most tokens of prompt and longer response together. Paper: 2048."),
]
TrustRemoteCode = Annotated[bool, switch("Run Python code that comes with the model. Never on unless asked for.")]
MaxTokensPerDevice = Annotated[
    int,
    option(
        MACHINE,
        "Token budget of one micro-batch on one device: bounds the memory and does not change the gradient."
        " Lower it when memory runs out.",
    ),
]

# --- validate ---
Json = Annotated[bool, switch("Print one JSON object for programs, and nothing else, on stdout.")]

# --- train-oracle ---
Beta = Annotated[
    float,
    option(METHOD, "DPO's beta: how dearly the oracle pays for leaving the reference. Authors' code: 0.1."),
]
Overlong = Annotated[
    str,
    option(
        DATA,
        "What becomes of a longer pair: drop it; truncate the ends of its responses, without an end of turn; or stop"
        " with an error. Dropped and truncated pairs are counted.",
        metavar=one_of(OVERLONG),
    ),
]
Strict = Annotated[
    bool, switch("Stop if a row of a data set would be dropped, for whatever reason; the reasons are named.")
]
Columns = Annotated[
    str | None,
    option(
        DATA,
        "Names of the columns, where they are not those of a known layout: prompt=question,chosen=good,rejected=bad.",
        metavar="NAMES",
    ),
]
DataFraction = Annotated[
    float,
    option(DATA, "Share of the pairs that SFT and DPO train on, drawn without replacement; 1.0 = all (section 3.2)."),
]
EvalFraction = Annotated[
    float, option(DATA, "Share of the pairs that is never trained on and judges the oracle; 0 = no judgement.")
]
SftDataset = Annotated[
    str | None,
    option(
        REFERENCE,
        "Conversations to fine-tune the reference on; without it, the chosen responses of --dataset.",
        metavar="FILE|NAME",
    ),
]
SftEpochs = Annotated[
    int, option(REFERENCE, "Epochs of fine-tuning; 0 takes the model as the reference as it is. Paper: 2.")
]
SftLearningRate = Annotated[float, option(REFERENCE, "Peak learning rate of fine-tuning. Paper: 1e-5.")]
SftBatchSize = Annotated[int, option(REFERENCE, "Responses per optimiser step of fine-tuning. Paper: 512.")]
SftWeight = Annotated[
    float,
    option(
        METHOD,
        "Weight of an SFT term on the chosen responses beside DPO, against drift of tokens that both responses share;"
        " 0 = pure DPO, as in the paper.",
    ),
]

# --- score ---
Oracle = Annotated[
    str | None,
    option(REQUIRED, "Folder of `sepo train-oracle`, which holds the oracle and its reference.", metavar="FOLDER"),
]
OracleModel = Annotated[
    str | None,
    option(
        REQUIRED, "Instead of --oracle: the oracle alone; needs --reference-model beside it.", metavar="FOLDER|NAME"
    ),
]
ReferenceModel = Annotated[
    str | None,
    option(REQUIRED, "Instead of --oracle: the model that the oracle was trained from.", metavar="FOLDER|NAME"),
]
Precision = Annotated[
    str,
    option(
        METHOD,
        "How exactly the models are computed; logits are float32 always. A score is a small difference: see what the"
        " summary says of its noise. medium: products of bfloat16 on a CPU; tf32: on CUDA.",
        metavar=one_of(PRECISIONS),
    ),
]
NoiseCheck = Annotated[
    float,
    option(
        METHOD,
        "Share of the pairs (at least 16, at most 512) that is scored again in float32, one at a time, to measure the"
        " noise of the scores; 0 = no check.",
    ),
]
ShardSize = Annotated[int, option(MACHINE, "Pairs per Parquet file; a finished file survives an interruption.")]
Worker = Annotated[
    str | None,
    option(
        MACHINE,
        "Number of this worker, from 1, and how many there are: 3/16. Each takes its share of the shards; whoever"
        " completes them writes the manifest.",
        metavar="N/COUNT",
    ),
]
Check = Annotated[
    str | None,
    option(
        MACHINE,
        "Only verify a folder of scores, of this program or of another: nothing is scored, no other option is needed."
        " With --oracle or --oracle-model its tokenizer is compared too.",
        metavar="FOLDER",
    ),
]

# --- train-policy ---
Scores = Annotated[
    str | None,
    option(REQUIRED, "Folder of `sepo score`, or its URI, such as s3://bucket/scores.", metavar="FOLDER|URI"),
]
Objective = Annotated[
    str,
    option(
        METHOD,
        "The loss. On selected tokens: sepo (Eq. 11), sepo-hinge (the ranking variant in the authors' code). On all"
        " tokens unless --select says otherwise: simpo and the others, each by its paper's name.",
        metavar=one_of(tuple(objectives())),
    ),
]
Select = Annotated[
    str | None,
    option(
        METHOD,
        "Which tokens count. oracle: by their score; random: as many by chance, the control that an oracle has to beat;"
        " the README has the others. Default: oracle for sepo and sepo-hinge, else all.",
        metavar=one_of(tuple(rules())),
    ),
]
PolicyReference = Annotated[
    str | None,
    option(
        METHOD,
        f"Model that {', '.join(measuring())}, --anchor-margin and --kl-weight measure from; without it, the one the"
        " policy starts from.",
        metavar="FOLDER|NAME",
    ),
]
Gamma = Annotated[float | None, own("gamma", "Scale of a response's reward (Eq. 11; SimPO's beta). Paper: 2.1.")]
Margin = Annotated[
    float | None,
    own(
        "margin",
        "Lambda, by which the chosen reward has to lead (Eq. 11; SimPO's gamma; SLiC's delta)."
        " Paper: 0.5 for TinyLlama-1.1B, 0.9 for LLaMA2-7B, 1.3 for LLaMA2-13B.",
    ),
]
PolicyBeta = Annotated[
    float | None, own("beta", "How dearly leaving the reference is paid for; IPO's tau, ORPO's lambda.")
]
Alpha = Annotated[
    float | None, own("alpha", "TDPO2's weight of the sequential KL; R-DPO's weight of the difference in length.")
]
PolicySftWeight = Annotated[
    float | None, own("sft_weight", "Weight of an SFT term on the chosen response's selected tokens beside the loss.")
]
KlWeight = Annotated[
    float | None,
    own(
        "kl_weight",
        "Weight of KL(policy || reference) over the whole vocabulary, a mean over all response tokens, beside a loss"
        " that has no reference.",
    ),
]
AnchorMargin = Annotated[
    bool, switch(f"Count the log-probs of selected tokens from the reference's ({', '.join(users('anchor_margin'))}).")
]
ChosenRatio = Annotated[
    float | None,
    own("chosen_ratio", "Share k of a chosen response's tokens to train on. Paper: 0.3, the highest scores."),
]
RejectedRatio = Annotated[
    float | None,
    own("rejected_ratio", "Share k of a rejected response's tokens to train on. Paper: 0.3, the lowest scores."),
]
AuthorsRule = Annotated[
    bool,
    switch(
        "Select as the authors' code does: never the first token of a response, and floor(k (n - 1)) of the others"
        f" ({', '.join(users('authors_rule'))})."
    ),
]
Threshold = Annotated[
    float | None, own("threshold", "Least score of a chosen token, and its negative the most of a rejected one, nats.")
]
SoftK = Annotated[float | None, own("soft_k", "k of the weights k exp(mu clamp(score, low, high)).")]
SoftMu = Annotated[float | None, own("soft_mu", "mu of these weights; its sign is turned in rejected responses.")]
SoftLow = Annotated[float | None, own("soft_low", "Scores below it count as it in these weights, nats.")]
SoftHigh = Annotated[float | None, own("soft_high", "Scores above it count as it in these weights, nats.")]
AutoShare = Annotated[
    float | None,
    own("auto_share", "Share of a response's reward beyond the scorer's noise that the selected tokens have to hold."),
]

# --- weak to strong ---
Layers = Annotated[
    int | None,
    option(REQUIRED, "Layers to keep, counted from the embedding; fewer than the model has.", metavar="N"),
]
OtherTokenizer = Annotated[
    str | None,
    option(
        DATA,
        "Tokenizer that the scores were made with; without it, the one that the scores' manifest names.",
        metavar="FOLDER|NAME",
    ),
]

# --- the demo ---
OracleSize = Annotated[
    str,
    option(
        DATA,
        "same: the oracle is made of the one model. small: a weaker one beside it, oracle-model/, with half the layers"
        " and half the width, and the same tokenizer.",
        metavar=one_of(ORACLE_SIZES),
    ),
]
TrainPairs = Annotated[int, option(DATA, "Pairs in train.jsonl.")]
TestPairs = Annotated[int, option(DATA, "Pairs in test.jsonl, whose prompts train.jsonl does not have.")]
Demo = Annotated[str | None, option(REQUIRED, "Folder of `sepo make-demo`.", metavar="FOLDER")]
Models = Annotated[
    list[str] | None,
    option(
        REQUIRED,
        "A model to sample from and its name in the table; give one for each.",
        "--model",
        metavar="NAME=FOLDER",
    ),
]
Runs = Annotated[
    list[str] | None,
    option(
        REQUIRED,
        "A recipe's name and an evaluation of one of its runs; give one for each run, a name once for each seed.",
        "--run",
        metavar="NAME=FILE",
    ),
]
Against = Annotated[
    str | None,
    option(
        METHOD, "Recipe from which the others' differences are counted, seed by seed; else the first.", metavar="NAME"
    ),
]
DemoReference = Annotated[
    str | None,
    option(REQUIRED, "Model from which KL is measured: where every policy started.", "--reference", metavar="FOLDER"),
]
Samples = Annotated[int, option(DATA, "Responses to sample from each model, to held-out prompts.")]
