"""A training run that ended early goes on from its checkpoints to the same bits."""

import signal

import pytest
import torch

from stages.training.checkpoints import Checkpoints, forget_checkpoints
from stages.training.metrics import read_metrics
from tests.conftest import Listens
from tests.training.fits import Asks, Killed, KilledAfter, train, weights


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4)])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, steps, every):
    """Also where a checkpoint lies between two lines of the log: what was summed up is part of it."""
    untouched = train(tmp_path / "a", save_steps=2, logging_steps=every)
    with pytest.raises(Killed):
        train(tmp_path / "b", reporter=KilledAfter(steps), save_steps=2, logging_steps=every)
    resumed = train(tmp_path / "b", save_steps=2, logging_steps=every)
    assert torch.equal(weights(resumed), weights(untouched))
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_a_run_really_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step: (saved.append(step), save(self, step)))
    with pytest.raises(Killed):
        train(tmp_path, reporter=KilledAfter(4), save_steps=2)
    assert saved == [2, 4]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["test-00000004"]
    train(tmp_path, save_steps=2)
    assert saved == [2, 4, 6]


def test_a_trained_model_that_was_not_saved_is_not_trained_again(tmp_path):
    """The last step has a checkpoint, which stays until the caller forgets it."""
    first = train(tmp_path, save_steps=4)
    again = train(tmp_path, save_steps=4)
    assert torch.equal(weights(first), weights(again))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    forget_checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "timing.jsonl"}


def test_half_a_line_of_metrics_does_not_stop_a_resume(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, reporter=KilledAfter(3), save_steps=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "test", "ste')
    train(tmp_path, save_steps=2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("limit", "kept"), [(1, [6]), (2, [4, 6]), (9, [2, 4, 6])])
def test_the_newest_checkpoints_are_kept(tmp_path, limit, kept):
    train(tmp_path, save_steps=2, save_total_limit=limit)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"test-{step:08d}" for step in kept]


@pytest.mark.parametrize(
    ("fault", "limit"),
    [("truncated", 2), ("flipped", 2), ("emptied", 2), ("missing", 2), ("unsealed", 2), ("flipped", 1)],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(tmp_path, fault, limit):
    untouched = train(tmp_path / "a", num_train_epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", reporter=Asks(1, signal.SIGINT), save_steps=1, save_total_limit=limit, num_train_epochs=1)
    newest = tmp_path / "b/checkpoints/test-00000002"
    victim = newest / ("checksums.json" if fault == "unsealed" else "optimizer.bin")
    data = victim.read_bytes()
    if fault in ("missing", "unsealed"):
        victim.unlink()
    else:
        torn = {
            "truncated": data[:-100],
            "flipped": data[:2000] + bytes([data[2000] ^ 4]) + data[2001:],
            "emptied": b"",
        }
        victim.write_bytes(torn[fault])
    reporter = Listens()
    again = train(tmp_path / "b", reporter=reporter, save_steps=1, save_total_limit=limit, num_train_epochs=1)
    assert f"{newest} is damaged" in reporter.warnings[0]
    if limit == 2:
        assert any("goes on after step 1" in text for text in reporter.said)
    else:
        assert reporter.warnings[1] == "test: no sound checkpoint is left; it starts anew"
    assert torch.equal(weights(again), weights(untouched))
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()
