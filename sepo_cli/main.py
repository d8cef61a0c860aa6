"""The program `sepo`: its commands, and the one boundary at which an error becomes a line on the screen."""

import errno
import sys
from importlib.metadata import version as installed_version
from typing import Annotated, Final

import typer

from sepo_cli.commands import COMMANDS, TranslatingCommand, function_of
from sepo_cli.console import print_error, print_note
from sepo_cli.run import MissingOptions
from sepo_cli.spelling import canonical
from sepo_cli.streams import forgive_streams, lost_output
from stages.errors import SepoError, one_line, shortened

app = typer.Typer(
    name="sepo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    # A bug keeps its plain traceback, which can be pasted whole.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": canonical},
    epilog="Example:\n\nsepo train-oracle --model M --dataset pairs.jsonl --output-dir runs/oracle",
)

# What the system refuses is no bug, wherever it was asked.
THE_SYSTEMS: Final = {
    errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ELOOP,
    errno.EMFILE, errno.ENFILE, errno.EFBIG,
}  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sepo {installed_version('sepo')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Selective Preference Optimization of language models (arXiv 2408.13518).

    Three stages that meet only in files; `make all` runs them on a built-in demo.
    """


for _command in COMMANDS:
    app.command(
        _command.name,
        cls=TranslatingCommand,
        rich_help_panel=_command.panel,
        epilog=f"Example:\n\nsepo {_command.name} {_command.example}",
    )(function_of(_command))


def main() -> None:
    """Run `sepo`. Exit codes: 0 done or nothing to do, 1 a user's mistake, 2 usage, 130 interrupted, 143 terminated."""
    forgive_streams()
    try:
        app(prog_name="sepo")
    except SepoError as error:
        print_error(error)
        sys.exit(2 if isinstance(error, MissingOptions) else 1)
    except OSError as error:
        if error.errno not in THE_SYSTEMS:
            raise
        problem = f"{shortened(str(error.filename))}: {error.strerror}" if error.filename else str(error.strerror)
        print_error(SepoError(problem, hint="check the name, your rights and the space, then run the same again"))
        sys.exit(1)
    finally:
        lost = lost_output()
        if lost is not None:
            print_note(f"not all could be shown on stdout: {one_line(lost)}")
