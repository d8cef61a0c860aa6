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


@pytest.mark.parametrize("own", [{"MODEL": "org/M", "DATASET": "d.jsonl"}, {}])
def test_another_recipe_goes_to_every_stage(own):
    commands = [each for each in asked("all", RECIPE="denoised", OUT="r", **own) if each[0] not in ("make-demo", "demo-report")]  # fmt: skip
    assert [command for command, _ in commands] == ["train-oracle", "score", "denoise", "train-policy"]
    assert [options["config"] for _, options in commands] == [f"examples/denoised/{name}.yaml" for name, _ in commands]
    assert commands[2][1]["scores"] == "r/scores"
    assert commands[3][1]["scores"] == commands[2][1]["output-dir"] == "r/denoised"


def test_the_demo_is_reported_with_the_oracle_that_a_recipe_with_folds_writes():
    report = [
        line for line in make("-n", "all", RECIPE="denoised", OUT="r").stdout.splitlines() if "demo-report" in line
    ]
    assert re.findall(r"--model (\S+)", *report) == ["oracle=r/oracle/oracle-1", "denoised=r/policy"]


def test_make_compare_asks_for_a_world_a_seed():
    done = make("-n", "compare", SEEDS="5 6", JOBS="2", COMPARE_ARGS="--samples 9")
    assert "-m benchmarks.compare --seeds 5 6 --jobs 2 --output-dir runs/compare --samples 9" in done.stdout


def test_make_evidence_is_the_comparison_and_real_text():
    done = make("-n", "evidence", LM="org/M", PROMPTS="p.jsonl")
    assert done.stdout.index("-m benchmarks.compare") < done.stdout.index("two_cores.sh")
    assert 'MODEL=org/M PROMPTS="p.jsonl" OUT=runs/evidence' in done.stdout
