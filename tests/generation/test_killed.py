"""A run of `sepo generate` that is killed goes on with the same command, to the bytes of one that was left alone."""

import random
import time

import pytest

from stages import generate
from stages.configs import GenerateConfig
from stages.reporting import Quiet
from stages.store.answers import open_answers
from tests import lives
from tests.conftest import write_lines
from tests.generation.test_generate import contents

KILLS = 2


@pytest.fixture
def settings(tmp_path, chat_folder):
    rows = [{"turns": ["what is the " + "quick fox " * (n % 4), "and why?"][: 1 + n % 2]} for n in range(8)]
    write_lines(tmp_path / "prompts.jsonl", rows)
    return {
        "models": (f"m={chat_folder}",), "prompts": str(tmp_path / "prompts.jsonl"), "samples": 2, "shard_size": 4,
        "max_new_tokens": 12, "max_tokens_per_device": 200,
    }  # fmt: skip


def lines(folder):
    """How many answers are written down."""
    journals = sum(path.read_bytes().count(b"\n") for path in folder.glob("m/*.partial.jsonl"))
    return journals + 1000 * len([*folder.glob("m/*.parquet")])


def test_kills_leave_the_bytes_of_a_run_that_was_left_alone(tmp_path, settings):
    generate.run(GenerateConfig(output_dir=str(tmp_path / "whole"), **settings), Quiet())
    config, chance = GenerateConfig(output_dir=str(tmp_path / "killed"), **settings), random.Random(1)
    folder = tmp_path / "killed"
    for _ in range(KILLS):
        life, before = lives.start(config), lines(folder)
        while life.is_alive() and lines(folder) <= before + 1:
            time.sleep(0.001)
        life.join(chance.uniform(0, 0.05))
        life.kill()
        life.join()
    assert not (folder / "manifest.json").exists()
    life = lives.start(config)
    life.join()
    assert life.exitcode == 0
    assert contents(folder) == contents(tmp_path / "whole")
    keys = [answer[:4] for answer in open_answers(folder).answers("m")]
    assert len({*keys}) == len(keys) == 2 * (8 + 4)
