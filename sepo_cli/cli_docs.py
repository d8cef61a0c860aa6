"""`python -m sepo_cli.cli_docs > docs/cli.md`: every option of every command, from where it is declared."""

import itertools
from collections.abc import Iterator
from types import NoneType
from typing import get_args

from sepo_cli.commands import COMMANDS, Command, description
from sepo_cli.spelling import ALIASES, SWITCHES
from stages.configs import Declared, declared
from stages.reporting import markdown

HEAD = """# Every option of every command

Made from the code by `python -m sepo_cli.cli_docs > docs/cli.md`. Each option is also a key of a `--config` file, and
underscores may stand for dashes. Every command takes `--quiet` (only warnings, result and errors) and `--verbose`
(what libraries log, too); `sepo --install-completion` teaches bash, zsh, fish or PowerShell to complete options."""


def page() -> str:
    """The page, as Markdown."""
    names = [f"`--{theirs}` is `--{ours}`" for theirs, ours in ALIASES.items()]
    names += [f"`--{theirs}` is `{ours}`" for theirs, ours in SWITCHES.items()]
    spellings = f"Spellings of the Hugging Face tools are understood: {', '.join(names)}."
    return "\n\n".join([HEAD, spellings, *(part for command in COMMANDS for part in _sections(command))]) + "\n"


def _sections(command: Command) -> Iterator[str]:
    yield f"## `sepo {command.name}`\n\n{description(command)}\n\n    sepo {command.name} {command.example}"
    for panel, options in itertools.groupby(declared(command.config), key=lambda each: each.option.panel):
        rows = "\n".join(f"| {' | '.join(_row(each))} |" for each in options)
        yield f"**{panel}**\n\n| option | takes | default | what |\n|---|---|---|---|\n{rows}"


def _row(each: Declared) -> list[str]:
    # `str` of `str | None`
    plain = next((part for part in get_args(each.kind) if part is not NoneType), each.kind)
    kind = "" if each.kind is bool else markdown(each.metavar or plain.__name__)
    unset = each.required or each.default is False or each.default in (None, ())
    default = "" if unset else f"`{each.default}`".replace("True", "on")
    return [", ".join(f"`{flag}`" for flag in each.flags), kind, default, markdown(each.help)]


if __name__ == "__main__":
    print(page(), end="")
