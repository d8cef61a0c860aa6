"""`--config FILE`: what a file may say, and what it is told when it says something else."""

import subprocess
import sys

import pytest
import typer

from sepo_cli.config_file import use_config_file
from sepo_cli.main import app
from stages.errors import SepoError


def read(tmp_path, text, command="train-oracle"):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    context = typer.Context(typer.main.get_command(app).commands[command], info_name=command)
    use_config_file(context, path)
    return context.default_map


def refused(tmp_path, text, command="train-oracle"):
    with pytest.raises(SepoError) as caught:
        read(tmp_path, text, command)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value.message.replace(str(tmp_path) + "/", ""), caught.value.hint


@pytest.mark.parametrize("key", ["model", "model_name_or_path", "model-name-or-path"])
def test_every_spelling_of_an_option_is_a_key(tmp_path, key):
    assert read(tmp_path, f"{key}: m") == {"model": "m"}


def test_values_take_the_type_of_their_field_as_behind_a_flag(tmp_path):
    text = "learning-rate: 1e-5\nbeta: 1\nmax_steps: '7'\noverwrite: yes\nsft_dataset:\ndataset: no\nmodel: 2024-99-99"
    settings = read(tmp_path, text)
    assert settings == {
        "learning_rate": 1e-5,
        "beta": 1.0,
        "max_steps": 7,
        "overwrite": True,
        "sft_dataset": None,
        "dataset": "no",
        "model": "2024-99-99",
    }
    assert {type(settings[name]) for name in ("learning_rate", "beta")} == {float}


@pytest.mark.parametrize("text", ["models: [a=x, b=y]", "model:\n- a=x\n- b=y"])
def test_a_list_of_texts(tmp_path, text):
    assert list(read(tmp_path, text, "demo-report")["models"]) == ["a=x", "b=y"]


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "\ufeff"])
def test_an_empty_file_sets_nothing(tmp_path, text):
    assert read(tmp_path, text) == {}


def test_an_unknown_key_is_told_the_near_one(tmp_path):
    message, hint = refused(tmp_path, "beta: 0.1\nlearning_rat: 0.1\n")
    assert message == "run.yaml:2: unknown key learning_rat"
    assert hint.startswith("did you mean learning_rate? `sepo train-oracle --help`")


def test_a_key_like_no_other_gets_no_guess(tmp_path):
    assert refused(tmp_path, "zzz: 1")[1].startswith("`sepo train-oracle --help`")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("learning_rate: fast", ": "),
        ("learning_rate: true", ": "),
        ("learning_rate: [1]", " takes no list or mapping"),
        ("batch_size: 8.5", ": "),
        ("batch_size: 1e2", ": "),
        ("batch_size:", " has no value"),
        ("overwrite: perhaps", ": "),
        ("model: {a: x}", " takes no list or mapping"),
    ],
)
def test_a_wrong_type_is_refused_with_its_line(tmp_path, line, complaint):
    key = line.split(":")[0]
    assert refused(tmp_path, f"# mine\n{line}\n")[0].startswith(f"run.yaml:2: {key}{complaint}")


def test_models_are_a_list_of_texts(tmp_path):
    assert "models takes no list or mapping" in refused(tmp_path, "models: {a: x}", "demo-report")[0]


def test_all_faults_are_told_at_once(tmp_path):
    message, hint = refused(tmp_path, "bet: 1\nseed: x\nbeta: 1\nbeta: 2\n")
    first, second, third = message.split("; ")
    assert first == "run.yaml:1: unknown key bet"
    assert second.startswith("run.yaml:2: seed: ")
    assert third == "run.yaml:4: beta is given twice"
    assert hint.startswith("did you mean beta?")


def test_a_missing_file_and_a_folder_are_refused(tmp_path, sepo):
    for path, complaint in ((tmp_path / "none.yaml", "there is no configuration file"), (tmp_path, "cannot read")):
        assert sepo("score", "--config", path)[2].startswith(f"error: {complaint}")


def test_a_file_may_be_what_a_shell_pipes_in(tmp_path):
    command = f"{sys.executable} -m sepo_cli make-demo --config <(echo 'train-pairs: 0') --output-dir {tmp_path / 'd'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: train_pairs must be at least 1, got 0\n")
