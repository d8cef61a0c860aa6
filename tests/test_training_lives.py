"""Training that is killed, again and again, ends in the bytes of a run that nobody touched."""

import os
import random
import shutil
import signal
import time
from collections import Counter

import pytest

from stages.configs import OracleConfig, PolicyConfig
from stages.training.metrics import read_metrics
from tests import lives
from tests.world import FAST, files, repeatable, run_oracle, run_policy

KILLS = 10
# 40 pairs = 20 steps x 3 epochs; a checkpoint lies between two lines of the log.
STEPS = {**FAST, "batch_size": 2, "num_train_epochs": 3, "save_steps": 2, "save_total_limit": 2, "logging_steps": 3}


def policy(world, model, output, **options):
    names = {"model": str(model), "scores": str(world / "scores"), "output_dir": str(output)}
    return PolicyConfig(**names, **{**STEPS, **options})


def landed_in(folder):
    """Where a kill landed, told by what it left."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.is_dir() else set()
    if any(".tmp" in name for name in names):
        return "in a checkpoint's write" if any(name.startswith("checkpoints/.") for name in names) else "in a write"
    if "manifest.json" in names:
        return "after the manifest"
    if "model.safetensors" in names:
        return "in or after the model's write"
    return "between checkpoints" if any("checkpoints/" in name for name in names) else "before the first checkpoint"


def checkpoints(folder):
    return {path.name for path in folder.glob("checkpoints/[!.]*")}


def wait_for_a_new_checkpoint(folder, life):
    before = checkpoints(folder)
    while life.is_alive() and checkpoints(folder) <= before:
        time.sleep(0.002)


def same(one, other):
    assert files(one) == files(other)
    for name in repeatable(one):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_kills_leave_the_policy_of_an_untouched_run(world, chat_folder, tmp_path):
    """Every other one by the clock behind a new checkpoint, the others before some act on a file."""
    run_policy(world, chat_folder, output=tmp_path / "whole", **STEPS)
    config = policy(world, chat_folder, tmp_path / "killed")
    chance = random.Random(5)
    landed = Counter()
    for number in range(KILLS):
        life = lives.start(config, 0 if number % 2 else chance.randint(5, 30))
        if number % 2:
            wait_for_a_new_checkpoint(tmp_path / "killed", life)
            life.join(chance.uniform(0, 0.02))
        else:
            life.join(60)
        life.kill()
        life.join()
        assert life.exitcode == -9, f"it ended after {landed.total()} kills: {landed}"
        landed[landed_in(tmp_path / "killed")] += 1
    reached = max(checkpoints(tmp_path / "killed"))
    run_policy(world, chat_folder, output=tmp_path / "killed", **STEPS)
    print(f"{reached}: {landed.total()} kills landed {dict(landed)}")
    same(tmp_path / "killed", tmp_path / "whole")
    assert "in a checkpoint's write" in landed
    assert reached >= "sepo-00000010"


def test_a_kill_before_an_act_on_a_file_is_made_good(world, chat_folder, tmp_path):
    """A short run, cut before every ninth of its acts, one after the other."""
    short = {**STEPS, "max_steps": 2, "save_steps": 1}
    run_policy(world, chat_folder, output=tmp_path / "whole", **short)
    landed = Counter()
    for act in range(2, 200, 9):
        folder = tmp_path / str(act)
        life = lives.start(policy(world, chat_folder, folder, **short), act)
        life.join()
        if life.exitcode == 0:
            break
        landed[landed_in(folder)] += 1
        run_policy(world, chat_folder, output=folder, **short)
        same(folder, tmp_path / "whole")
        shutil.rmtree(folder)
    print(f"{landed.total()} places: {dict(landed)}")
    assert life.exitcode == 0
    assert {"before the first checkpoint", "in a checkpoint's write"} <= set(landed)


def test_an_oracle_killed_in_both_phases_is_that_of_an_untouched_run(world, chat_folder, tmp_path):
    steps = {"save_steps": 1, "logging_steps": 2, "batch_size": 4, "sft_batch_size": 4, "max_steps": 3}
    run_oracle(world, chat_folder, output=tmp_path / "whole", **steps)
    names = {"model": str(chat_folder), "dataset": str(world / "pairs.jsonl"), "output_dir": str(tmp_path / "killed")}
    settings = {**FAST, "sft_learning_rate": 3e-3, "eval_fraction": 0.2, "beta": 0.5, **steps}
    config = OracleConfig(**names, **settings)
    phases = Counter()
    while True:
        life = lives.start(config)
        wait_for_a_new_checkpoint(tmp_path / "killed", life)
        life.kill()
        life.join()
        if life.exitcode == 0:
            break
        phases.update({name.split("-")[0] for name in checkpoints(tmp_path / "killed")})
    run_oracle(world, chat_folder, output=tmp_path / "killed", **steps)
    print(f"kills by phase: {dict(phases)}")
    same(tmp_path / "killed", tmp_path / "whole")
    assert set(phases) == {"sft", "dpo"}


def test_no_resume_starts_anew_and_leaves_a_finished_run_alone(world, chat_folder, tmp_path):
    short = {**STEPS, "max_steps": 6}
    run_policy(world, chat_folder, output=tmp_path / "whole", **short)
    config = policy(world, chat_folder, tmp_path / "p", **short)
    life = lives.start(config)
    wait_for_a_new_checkpoint(tmp_path / "p", life)
    life.kill()
    life.join()
    (tmp_path / "p/checkpoints/stray").write_text("of the interrupted run")
    assert run_policy(world, chat_folder, output=tmp_path / "p", **short, resume=False).fresh
    same(tmp_path / "p", tmp_path / "whole")
    assert not run_policy(world, chat_folder, output=tmp_path / "p", **short, resume=False).fresh


@pytest.mark.parametrize("several", [False, True])
def test_sigterm_leaves_a_checkpoint_and_says_how_to_go_on(world, chat_folder, tmp_path, several):
    """With two processes the signal goes to one of them alone: both have to stop at the same step."""
    arguments = ["train-policy", "--model", chat_folder, "--scores", world / "scores", "--output-dir", tmp_path / "p"]
    # Long enough not to end by itself.
    options = {**STEPS, "num_train_epochs": 500, "save_steps": 100_000, "logging_steps": 1}
    arguments += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    runs = lives.run_module("sepo_cli", *arguments, folder=tmp_path, processes=1 + several)
    while runs[0].alive() and len(read_metrics(tmp_path / "p")) < 3:
        time.sleep(0.05)
    os.kill(runs[-1].pid, signal.SIGTERM)
    ends, words = zip(*(run.end() for run in runs), strict=True)
    err = "".join(words)
    lines = err.splitlines()
    assert "interrupted; run the same command again to continue" in lines
    [checkpoint] = (tmp_path / "p/checkpoints").iterdir()
    step = int(checkpoint.name.rsplit("-", 1)[1])
    assert f"sepo: interrupted after step {step:,}; {step:,} steps are safe" in lines
    assert read_metrics(tmp_path / "p")[-1]["step"] == step
    assert ends[-1] == 143
    assert "Traceback" not in err
    assert (checkpoint / "random_states_1.pkl").exists() == several
