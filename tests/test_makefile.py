"""`make all` as a pipeline of targets: run for real, on a demo of a few pairs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = "--max-steps 1 --batch-size 8"
SETTINGS = {
    "DEMO_ARGS": "--train-pairs 24 --test-pairs 8",
    "ORACLE_ARGS": f"--sft-epochs 0 {STEPS}",
    "SCORE_ARGS": "",
    "POLICY_ARGS": STEPS,
}


def make(out, *goals, **settings):
    """Run make without its installation; gives the stages that did something and those with nothing to do."""
    variables = {"SEPO": f"{sys.executable} -m sepo_cli", "OUT": str(out), **settings}
    arguments = ["--old-file=.venv/.installed", *goals, *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    started = [line.split("sepo_cli ")[1].split()[0] for line in done.stdout.splitlines() if "-m sepo_cli" in line]
    return started, done.stdout.count("nothing to do: ")


def test_make_redoes_what_changed_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    assert make(out, "scores", **SETTINGS) == (["make-demo", "train-oracle", "score"], 0)
    assert make(out, "scores", **SETTINGS) == ([], 0)
    assert make(out, "policy", **SETTINGS) == (["train-policy"], 0)

    shutil.rmtree(out / "scores")
    # The same shards come back, so the policy stands.
    assert make(out, "policy", **SETTINGS) == (["score", "train-policy"], 1)

    changed = SETTINGS | {"SCORE_ARGS": "--shard-size 10"}
    assert make(out, "policy", **changed) == (["score", "train-policy"], 0)
    assert len(list((out / "scores").glob("*.parquet"))) == 3


def test_make_all_runs_the_whole_demo(tmp_path):
    done = subprocess.run(
        ["make", "-n", "--old-file=.venv/.installed", "all", f"OUT={tmp_path}", "SEPO=sepo"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    started = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("sepo ")]
    policies = ["train-policy"] * 3
    assert started == ["make-demo", "train-oracle", "score", *policies, "demo-report"]


def test_make_all_on_ones_own_model_and_data(world, chat_folder, tmp_path):
    own = {"MODEL": str(chat_folder), "DATASET": str(world / "pairs.jsonl"), "ORACLE_ARGS": STEPS, "POLICY_ARGS": STEPS}
    assert make(tmp_path / "out", "all", **own) == (["train-oracle", "score", "train-policy"], 0)
    assert (tmp_path / "out/policy/manifest.json").exists()


@pytest.mark.parametrize("given", ["MODEL", "DATASET"])
def test_a_model_needs_a_data_set(given):
    done = subprocess.run(["make", "-n", "all", f"{given}=x"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "MODEL and DATASET go together" in done.stderr
