"""A folder belongs to the run that is at work in it: a second one is refused, whatever it wants to do there."""

import subprocess
import sys

import pytest

from stages import cut_model, make_demo
from stages.configs import CutModelConfig, DemoConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from tests import lives
from tests.test_training_lives import STEPS, policy, wait_for_a_new_checkpoint
from tests.world import run_oracle, run_policy, run_score

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held_folder(tmp_path):
    """A folder whose lock another process holds."""
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", HOLD, tmp_path / "out/.sepo.lock"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    yield tmp_path / "out"
    holder.communicate(timeout=60)


def contents(folder):
    return {path: path.stat().st_ino for path in folder.rglob("*")}


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": False}])
def test_neither_training_stage_enters_a_held_folder(world, chat_folder, held_folder, options):
    before = contents(held_folder)
    with pytest.raises(SepoError, match="another run is at work"):
        run_policy(world, chat_folder, output=held_folder, **options)
    with pytest.raises(SepoError, match="another run is at work"):
        run_oracle(world, chat_folder, output=held_folder, **options)
    assert contents(held_folder) == before


def test_no_other_command_enters_a_held_folder(world, chat_folder, held_folder):
    """Of `demo-report` and `compare`, which open it by the same call, the inputs are more to make."""
    before = contents(held_folder)
    out = {"output_dir": str(held_folder), "overwrite": True}
    with pytest.raises(SepoError, match="another run is at work"):
        make_demo.run(DemoConfig(**out), Quiet())
    with pytest.raises(SepoError, match="another run is at work"):
        cut_model.run(CutModelConfig(model=str(chat_folder), layers=1, **out), Quiet())
    with pytest.raises(SepoError, match="another run is at work"):
        run_score(world, output=held_folder, overwrite=True)
    assert contents(held_folder) == before


def test_a_live_run_keeps_its_folder_until_it_is_dead(world, chat_folder, tmp_path):
    """What used to happen: a second run swept, moved or cleared the first one's files under its feet."""
    options = {**STEPS, "num_train_epochs": 500}
    life = lives.start(policy(world, chat_folder, tmp_path / "p", **options))
    wait_for_a_new_checkpoint(tmp_path / "p", life)
    for other in ({}, {"gamma": 3.0, "overwrite": True}, {"resume": False}):
        with pytest.raises(SepoError, match="another run is at work"):
            run_policy(world, chat_folder, output=tmp_path / "p", **{**options, **other})
    assert life.is_alive()
    assert not (tmp_path / ".p.replaced").exists()
    life.kill()
    life.join()
    short = {**STEPS, "max_steps": 1, "overwrite": True}
    assert run_policy(world, chat_folder, output=tmp_path / "p", **short).fresh
    assert not (tmp_path / "p/.sepo.lock").exists()
