"""`sepo` as a user meets it: spellings, the configuration file, what is missing, and how errors end."""

import json
import os
import signal
import subprocess
import sys

import pytest

from stages import make_demo
from stages.configs import DemoConfig
from stages.errors import SepoError
from stages.reporting import Summary

HEAVY = ("torch", "transformers", "pyarrow", "accelerate", "datasets", "huggingface_hub")
DONE = Summary("done", [])
SMALL = ["--train-pairs", "6", "--test-pairs", "2"]


@pytest.fixture
def stage(monkeypatch):
    """The stage of `make-demo`, replaced by what a test passes in."""
    return lambda run: monkeypatch.setattr(make_demo, "run", run)


def settings_of(folder):
    return json.loads((folder / "manifest.json").read_text())["settings"]


def program(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "sepo_cli", *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["--version"], ["score"]])
def test_help_is_quick_because_nothing_heavy_is_loaded(arguments):
    code = f"import sys, sepo_cli.main as m\ntry: m.main()\nfinally: print(set(sys.modules) & {set(HEAVY)}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "set()"


def test_version(sepo):
    code, out, _ = sepo("--version")
    assert code == 0
    assert out.startswith("sepo 0.")


def test_make_demo_runs_and_a_second_time_has_nothing_to_do(sepo, tmp_path):
    code, out, err = sepo("make-demo", "--output-dir", tmp_path / "demo", *SMALL)
    assert (code, out.splitlines()[0]) == (0, f"demo in {tmp_path}/demo")
    assert "6 pairs" in err
    code, out, _ = sepo("make-demo", "--output-dir", tmp_path / "demo", *SMALL)
    assert (code, out.splitlines()[0]) == (0, f"nothing to do: demo in {tmp_path}/demo")


def test_every_spelling_means_the_same(sepo, stage):
    seen = []
    stage(lambda config, reporter: seen.append(config) or DONE)
    for spelling in (
        ["make-demo", "--output-dir", "a_b", "--overwrite"],
        ["make_demo", "--output_dir=a_b", "--overwrite_output_dir"],
        ["make-demo", "--output_dir", "a_b", "--overwrite-output_dir"],
    ):
        assert sepo(*spelling) == (0, "done\n", "")
    assert seen == [DemoConfig(output_dir="a_b", overwrite=True)] * 3


def test_flags_beat_the_file_and_the_file_beats_the_defaults(sepo, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"output_dir: {tmp_path / 'demo'}\ntrain-pairs: 9\ntest_pairs: 3\n")
    code, _, _ = sepo("make-demo", "--config", file, "--train-pairs", "6")
    assert code == 0
    defaults = {name: getattr(DemoConfig, name) for name in ("oracle_size", "rewards", "label_noise", "seed")}
    assert settings_of(tmp_path / "demo") == {"train_pairs": 6, "test_pairs": 3} | defaults


def test_a_flag_that_repeats_the_default_still_beats_the_file(sepo, stage, tmp_path):
    seen = []
    stage(lambda config, reporter: seen.append(config) or DONE)
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: x\nseed: 1\noverwrite: true\n")
    sepo("make-demo", "--config", file, "--seed", str(DemoConfig.seed))
    assert seen == [DemoConfig(output_dir="x", overwrite=True)]


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["train-oracle"], "--model, --dataset, --output-dir"),
        (["train-oracle", "--model-name-or-path", "m", "--dataset_name", "d"], "--output-dir"),
        (["score"], "--dataset, --output-dir, --oracle (or --oracle-model and --reference-model)"),
        (["score", "--dataset", "d", "--output-dir", "o", "--oracle-model", "m"], "--reference-model"),
        (["train-policy", "--model", ""], "--model, --scores, --output-dir"),
        (["make-demo"], "--output-dir"),
        (["demo-report"], "--demo, --scores, --model, --reference, --output-dir"),
    ],
)
def test_all_that_is_missing_is_named_at_once(sepo, arguments, missing):
    code, out, err = sepo(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"error: sepo {arguments[0]} needs {missing}",
        f"hint:  `make all` runs the whole pipeline on the built-in demo; `sepo {arguments[0]} --help` lists every option",
    ]


def test_an_unknown_option_is_a_usage_error_that_suggests_the_near_one(sepo):
    code, _, err = sepo("train-policy", "--learning_rat", "1")
    assert code == 2
    assert "--learning-rate" in err


def test_an_unknown_command_is_a_usage_error_that_suggests_the_near_one(sepo):
    code, _, err = sepo("scores")
    assert code == 2
    assert "'score'" in err


def raiser(error):
    def run(config, reporter):
        raise error

    return run


