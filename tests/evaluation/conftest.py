"""An evaluation of the models of `world` on pairs that none of them has seen."""

import json
import os
import signal
from contextlib import contextmanager

import pytest

from stages import evaluate
from stages.configs import EvaluateConfig
from stages.reporting import Quiet
from tests.conftest import Listens, word_rows, write_lines

FAST = {"max_length": 128, "samples": 5, "max_new_tokens": 6}


class Ear(Listens):
    """Remembers also which tasks were begun; dies at one of them if told to."""

    def __init__(self, die_at=None):
        super().__init__()
        self.tasks, self.die_at = [], die_at

    @contextmanager
    def task(self, title, total, unit):
        self.tasks.append(title)
        if title == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        yield self


@pytest.fixture(scope="session")
def held_out(tmp_path_factory):
    """Pairs that no stage of `world` has seen, each of a prompt of its own, three of them twice as long."""
    rows = word_rows(33, seed=9)
    for number, row in enumerate(rows):
        row["prompt"] += f" {number:02}"
    for row in rows[:3]:
        row["chosen"] += " of course, over the lazy dog"
    return write_lines(tmp_path_factory.mktemp("held-out") / "pairs.jsonl", rows)


@pytest.fixture
def run(world, held_out, tmp_path):
    def run(reporter=None, models=None, **options):
        models = models or (f"policy={world / 'policy'}", f"oracle={world / 'oracle/oracle'}")
        settings = {"dataset": str(held_out), "reference_model": str(world / "oracle/reference"), **FAST}
        settings |= {"output": str(tmp_path / "out.json"), "overwrite": True, **options}
        evaluate.run(EvaluateConfig(models=tuple(map(str, models)), **settings), reporter or Quiet())
        return json.loads((tmp_path / "out.json").read_text()) if settings["output"] else None

    return run


def value(report, model, figure):
    return report["models"][model]["figures"][figure]["value"]
