"""metrics.jsonl and the checkpoints: what one knows of the other when one of them is lost."""

import os

import pytest
import torch

from stages.configs import OptimizerConfig
from stages.model.batches import whole
from stages.model.loop import fit
from stages.model.metrics import read_metrics
from stages.reporting import Quiet
from tests.conftest import random_pairs, tiny_llama
from tests.model.fits import SETTINGS, Killed, KilledAfter, objective, weights


def train(folder, reporter=None, **settings):
    """Returns the model and the figures of the last line."""
    folder.mkdir(exist_ok=True)
    model = tiny_llama(50)
    examples = [whole(pair) for pair in random_pairs(10, 50)]
    config = OptimizerConfig(**{**SETTINGS, "save_steps": 2, **settings})
    last = fit(model, examples, objective, config, phase="test", folder=folder, reporter=reporter or Quiet())
    return model, last


@pytest.mark.parametrize("logging_steps", [1, 4])
def test_a_trained_model_has_its_last_figures_without_its_log(tmp_path, logging_steps):
    model, last = train(tmp_path, logging_steps=logging_steps)
    (tmp_path / "metrics.jsonl").unlink()
    reporter = Quiet()
    again, figures = train(tmp_path, reporter, logging_steps=logging_steps)
    assert torch.equal(weights(again), weights(model))
    assert figures == last
    assert "loss" in figures
    lines = 6 if logging_steps == 1 else 2
    lost = f"{tmp_path / 'metrics.jsonl'} has lost {lines} of the {lines} lines of test so far"
    assert reporter.warnings == [lost]


def test_a_log_that_lost_its_end_goes_on_and_says_what_is_missing(tmp_path):
    """After step 5 of 6, from the checkpoint of step 4."""
    with pytest.raises(Killed):
        train(tmp_path, KilledAfter(5))
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:1]))
    reporter = Quiet()
    train(tmp_path, reporter)
    assert reporter.warnings == [f"{log} has lost 3 of the 4 lines of test so far"]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 5, 6]


def test_a_whole_log_is_not_said_to_be_lost(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, KilledAfter(5))
    reporter = Quiet()
    train(tmp_path, reporter)
    assert reporter.warnings == []


def test_the_log_is_on_the_disk_before_the_checkpoint_that_relies_on_it(tmp_path, monkeypatch):
    """What a power cut leaves cannot be had here; the order of the waits can."""
    synced = []
    fsync = os.fsync

    def remember(number):
        fsync(number)
        synced.append((os.readlink(f"/proc/self/fd/{number}"), os.fstat(number).st_size))

    monkeypatch.setattr(os, "fsync", remember)
    train(tmp_path, num_train_epochs=1, save_steps=3)
    whole_log = (str(tmp_path / "metrics.jsonl"), (tmp_path / "metrics.jsonl").stat().st_size)
    seals = [place for place, (name, _) in enumerate(synced) if ".checksums.json" in name]
    assert len(seals) == 1
    assert whole_log in synced[: seals[0]]
