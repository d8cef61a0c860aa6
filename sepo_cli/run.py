"""From the options of a command to its stage: merge the configuration file, name what is missing, import, run, show."""

import importlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer

from sepo_cli.console import make_reporter, print_interrupted, print_summary
from sepo_cli.finished import recalled, remember
from sepo_cli.streams import lost_output
from stages.configs import Config, declared, is_several
from stages.errors import SepoError, borrowed, one_line

# What libraries print by themselves would tear the progress display; what matters of it comes back as our own message.
# A user who sets the variables wins.
LIBRARIES: Final = {
    "HF_HUB_DISABLE_PROGRESS_BARS": ("1", "0"),
    "HF_DATASETS_DISABLE_PROGRESS_BARS": ("1", "0"),
    "DATASETS_VERBOSITY": ("error", "info"),
    "TRANSFORMERS_VERBOSITY": ("error", "info"),
}
"""their variables, without --verbose and with it"""


class Terminated(BaseException):
    """SIGTERM, as a scheduler sends it: ends a run as Ctrl-C does. No handler of ordinary errors may swallow it."""


class MissingOptions(SepoError):
    """A command was called without what it needs: a usage error, exit code 2."""


def run_stage(
    context: typer.Context, config_class: type[Config], options: dict[str, Any], *, quiet: bool, verbose: bool
) -> None:
    """Run the stage of a command with these options, as typer gives them, by the names of the fields."""
    command = str(context.info_name)
    if quiet and verbose:
        raise SepoError("--quiet and --verbose exclude each other", hint="leave out one of them")
    for name, values in LIBRARIES.items():
        os.environ.setdefault(name, values[verbose])
    if not verbose:
        # Loaded by others wherever it is installed, it tells of a kernel that it lacks.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    several = {each.name for each in declared(config_class) if is_several(each.kind)}
    settings = {name: tuple(value or ()) if name in several else value for name, value in options.items()}
    missing = config_class.missing(settings)
    if missing:
        raise MissingOptions(
            f"sepo {command} needs {', '.join(missing)}",
            hint=f"`make all` runs the whole pipeline on the built-in demo; `sepo {command} --help` lists every option",
        )
    config, started = config_class(**settings), time.time_ns()
    finished = recalled(command, config)
    if finished is not None:
        print_summary(finished)
        return
    # Read when the library is first imported, by whichever stage.
    with borrowed("huggingface_hub does not load", hint="look at HF_ENDPOINT and the other HF_... variables"):
        importlib.import_module("huggingface_hub.hf_api")
    stage = importlib.import_module(module_of(command))
    try:
        with _handled({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}):
            summary = stage.run(config, make_reporter(quiet=quiet))
    except (KeyboardInterrupt, Terminated) as error:
        # Here and not in `main`: typer would make an exit of it before `main` sees it.
        print_interrupted()
        raise typer.Exit(143 if isinstance(error, Terminated) else 130) from None
    remember(command, config, summary.title, started)
    print_summary(summary)
    if summary.failure is not None:
        raise summary.failure
    if summary.json is not None:
        _refuse_lost()


def module_of(command: str) -> str:
    """The module of a command, which has its name, unless a room of `stages` has it."""
    return "stages." + {"report": "report_page"}.get(command, command.replace("-", "_"))


def _refuse_lost() -> None:
    """Half of a JSON document is none: what it was printed for must not take it for one."""
    lost = lost_output()
    if lost is not None and not isinstance(lost, BrokenPipeError):
        problem = f"the JSON could not be written to stdout: {one_line(lost)}"
        raise SepoError(problem, hint="free the space, or send stdout elsewhere, then run the same again")


@contextmanager
def _handled(handlers: dict[int, Any]) -> Iterator[None]:
    """Signals by these handlers within the block; what is ignored, as under nohup, stays ignored."""
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated
