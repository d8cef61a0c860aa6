"""metrics.jsonl and the checkpoints: what one knows of the other when one of them is lost."""

import json
import os

import pytest
import torch
from accelerate import Accelerator

from stages.configs import OptimizerConfig
from stages.errors import SepoError
from stages.logprobs.batches import whole
from stages.reporting import Quiet
from stages.training.loop import fit
from stages.training.metrics import MetricLog, read_metrics, read_times
from stages.types import PairLoss
from tests.conftest import random_pairs, tiny_llama
from tests.training.fits import SETTINGS, Killed, KilledAfter, objective, weights


def train(folder, reporter=None, phase="test", **settings):
    """Returns the model and the figures of the last line."""
    folder.mkdir(exist_ok=True)
    model = tiny_llama(50)
    examples = [whole(pair) for pair in random_pairs(10, 50)]
    config = OptimizerConfig(**{**SETTINGS, "save_steps": 2, **settings})
    last = fit(model, examples, objective, config, phase=phase, folder=folder, reporter=reporter or Quiet())
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


JUNK = [
    b"\x00\xff\x80",
    b"[]",
    b"null",
    b'{"phase": "test"}',
    b'{"phase": 3, "step": 1}',
    b'{"phase": "test", "step": "1"}',
]
JUNK += [
    b'{"phase": "test", "step": NaN}',
    b'{"phase": "test", "step": 1, "loss": "x"}',
    b'{"phase": "test", "st',
    b"[" * 9999,
]
JUNK += [b'{"phase": "test", "step": 1, "loss": NaN, "seconds": Infinity}', b'{"phase": "test", "step": 1e400}', b""]


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
def test_damaged_lines_are_left_out_and_the_run_goes_on(tmp_path, name):
    train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", KilledAfter(5))
    log = tmp_path / "cut" / name
    first, *rest = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"\n".join(JUNK) + b"\n" + first + b"\n".join(JUNK) + b"\n" + b"".join(rest))
    assert len(read_times(tmp_path / "cut")) == len(read_metrics(tmp_path / "cut"))
    reporter = Quiet()
    train(tmp_path / "cut", reporter)
    assert reporter.warnings == [f"{log} had {2 * len(JUNK)} damaged lines: left out"]
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert [line["step"] for line in read_times(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]


def test_a_bit_that_flipped_in_a_logged_figure_is_found_by_the_checkpoint(tmp_path):
    """A line of the phase itself, and one of the phase before it."""
    with pytest.raises(Killed):
        train(tmp_path, KilledAfter(1), phase="before")
    before = len(read_metrics(tmp_path))
    with pytest.raises(Killed):
        train(tmp_path, KilledAfter(5))
    log = tmp_path / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == before + 6
    for number in (0, before):
        digit = lines[number].index(b'"loss": ') + len(b'"loss": ')
        lines[number] = lines[number][:digit] + bytes([lines[number][digit] ^ 1]) + lines[number][digit + 1 :]
    log.write_bytes(b"".join(lines))
    reporter = Quiet()
    train(tmp_path, reporter)
    assert reporter.warnings == [f"{log} has lost 1 of the 4 lines of test so far"]
    assert [(line["phase"], line["step"]) for line in read_metrics(tmp_path)] == [
        *[("before", step) for step in range(2, before + 1)],
        *[("test", step) for step in (2, 3, 4, 5, 6)],
    ]


def test_a_log_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(SepoError, match=r"^cannot read .*metrics\.jsonl: not a regular file$"):
        train(tmp_path)


def test_figures_that_are_not_finite_are_logged_as_unknown(tmp_path):
    log = MetricLog(Accelerator(cpu=True), tmp_path, "test", 1, Quiet())
    log.end_step(0, [], float("inf"), float("nan"), {}, last=True)
    [line] = read_metrics(tmp_path)
    assert line["learning_rate"] is line["gradient_norm"] is None


def test_a_log_of_the_first_version_goes_on_under_todays_names(tmp_path):
    """It called the log-ratio an estimate of the KL: in its lines, and in the sums of a checkpoint between two lines."""
    old, new = (MetricLog(Accelerator(cpu=True), tmp_path, "test", 2, Quiet()) for _ in range(2))
    old.add(PairLoss(torch.ones(2), {"kl_estimate": torch.tensor([1.0, 3.0])}), 2)
    old.end_step(0, [], 0.1, 0.1, {}, last=True)
    old.add(PairLoss(torch.ones(2), {"kl_estimate": torch.tensor([1.0, 3.0])}), 2)
    old.end_step(2, [], 0.1, 0.1, {}, last=False)
    assert b"kl_estimate" in (tmp_path / "metrics.jsonl").read_bytes()
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    new.start(3)
    new.add(PairLoss(torch.ones(2), {"log_ratio": torch.tensor([5.0, 7.0])}), 2)
    new.end_step(3, [], 0.1, 0.1, {}, last=True)
    assert [line["log_ratio"] for line in read_metrics(tmp_path)] == [2.0, 4.0]
    assert not any("kl_estimate" in line for line in read_metrics(tmp_path))