def test_a_users_mistake_is_one_line_whatever_its_length_and_brackets(sepo, stage, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    message = "[red]runs/[x][/red] " + "long " * 40 + "end"
    stage(raiser(SepoError(message)))
    assert sepo("make-demo", "--output-dir", "x") == (1, "", f"error: {message}\n")


def test_an_error_in_another_process_says_whose_it_is(sepo, stage, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    stage(raiser(SepoError("no", hint="yes")))
    assert sepo("make-demo", "--output-dir", "x") == (1, "", "[rank 3] error: no\n[rank 3] hint:  yes\n")


def test_ctrl_c_says_how_to_continue(sepo, stage):
    stage(raiser(KeyboardInterrupt()))
    expected = "interrupted; run the same command again to continue\n"
    assert sepo("make-demo", "--output-dir", "x") == (130, "", expected)


def test_a_bug_keeps_its_traceback(sepo, stage):
    stage(raiser(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        sepo("make-demo", "--output-dir", "x")


def test_a_reader_that_goes_away_is_no_error():
    # Only a process of its own has a stdout that can break; its stage is ours, so that it does not load torch.
    code = (
        "import sys; from types import SimpleNamespace; from stages.reporting import Summary; from sepo_cli.main import main\n"
        "sys.modules['stages.make_demo'] = SimpleNamespace(run=lambda *_: Summary('done', []))\n"
        "main()"
    )
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", code, "make-demo", "--output-dir", "x"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "note: not all could be shown on stdout: Broken pipe\n")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "note: not all could be shown on stdout: No space left on device\n")
    for closed in (">&-", "2>&-", "2>/dev/full", ">&- 2>&- <&-"):
        shell = ["bash", "-c", f'"$@" {closed}', "bash", *command]
        assert subprocess.run(shell, capture_output=True, check=False).returncode == 0


def test_json_that_is_lost_is_an_error_unless_its_reader_went_away():
    code = (
        "import sys; from types import SimpleNamespace; from stages.reporting import Summary; from sepo_cli.main import main\n"
        "sys.modules['stages.validate'] = SimpleNamespace(run=lambda *_: Summary('done', [], json={'rows': 1}))\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "validate", "--dataset", "d", "--model", "m", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    error, hint = done.stderr.splitlines()
    assert (done.returncode, error) == (1, "error: the JSON could not be written to stdout: No space left on device")
    assert hint.startswith("hint:  ")
    done = subprocess.run(["bash", "-c", '"$@" >&-', "bash", *command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the JSON could not be written to stdout: Bad file descriptor")
    shell = ["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "bash", *command]
    assert subprocess.run(shell, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [([], {}, "error"), (["--verbose"], {}, "info"), ([], {"TRANSFORMERS_VERBOSITY": "debug"}, "debug")],
)
def test_library_noise_is_off_unless_asked_for(sepo, monkeypatch, arguments, environment, expected):
    surroundings = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    monkeypatch.setattr(os, "environ", surroundings | environment)
    sepo("make-demo", *arguments)
    assert os.environ["TRANSFORMERS_VERBOSITY"] == expected


def test_quiet_leaves_warnings_the_result_and_errors(sepo, stage):
    def run(config, reporter):
        reporter.say("a fact")
        reporter.warn("a warning")
        with reporter.task("work", 1, "steps") as task:
            task.advance(1)
        return DONE

    stage(run)
    assert sepo("make-demo", "--output-dir", "x", "--quiet") == (0, "done\n", "warning: a warning\n")
    assert "a fact\n" in sepo("make-demo", "--output-dir", "x")[2]
    assert sepo("make-demo", "-q", "-v")[2].startswith("error: --quiet and --verbose exclude each other\n")


def test_a_shell_can_complete(sepo, monkeypatch):
    code, out, _ = sepo("--show-completion", "bash")
    assert (code, "complete -o default -F _sepo_completion sepo" in out) == (0, True)
    monkeypatch.setenv("_SEPO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "sepo train-policy --obj")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert sepo()[1].split() == ["--objective"]


def test_sigterm_says_how_to_continue_and_leaves_no_handler(sepo, stage):
    before = signal.getsignal(signal.SIGTERM)
    stage(lambda config, reporter: os.kill(os.getpid(), signal.SIGTERM))
    expected = "interrupted; run the same command again to continue\n"
    assert sepo("make-demo", "--output-dir", "x") == (143, "", expected)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("module", "number"),
    [("typer", signal.SIGINT), ("sepo_cli.run", signal.SIGTERM), ("stages.make_demo", signal.SIGINT)],
)
def test_a_signal_within_an_import_is_one_line(tmp_path, module, number):
    code = f"""
import os, sys
class Kill:
    def find_spec(self, name, *more):
        if name == {module!r}: os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Kill())
sys.argv = ["sepo", "make-demo", "--output-dir", {str(tmp_path / "out")!r}]
from sepo_cli.__main__ import start
start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, "interrupted\n")
    assert not (tmp_path / "out").exists()
