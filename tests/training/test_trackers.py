"""What a tracker gets is what metrics.jsonl has."""

from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stages import train_policy
from stages.configs import OptimizerConfig, PolicyConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.training.metrics import read_metrics
from stages.training.trackers import tracking
from tests.training.fits import Asks, train


def scalars(folder, run="sepo"):
    """Values by name and step, as TensorBoard shows them."""
    found = EventAccumulator(str(folder / "trackers/test" / run))
    found.Reload()
    return {
        (name, event.step): event.value
        for name in found.Tags()["scalars"]
        for event in found.Scalars(name)
        if name.startswith("test/")
    }


def logged(folder):
    return {
        (f"test/{name}", record["step"]): value
        for record in read_metrics(folder)
        for name, value in record.items()
        if isinstance(value, float)
    }


def test_tensorboard_has_the_values_of_metrics_jsonl(tmp_path):
    train(tmp_path, report_to="tensorboard", logging_steps=2)
    assert len(logged(tmp_path)) > 20
    assert scalars(tmp_path) == pytest.approx(logged(tmp_path), rel=1e-6)


def test_a_run_is_called_by_its_name(tmp_path, monkeypatch):
    train(tmp_path, report_to="tensorboard", run_name="my run")
    assert scalars(tmp_path, "my run") == pytest.approx(logged(tmp_path), rel=1e-6)
    accelerator, given = SimpleNamespace(trackers=[]), []
    accelerator.init_trackers = lambda project, config, init_kwargs: given.append((project, init_kwargs))
    with tracking(accelerator, OptimizerConfig(report_to="wandb", run_name="my run"), 0):
        assert given == [("sepo", {"wandb": {"name": "my run"}})]
    for settings in ({}, {"report_to": "aim"}):
        with pytest.raises(SepoError, match="run_name needs report_to tensorboard, wandb"):
            OptimizerConfig(run_name="x", **settings)
    with pytest.raises(SepoError, match=r"run_name must be a name without slashes, got '\.\./x'"):
        OptimizerConfig(run_name="../x", report_to="tensorboard")


def test_a_resumed_run_shows_every_step_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, report_to="tensorboard", reporter=Asks(2, 2), save_steps=100)
    train(tmp_path, report_to="tensorboard", save_steps=100)
    assert {step for _, step in scalars(tmp_path)} == {1, 2, 3, 4, 5, 6}
    assert scalars(tmp_path) == pytest.approx(logged(tmp_path), rel=1e-6)


def test_without_a_tracker_there_is_nothing_of_it(tmp_path):
    train(tmp_path)
    assert not (tmp_path / "trackers").exists()


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_before_anything(tmp_path):
    names = {"model": "no-such-model", "scores": str(tmp_path), "output_dir": str(tmp_path / "p")}
    with pytest.raises(SepoError, match=r"report_to must be one of none, tensorboard, .*, got 'paper'"):
        PolicyConfig(**names, report_to="paper")
    with pytest.raises(SepoError, match="--report-to aim needs aim, which is not installed") as caught:
        train_policy.run(PolicyConfig(**names, report_to="aim"), Quiet())
    assert caught.value.hint == "pip install aim"
    assert not (tmp_path / "p").exists()
