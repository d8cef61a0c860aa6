"""A signal ends a training run after its step, with a checkpoint."""

import signal

import pytest
import torch
from accelerate import Accelerator

from stages.training.metrics import read_metrics
from tests.training.fits import Asks, train, weights


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(tmp_path, number):
    """Asked behind the second step, it leaves behind the third, by what the signal does outside of training."""

    class Asked(BaseException):
        pass

    def before(number, frame):
        raise Asked

    untouched = train(tmp_path / "a")
    reporter = Asks(2, number)
    old = signal.signal(number, before)
    try:
        with pytest.raises(Asked):
            train(tmp_path / "b", reporter=reporter, save_steps=100)
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, old)
    assert [path.name for path in (tmp_path / "b/checkpoints").iterdir()] == ["test-00000003"]
    assert reporter.said[-1] == "test: interrupted after step 3; 3 steps are safe"
    assert torch.equal(weights(train(tmp_path / "b", save_steps=100)), weights(untouched))
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_a_second_signal_leaves_at_once_and_harms_nothing(tmp_path, monkeypatch):
    """It comes while the checkpoint that the first one asked for is being written."""
    save_state = Accelerator.save_state

    def slow(self, folder, **how):
        save_state(self, folder, **how)
        if "00000003" in folder.rsplit("/", 1)[1]:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Accelerator, "save_state", slow)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, reporter=Asks(2, signal.SIGINT), save_steps=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["test-00000002"]


def test_a_sigterm_that_a_scheduler_and_a_launcher_send_at_once_is_one(tmp_path):
    class Twice(Asks):
        def advance(self, amount=1, figures=None):
            super().advance(amount, figures)
            if self.after == 0:
                signal.raise_signal(signal.SIGTERM)

    def before(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, before)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, reporter=Twice(2), save_steps=100)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["test-00000003"]


def test_a_signal_is_not_lost_in_the_last_step(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, reporter=Asks(6, signal.SIGINT))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
