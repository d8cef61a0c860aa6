"""`make all` on a demo of a few pairs, its commands in this process; the rest of the Makefile by what it would run."""

import re
import subprocess
from pathlib import Path

import pytest

from stages.report import card, curves
from tests.faults.harness import outcome

ROOT = Path(__file__).parents[1]
STEP = "--max-steps 1 --batch-size 8"
TINY = {
    "DEMO_ARGS": "--train-pairs 24 --test-pairs 8",
    "ORACLE_ARGS": f"--sft-epochs 0 {STEP}",
    "SCORE_ARGS": "",
    "POLICY_ARGS": STEP,
    "REPORT_ARGS": "--samples 4",
}


def make(*arguments, sepo="sepo", **variables):
    """What make says, run without its installation."""
    settings = [f"{name}={value}" for name, value in {"SEPO": sepo, **variables}.items()]
    command = ["make", "--old-file=.venv/.installed", *arguments, *settings]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


def asked(*arguments, **variables):
    """The commands that make would run, each with its options by name."""
    done = make("-n", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^(?:sepo) (\S+) (.*)$", done.stdout, re.MULTILINE)
    return [(command, dict(re.findall(r"--([\w-]+) (?!--)(\S+)", options))) for command, options in lines]


def run(out, **changed):
    """Every command that make runs: the names of the folders in which there was nothing to do, and of the others."""
    made = make("all", sepo="echo sepo", OUT=str(out), **{**TINY, **changed})
    assert made.returncode == 0, made.stderr
    idle, fresh = [], []
    for line in re.findall("^sepo (.*)$", made.stdout, re.MULTILINE):
        done = outcome(*line.split())
        assert done.code == 0, done.err
        [(nothing, folder)] = re.findall(rf"^(nothing to do: )?\w+ in {out}/([\w-]+)$", done.out, re.MULTILINE)
        (idle if nothing else fresh).append(folder)
    return idle, fresh


def test_make_all_runs_the_demo_once_and_redoes_what_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "draw_curves", curves.draw_curves)
    stages = ["demo", "oracle", "scores", "policy", "policy-simpo", "policy-random", "report"]
    assert run(tmp_path) == ([], stages)
    for folder in ("oracle/oracle", "policy"):
        assert (tmp_path / folder / curves.FILE).read_bytes().startswith(b"\x89PNG")
    assert run(tmp_path, REPORT_ARGS="--samples 6") == (stages[:-1], ["report"])


def test_make_all_on_ones_own_model_and_data():
    commands = asked("all", MODEL="org/M", DATASET="d.jsonl", ORACLE_MODEL="O", OUT="r", POLICY_ARGS="--seed 7")
    assert [command for command, _ in commands] == ["train-oracle", "score", "train-policy"]
    oracle, score, policy = (options for _, options in commands)
    assert oracle == {"model": "O", "dataset": "d.jsonl", "output-dir": "r/oracle"}
    assert score == {"oracle": "r/oracle", "dataset": "d.jsonl", "output-dir": "r/scores"}
    assert policy == {"model": "org/M", "scores": "r/scores", "output-dir": "r/policy", "seed": "7"}
    assert asked("all", MODEL="org/M", DATASET="d.jsonl")[0][1]["output-dir"] == "runs/M/oracle"


@pytest.mark.parametrize("given", ["MODEL", "DATASET"])
def test_a_model_needs_a_data_set(given):
    done = make("-n", "all", **{given: "x"})
    assert done.returncode == 2
    assert "MODEL and DATASET go together" in done.stderr


def test_make_compare_trains_every_recipe_by_every_seed_and_compares_them_in_order():
    commands = asked("compare", SEEDS="1 2", RECIPES="dpo sepo-rand", OUT="r", JOBS="1")[7:]
    runs = ["dpo-1", "sepo-rand-1", "dpo-2", "sepo-rand-2"]
    trained = [options for command, options in commands if command == "train-policy"]
    assert [options["output-dir"] for options in trained] == [f"r/compare/{name}" for name in runs]
    assert [options["seed"] for options in trained] == ["1", "1", "2", "2"]
    assert trained[0]["objective"] == "dpo"
    assert trained[1]["select"] == "random"
    [last] = re.findall("sepo compare.*", make("-n", "compare", SEEDS="1 2", RECIPES="dpo sepo-rand", OUT="r").stdout)
    assert re.findall(r"--run (\S+)", last) == [
        f"{name}=r/compare/{name}-{seed}.json" for name in ("dpo", "sepo-rand") for seed in (1, 2)
    ]


@pytest.mark.parametrize(("last", "steps"), [(128, [8, 16, 32, 64, 128]), (40, [8, 16, 32, 40]), (4, [4])])
def test_make_compare_evaluates_snapshots_after_twice_the_steps_and_the_end(tmp_path, last, steps):
    folder = tmp_path / "compare/dpo-1"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 1}}\n{{"phase": "x", "step": {last}, "loss": 1}}\n')
    said = make("dpo/1", sepo="echo", OUT=str(tmp_path)).stdout.splitlines()
    [line] = [line for line in said if line.startswith("evaluate")]
    folders = [f"snapshots/step-{step:08d}" for step in steps[:-1]]
    expected = [f"{step}={folder / name}" for step, name in zip(steps, folders, strict=False)] + [f"{last}={folder}"]
    assert re.findall("--model (\\S+)", line) == expected
