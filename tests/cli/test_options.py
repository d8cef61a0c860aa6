"""An option is declared once, in its command's dataclass; everything else is read from there."""

import importlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import pytest

from sepo_cli import main as program
from sepo_cli.cli_docs import page
from sepo_cli.commands import COMMANDS, Command, TranslatingCommand, function_of
from sepo_cli.run import module_of
from stages import make_demo
from stages.configs import (
    Config,
    EvaluateConfig,
    OracleConfig,
    ProjectScoresConfig,
    ScoreConfig,
    ValidateConfig,
    content_settings,
    declared,
    limits,
)
from stages.configs.option import DATA, OPTIMISER, REQUIRED, Option
from stages.errors import SepoError
from stages.reporting import Summary

by_name = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


@dataclass(frozen=True, kw_only=True)
class OneMore(Config):
    """A command with an option that did not exist before."""

    output_dir: Annotated[str, Option(DATA, content=False)] = "x"
    """Where."""
    shade: Annotated[int, Option(OPTIMISER, "N", limit=limits.at_least_one)] = 3
    """How [dark]."""


def test_a_new_option_is_one_declaration(sepo, monkeypatch, tmp_path):
    """Command line, help, file, check and fingerprint have it without another line."""
    seen = []
    monkeypatch.setattr(make_demo, "run", lambda config, reporter: seen.append(config) or Summary("done", []))
    app = program.typer.Typer()
    app.callback()(lambda: None)
    command = Command("make-demo", OneMore, "panel", "--shade 1")
    app.command(command.name, cls=TranslatingCommand)(function_of(command))
    monkeypatch.setattr(program, "app", lambda prog_name: app(prog_name=prog_name))
    (tmp_path / "run.yaml").write_text("shade: 5\n")
    assert sepo("make-demo", "--shade", 7)[0] == 0
    assert sepo("make-demo", "--config", tmp_path / "run.yaml")[0] == 0
    assert [config.shade for config in seen] == [7, 5]
    assert "How [dark]." in sepo("make-demo", "--help")[1]
    assert sepo("make-demo", "--shade", 0)[2].startswith("error: shade must be at least 1, got 0\n")
    assert content_settings(OneMore()) == {"shade": 3}


@by_name
def test_every_field_has_an_option_with_a_sentence_for_help(command):
    options = declared(command.config)
    assert {each.name for each in options} == {each.name for each in fields(command.config)}
    for each in options:
        assert each.help.strip().endswith((".", ")")), each.name
        assert not (each.required and each.option.panel != REQUIRED), each.name


@by_name
def test_help_shows_what_was_declared_to_the_letter(command, sepo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    code, out, _ = sepo(command.name, "--help")
    assert code == 0
    assert f"sepo {command.name} {command.example}" in out.rstrip().splitlines()[-1]
    for each in declared(command.config):
        assert all(f" {flag}" in out for flag in each.flags), each.name
        assert each.help in out, each.name
        assert (f"--no-{each.flags[0][2:]}" in out) == (each.kind is bool and each.default is True)


def test_help_shows_first_what_the_chosen_objective_and_rule_use(sepo):
    out = sepo("train-policy", "--objective=dpo", "--select", "soft", "--help")[1]
    beta, mu, gamma = (out.index(option) for option in ("--beta", "--soft-mu", "--gamma"))
    assert beta < mu < gamma
    plain = sepo("train-policy", "--help")[1]
    assert plain.index("--gamma") < plain.index("--beta")


@by_name
def test_a_command_is_a_stage_and_its_example_calls_it(command):
    assert callable(importlib.import_module(module_of(command.name)).run)
    given = (
        program.typer.main.get_command(program.app)
        .commands[command.name]
        .make_context(command.name, command.example.split())
        .params
    )
    assert not command.config.missing({each.name: given[each.name] for each in declared(command.config)})


@pytest.mark.parametrize(
    ("theirs", "setting"),
    [
        (["--lora-r", "4"], {"lora_rank": 4}),
        (["--lora_r=4", "--load-in-4bit"], {"lora_rank": 4, "quantize": "4bit"}),
        (["--lora-r", "4", "--load_in_8bit"], {"lora_rank": 4, "quantize": "8bit"}),
        (["--bf16"], {"mixed_precision": "bf16"}),
        (["--fp16"], {"mixed_precision": "fp16"}),
        (["--hub-model-id", "a/b", "--hub-private-repo"], {"push_to_hub": "a/b", "hub_private": True}),
    ],
)
def test_spellings_of_other_tools(sepo, monkeypatch, theirs, setting):
    seen = []
    stage = importlib.import_module("stages.train_policy")
    monkeypatch.setattr(stage, "run", lambda config, reporter: seen.append(config) or Summary("done", []))
    code, _, err = sepo("train-policy", "--model", "m", "--scores", "s", "--output-dir", "o", *theirs)
    assert (code, err) == (0, "")
    assert {name: getattr(seen[0], name) for name in setting} == setting


@pytest.mark.parametrize("option", ["--per_device_train_batch_size", "--gradient-accumulation-steps=2"])
def test_a_batch_size_that_means_something_else_is_explained(sepo, option):
    code, _, err = sepo("train-policy", option, "8")
    assert code == 2
    assert "--batch-size counts the pairs" in " ".join(err.split())


def test_the_page_of_options_is_not_stale():
    assert (Path(__file__).parents[2] / "docs/cli.md").read_text() == page()


_NAMES = {"model": "m", "dataset": "d", "output_dir": "o"}
_CONFIGS = {
    ValidateConfig: {"model": "m", "dataset": "d"},
    OracleConfig: _NAMES,
    ScoreConfig: {"oracle": "o", "dataset": "d", "output_dir": "o"},
    EvaluateConfig: {"models": ("m",), "dataset": "d"},
    ProjectScoresConfig: _NAMES | {"scores": "s"},
}


@pytest.mark.parametrize("config", _CONFIGS, ids=lambda config: config.__name__)
def test_arguments_of_the_template_are_recorded_where_they_are_given(config):
    assert content_settings(config(**_CONFIGS[config]))["chat_template_kwargs"] is None
    given = content_settings(config(**_CONFIGS[config], chat_template_kwargs='{"a": 1}'))
    assert given["chat_template_kwargs"] == '{"a": 1}'


@pytest.mark.parametrize("text", ["", "thinking", "[1]", '{"a": NaN}', '{"a"', "[" * 9000, '{"a": "\udc80"}'])
def test_arguments_of_the_template_are_a_json_object(text):
    with pytest.raises(SepoError, match="chat_template_kwargs must be a JSON object"):
        ValidateConfig(**_CONFIGS[ValidateConfig], chat_template_kwargs=text)
