"""The options that several commands have."""

from typing import Annotated

from stages.configs import limits
from stages.configs.fields import OVERLONG
from stages.configs.option import DATA, MEMORY, OUTPUT, REQUIRED, Option

Model = Annotated[
    str,
    Option(
        "Model to start from: a folder or a hub name (also --model-name-or-path).",
        REQUIRED,
        "FOLDER|NAME",
        content=False,
    ),
]
Dataset = Annotated[
    str,
    Option(
        "Preference pairs: JSON Lines, JSON or Parquet (also .gz), or a hub name, org/name or org/name:split"
        " (also --dataset-name).",
        REQUIRED,
        "FILE|NAME",
        content=False,
    ),
]
Scores = Annotated[
    str,
    Option("Folder of `sepo score`, or its URI, such as s3://bucket/scores.", REQUIRED, "FOLDER|URI", content=False),
]
Demo = Annotated[str, Option("Folder of `sepo make-demo`.", REQUIRED, "FOLDER", content=False)]

_OUTPUT = "Folder to write; an interrupted run is continued, a finished one is not redone."
OutputDir = Annotated[str, Option(_OUTPUT, REQUIRED, "FOLDER", limit=limits.local, content=False)]
OutputUri = Annotated[str, Option(_OUTPUT, REQUIRED, "FOLDER|URI", content=False)]
Overwrite = Annotated[
    bool,
    Option(
        "Replace an output folder that holds a run with other settings, instead of refusing it"
        " (also --overwrite-output-dir).",
        OUTPUT,
        content=False,
    ),
]

Columns = Annotated[
    str | None,
    Option(
        "Names of the columns, where they are not those of a known layout: prompt=question,chosen=good,rejected=bad.",
        DATA,
        "NAMES",
        limit=limits.columns,
    ),
]
ChatTemplateKwargs = Annotated[
    str | None,
    Option(
        "What the chat template is given for every row, as a JSON object: '{\"enable_thinking\": false}'. What a row's"
        " own column of that name says goes before it.",
        DATA,
        "JSON",
        limit=limits.an_object,
    ),
]
MaxLength = Annotated[
    int, Option("Most tokens of prompt and longer response together. Paper: 2048.", DATA, limit=limits.at_least_two)
]
Overlong = Annotated[
    str,
    Option(
        "What becomes of a longer pair: drop it; truncate the ends of its responses, without an end of turn; or stop"
        " with an error. Dropped and truncated pairs are counted.",
        DATA,
        "|".join(OVERLONG),
        limit=limits.one_of(OVERLONG),
    ),
]
Strict = Annotated[
    bool,
    Option(
        "Stop if a row of a data set would be dropped, for whatever reason; the reasons are named.",
        DATA,
        content=False,
    ),
]
Seed = Annotated[
    int,
    Option("Seed of everything that is drawn; the same seed writes the same bytes.", DATA, limit=limits.not_negative),
]
TrustRemoteCode = Annotated[bool, Option("Run Python code that comes with the model.", DATA)]
MaxTokensPerDevice = Annotated[
    int,
    Option(
        "Token budget of one forward pass on one device: bounds the memory and does not change the result."
        " Lower it when memory runs out.",
        MEMORY,
        limit=limits.at_least_two,
        content=False,
    ),
]
