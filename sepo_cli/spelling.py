"""Which spellings of an option mean the same one: on the command line and in a configuration file alike."""

from typing import Final

# What users of the Hugging Face tools type without thinking.
ALIASES: Final = {
    "model-name-or-path": "model",
    "dataset-name": "dataset",
    "overwrite-output-dir": "overwrite",
    "no-overwrite-output-dir": "no-overwrite",
}


def canonical(name: str) -> str:
    """The name of an option or command as it is declared: ``model_name_or_path`` -> ``model``."""
    dashed = name.replace("_", "-")
    return ALIASES.get(dashed, dashed)


def flag(field: str) -> str:
    """The option of a field: ``output_dir`` -> ``--output-dir``."""
    return "--" + field.replace("_", "-")
