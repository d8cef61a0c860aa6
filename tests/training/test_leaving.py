"""A run that is asked to end gives up a step that would take too long, and says where even that would not do."""

import signal

import pytest
import torch

from stages.training import leaving
from stages.training.leaving import VARIABLE, Leaving
from tests.conftest import Listens
from tests.training.fits import objective, train, weights

SETTINGS = {"save_steps": 100, "max_tokens_per_device": 50, "pairs": 12}
"""more than one micro-batch a step"""


@pytest.mark.parametrize("given", ["0", ""])
def test_a_step_that_takes_too_long_is_given_up_and_harms_nothing(tmp_path, monkeypatch, given):
    """The signal comes in the first micro-batch of the third step; of the others nothing is computed but one pair."""
    monkeypatch.setenv(VARIABLE, given)
    sizes = []

    def asked(logps_RW, batch):
        sizes.append(len(logps_RW) // 2)
        if sum(sizes) > 8 and sum(sizes[:-1]) <= 8:
            signal.raise_signal(signal.SIGINT)
        return objective(logps_RW, batch)

    untouched = train(tmp_path / "a", **SETTINGS)
    reporter = Listens()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", objective=asked, reporter=reporter, **SETTINGS)
    [checkpoint] = (tmp_path / "b/checkpoints").iterdir()
    if given:
        assert checkpoint.name == "test-00000002"
        assert reporter.said[-1] == "test: interrupted in step 3, which takes too long to finish; 2 steps are safe"
    else:
        assert checkpoint.name == "test-00000003"
    assert sizes[-2:] == ([2, 1] if given else [2, 2])
    assert torch.equal(weights(train(tmp_path / "b", **SETTINGS)), weights(untouched))
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def timed(part, seconds, times, clock):
    with times.timed(part):
        clock[0] += seconds


def test_a_launcher_that_waits_too_short_is_spoken_of_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(leaving.time, "monotonic", lambda: clock[0])
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    times = Leaving()
    assert not times.is_short(judges=True)
    timed("step", 21, times, clock)
    times.stepped(3)
    # Seven seconds for a micro-batch are few enough.
    assert times.is_short(judges=False)
    assert times.warning() == ""
    timed("checkpoint", 14, times, clock)
    said = times.warning()
    assert "a micro-batch (7 s) and a checkpoint (14 s), and its launcher kills it after 30 s" in said
    assert f"set {VARIABLE}=50 where it is started" in said
    assert times.warning() == ""
    monkeypatch.setenv(VARIABLE, "50")
    times = Leaving()
    timed("step", 33, times, clock)
    assert not times.is_short(judges=True)
    timed("held-out pairs", 34, times, clock)
    # A step whose held-out pairs are due takes their time too.
    assert times.is_short(judges=True)
    assert not times.is_short(judges=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert times.warning() == ""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert "the held-out pairs (34 s), and its launcher kills it after 50 s" in times.warning()
