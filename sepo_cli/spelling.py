"""Which spellings of an option mean the same one: on the command line and in a configuration file alike."""

from collections.abc import Collection
from typing import Final

import typer

# What users of the Hugging Face tools type without thinking.
ALIASES: Final = {
    "model-name-or-path": "model",
    "dataset-name": "dataset",
    "overwrite-output-dir": "overwrite",
    "lora-r": "lora-rank",
    "hub-model-id": "push-to-hub",
    "hub-private-repo": "hub-private",
}
SWITCHES: Final = {
    "load-in-4bit": "--quantize=4bit",
    "load-in-8bit": "--quantize=8bit",
    "bf16": "--mixed-precision=bf16",
    "fp16": "--mixed-precision=fp16",
}
"""switches there that are values of an option here"""
OTHERS: Final = {
    "per-device-train-batch-size": "--batch-size counts the pairs of an optimiser step over all devices;"
    " --max-tokens-per-device bounds what one device computes at once",
    "gradient-accumulation-steps": "--batch-size counts the pairs of an optimiser step, however many micro-batches it"
    " takes; --max-tokens-per-device bounds a micro-batch",
}
"""options there that mean something else than any option here"""


def canonical(name: str) -> str:
    """The name of an option or command as it is declared: ``model_name_or_path`` -> ``model``."""
    dashed = name.replace("_", "-")
    return ALIASES.get(dashed, dashed)


def translated(arguments: list[str], options: Collection[str]) -> list[str]:
    """A command's arguments with the switches of others as options of ours.

    Args:
        options: those of the command, as ``--quantize``.
    """
    found = []
    for argument in arguments:
        name = canonical(argument.removeprefix("--").partition("=")[0]) if argument.startswith("--") else ""
        if name in OTHERS and "--batch-size" in options:
            raise typer.BadParameter(f"--{name} is not an option here: {OTHERS[name]}")
        ours = SWITCHES.get(name, "")
        found.append(ours if ours.partition("=")[0] in options else argument)
    return found
