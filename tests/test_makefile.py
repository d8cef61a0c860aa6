"""`make all` as a pipeline of targets: run for real, on a demo of a few pairs."""

import itertools
import json
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


def run_make(out, *goals, **variables):
    """What make says, run without its installation."""
    settings = [f"{name}={value}" for name, value in {"OUT": str(out), **variables}.items()]
    command = ["make", "--old-file=.venv/.installed", *goals, *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(out, *goals, **settings):
    """Run stages; gives those that did something and those with nothing to do."""
    said = run_make(out, *goals, SEPO=f"{sys.executable} -m sepo_cli", **settings)
    started = [line.split("sepo_cli ")[1].split()[0] for line in said.splitlines() if "-m sepo_cli" in line]
    return started, said.count("nothing to do: ")


STUB = """
import json, pathlib, sys
stage, *arguments = sys.argv[1:]
options = dict(zip(arguments, arguments[1:]))
out = pathlib.Path(options.get("--output-dir") or options["--output"])
(out.parent if "--output" in options else out).mkdir(parents=True, exist_ok=True)
(out if "--output" in options else out / "manifest.json").touch()
if stage == "train-policy":
    steps = 4096 // int(options["--batch-size"])
    every = int(options["--snapshot-steps"])
    for step in range(every, steps + 1, every):
        (out / f"snapshots/step-{step:08d}").mkdir(parents=True, exist_ok=True)
    (out / "metrics.jsonl").write_text("".join(f'{{"phase": "x", "step": {n}, "loss": 1}}\\n' for n in (1, steps)))
models = [value for name, value in zip(arguments, arguments[1:]) if name == "--model" and stage == "evaluate"]
assert all(pathlib.Path(model.partition("=")[2]).is_dir() for model in models), models
print("did", json.dumps([stage, out.name, arguments]))
"""
"""stands for sepo: it makes the folders and files that the next stage asks for, and says what it was asked"""


@pytest.fixture
def compare(tmp_path):
    """`make compare` of two recipes without their training; gives the stages it asked for, with their arguments."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    # make calls itself, and does not pass on what is old.
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/.installed").touch()
    fixed = {"SEPO": f"{sys.executable} -I -S {stub}", "VENV": str(tmp_path / "venv"), "JOBS": "1"}

    def run(**settings):
        wanted = {"SEEDS": "1 2", "RECIPES": "dpo sepo-rand"} | settings
        said = run_make(tmp_path / "out", "compare", **fixed, **wanted)
        return [json.loads(line.removeprefix("did ")) for line in said.splitlines() if line.startswith("did ")]

    return run


def stages(asked):
    return [(stage, name) for stage, name, _ in asked]


def runs_of(asked):
    """The runs that the table was made of."""
    [arguments] = [arguments for stage, _, arguments in asked if stage == "compare"]
    return [value.partition("=")[0] + " " + Path(value).stem for value in arguments if value.endswith(".json")]


def test_make_compare_trains_and_evaluates_every_recipe_by_every_seed_once(compare):
    asked = compare()
    runs = ["dpo-1", "sepo-rand-1", "dpo-2", "sepo-rand-2"]
    made = [("make-demo", "demo"), ("train-oracle", "oracle"), ("score", "scores")]
    made += [each for run in runs for each in (("train-policy", run), ("evaluate", f"{run}.json"))]
    assert stages(asked) == [*made, ("compare", "table")]
    assert runs_of(asked) == ["dpo dpo-1", "dpo dpo-2", "sepo-rand sepo-rand-1", "sepo-rand sepo-rand-2"]
    [first] = [arguments for stage, name, arguments in asked if (stage, name) == ("train-policy", "sepo-rand-2")]
    assert " ".join(first).endswith("--select random --seed 2 --snapshot-steps 8 --save-steps 0")
    assert compare() == []


def test_make_compare_makes_the_table_again_of_other_seeds_or_recipes(compare):
    compare()
    fewer = compare(SEEDS="1")
    assert stages(fewer) == [("compare", "table")]
    assert runs_of(fewer) == ["dpo dpo-1", "sepo-rand sepo-rand-1"]
    other = compare(SEEDS="1", RECIPES="dpo")
    assert stages(other) == [("compare", "table")]
    assert runs_of(other) == ["dpo dpo-1"]


@pytest.mark.parametrize(
    ("batch", "steps"), [(32, [8, 16, 32, 64, 128]), (64, [8, 16, 32, 64]), (100, [8, 16, 32, 40]), (1024, [4])]
)
def test_make_compare_evaluates_the_snapshots_that_there_are_and_the_end(compare, batch, steps):
    asked = compare(SEEDS="1", RECIPES="dpo", POLICY_ARGS=f"--batch-size {batch}")
    [arguments] = [arguments for stage, _, arguments in asked if stage == "evaluate"]
    models = [value.split("=") for option, value in itertools.pairwise(arguments) if option == "--model"]
    assert [int(name) for name, _ in models] == steps
    assert [Path(folder).name for _, folder in models] == [*(f"step-{step:08d}" for step in steps[:-1]), "dpo-1"]


def test_make_compare_trains_a_recipe_again_whose_options_changed(compare):
    compare()
    changed = compare(dpo_ARGS="--objective dpo --beta 0.5")
    again = [(stage, name) for run in ("dpo-1", "dpo-2") for stage, name in
             (("train-policy", run), ("evaluate", f"{run}.json"))]  # fmt: skip
    assert stages(changed) == [*again, ("compare", "table")]
    assert "0.5" in changed[0][2]


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
