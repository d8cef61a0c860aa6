"""The options that only `sepo evaluate` has; see `sepo_cli.options`."""

from typing import Annotated

from sepo_cli.option_kinds import DATA, MACHINE, METHOD, REQUIRED, option, switch

Evaluated = Annotated[
    list[str] | None,
    option(
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
    option(
        REQUIRED,
        "Held-out preference pairs: files or a hub name, as for the other commands. With --demo, its test.jsonl.",
        "--dataset",
        metavar="FILE|NAME",
    ),
]
EvaluationReference = Annotated[
    str | None,
    option(
        METHOD,
        "Model from which implicit reward and KL are counted: where the policy started. Without one they are left out.",
        "--reference-model",
        metavar="FOLDER|NAME",
    ),
]
Output = Annotated[
    str | None,
    option(
        MACHINE,
        "JSON file for all figures; NAME.pairs.parquet and NAME.samples.parquet beside NAME.json have a row for each"
        " pair and each sample.",
        metavar="FILE.json",
    ),
]
TrainingData = Annotated[
    list[str] | None,
    option(
        DATA,
        "Pairs that a model was trained on: a folder of `sepo score`, `train-oracle` or `train-policy`, or a data set."
        " What the manifests beside a model tell is looked at anyway. May be given several times.",
        metavar="FOLDER|FILE",
    ),
]
EvaluationDemo = Annotated[
    str | None,
    option(
        DATA,
        "Folder of `sepo make-demo`, whose planted rewards tell the true reward of samples.",
        "--demo",
        metavar="FOLDER",
    ),
]
EvaluationSamples = Annotated[
    int, option(DATA, "Responses to sample from each model, at temperature 1; 0 = none.", "--samples")
]
MaxNewTokens = Annotated[int, option(DATA, "Tokens at which a sampled response is cut.")]
SkipKl = Annotated[
    bool,
    switch("Leave out KL, which takes most of the time: two forward passes of every pair, and the whole vocabulary."),
]
