"""How an option is written down: its panel in `--help`, and its kind."""

from typing import Any, Final

import typer

from stages.catalogue import defaults_in_words

REQUIRED: Final = "Required"
DATA: Final = "Data"
METHOD: Final = "Method"
REFERENCE: Final = "Reference (supervised fine-tuning)"
OPTIMISER: Final = "Optimiser"
LORA: Final = "LoRA and QLoRA"
MACHINE: Final = "Machine and output"
SWITCHES: Final = "Switches"


def option(panel: str, text: str, *spellings: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*spellings, help=text, rich_help_panel=panel, metavar=metavar, **more)


def switch(text: str) -> Any:
    # Typer would print <bool> behind both flags and `no-overwrite` as a default; off is what a switch is.
    return option(SWITCHES, text, metavar="", show_default=False)


def own(name: str, text: str) -> Any:
    """An option of some objectives or rules, each with a default of its own."""
    return option(METHOD, f"{text} Default: {defaults_in_words(name)}.")


def one_of(names: tuple[str, ...]) -> str:
    return "|".join(names)
