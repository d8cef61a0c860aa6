"""From the options of a command to its stage: merge the configuration file, name what is missing, import, run, show."""

import importlib
import signal
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, get_type_hints

import typer

from sepo_cli.config_file import accepted_names, read_config_file
from sepo_cli.console import make_reporter, print_interrupted, print_summary
from sepo_cli.spelling import flag
from stages.errors import SepoError

Missing = Callable[[dict[str, Any]], list[str]]
_NOTHING: Final = (None, "", ())
"""an option that was not given; 0 is a value, if perhaps a wrong one"""


class Terminated(BaseException):
    """SIGTERM, as a scheduler sends it: ends a run as Ctrl-C does. No handler of ordinary errors may swallow it."""


class MissingOptions(SepoError):
    """A command was called without what it needs: a usage error, exit code 2."""


def run_stage(
    context: typer.Context,
    config_class: type[Any],
    options: dict[str, Any],
    also_missing: Missing = lambda settings: [],
    alone: str = "",
) -> None:
    """Run the stage of a command.

    Args:
        options: the `locals()` of the command's function.
        also_missing: names what is missing where one option or another will do.
        alone: field of an option that needs no other one beside it.
    """
    command = str(context.info_name)
    settings = _merged(context, config_class, options)
    missing = [_spelt(context, name) for name in _required(config_class) if settings[name] in _NOTHING]
    missing += also_missing(settings)
    if missing and not settings.get(alone):
        raise MissingOptions(
            f"sepo {command} needs {_enumerated(missing)}",
            hint=f"`make all` runs the whole pipeline on the built-in demo; `sepo {command} --help` lists every option",
        )
    config = config_class(**settings)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        stage = importlib.import_module("stages." + command.replace("-", "_"))
        summary = stage.run(config, make_reporter())
    except KeyboardInterrupt:
        # Here and not in `main`: typer would make an exit of it before `main` sees it.
        print_interrupted()
        raise typer.Exit(130) from None
    except Terminated:
        print_interrupted()
        raise typer.Exit(143) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    print_summary(summary)
    if summary.failure is not None:
        raise summary.failure


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def _merged(context: typer.Context, config_class: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Flags beat the file, the file beats the defaults; a flag counts even where it repeats the default."""
    kinds = get_type_hints(config_class)
    settings = {field.name: options[field.name] for field in fields(config_class)}
    if options["config"] is not None:
        from_file = read_config_file(options["config"], kinds, accepted_names(context), str(context.info_name))
        settings |= {name: value for name, value in from_file.items() if not _typed(context, name)}
    return {name: tuple(value or ()) if _is_tuple(kinds[name]) else value for name, value in settings.items()}


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _required(config_class: type[Any]) -> list[str]:
    """The fields without a default that a stage could run with."""
    kinds = get_type_hints(config_class)
    return [
        field.name
        for field in fields(config_class)
        if (kinds[field.name] in (str, int) and field.default is None)
        or (_is_tuple(kinds[field.name]) and not field.metadata.get("may_be_empty"))
    ]


def _is_tuple(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def _spelt(context: typer.Context, name: str) -> str:
    """An option as it is typed: `models` is ``--model``."""
    return next((param.opts[0] for param in context.command.params if param.name == name), flag(name))


def _enumerated(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
