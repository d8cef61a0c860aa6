"""The command line and the dataclasses cannot drift apart: same fields, same defaults, and a help for each."""

import inspect
from dataclasses import MISSING, fields

import pytest
import typer

from sepo_cli import options
from sepo_cli.commands import COMMANDS

by_name = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.function.__name__)


def parameters(command):
    found = dict(inspect.signature(command.function).parameters)
    assert found.pop("context").annotation is typer.Context
    assert found.pop("config").annotation is options.ConfigFile
    return found


def declaration(parameter):
    [found] = parameter.annotation.__metadata__
    return found


@by_name
def test_every_field_is_an_option_and_every_option_a_field(command):
    assert set(parameters(command)) == {field.name for field in fields(command.config)}


@by_name
def test_every_default_is_the_dataclass_own(command):
    for field in fields(command.config):
        assert field.default is not MISSING
        default = parameters(command)[field.name].default
        assert default == field.default or (default is None and field.default == ()), field.name


@by_name
def test_every_option_has_a_help_in_a_panel(command):
    for name, parameter in parameters(command).items():
        assert declaration(parameter).help.strip().endswith((".", ")")), name
        assert declaration(parameter).rich_help_panel, name


@by_name
def test_required_options_stand_in_the_required_panel_and_have_no_default(command):
    for name, parameter in parameters(command).items():
        if declaration(parameter).rich_help_panel == options.REQUIRED:
            assert parameter.default is None, name


@by_name
def test_the_example_calls_the_command(command):
    assert command.example.startswith(f"sepo {command.function.__name__.replace('_', '-')} --")
