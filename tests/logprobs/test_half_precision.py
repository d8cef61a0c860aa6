"""fp16's scaler, on a CPU, where torch has one too."""

import pytest
import torch

from stages.configs import OptimizerConfig
from stages.devices.precision import price_of_float32
from stages.errors import SepoError
from stages.logprobs.batches import whole
from stages.registry import OBJECTIVES
from stages.training import loop
from stages.training.metrics import read_metrics
from tests.conftest import Listens, random_pairs, tiny_llama

sepo = OBJECTIVES["sepo"].load()


class Narrow(torch.autograd.Function):
    """The same value, its gradient infinite beyond a limit, as in a type of few bits."""

    @staticmethod
    def forward(context, values, limit):
        context.limit = limit
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient.where(gradient.abs() <= context.limit, torch.inf), None


def train(folder, monkeypatch, limit, scale, **settings):
    """Train with a scaler of that first scale, and with no gradients of log-probs beyond `limit`."""

    def scaled(*args, **options):
        accelerator = join_processes(*args, **options)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return accelerator

    join_processes = loop.join_processes
    monkeypatch.setattr(loop, "join_processes", scaled)
    folder.mkdir()
    model, ears = tiny_llama(50), Listens()
    config = OptimizerConfig(batch_size=2, learning_rate=1e-2, warmup_ratio=0.0, save_steps=0, **settings)

    def objective(logps_RW, batch):
        return sepo(Narrow.apply(logps_RW, limit), batch)

    try:
        examples = [whole(pair) for pair in random_pairs(10, 50)]
        loop.fit(model, examples, objective, config, phase="test", folder=folder, reporter=ears)
    finally:
        monkeypatch.setattr(loop, "join_processes", join_processes)
    return model, ears


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_an_overflow_passes_over_the_step_and_leaves_the_learning_rate(tmp_path, monkeypatch):
    """A log-prob's gradient is about 0.1 times the scale, which is halved until that is below the limit."""
    model, ears = train(tmp_path / "a", monkeypatch, 4.0, 64.0, lr_scheduler_type="linear")
    records = read_metrics(tmp_path / "a")
    taken = [record["gradient_norm"] is not None for record in records]
    assert all(record["gradient_norm"] > 0 for record, was in zip(records, taken, strict=True) if was)
    assert 0 < sum(taken) < 5
    assert [f"step {step} overflowed in fp16 and was not taken" in ears.said for step in range(1, 6)] == [
        not each for each in taken
    ]
    before = [sum(taken[:step]) for step in range(5)]
    assert [record["learning_rate"] for record in records] == pytest.approx([1e-2 * (1 - n / 5) for n in before])
    assert (weights(model) != weights(tiny_llama(50))).any()


def test_a_gradient_that_is_never_finite_stops_the_run(tmp_path, monkeypatch):
    with pytest.raises(SepoError, match=r"the gradient is not finite at step 4 \(pairs .*that step was not taken"):
        train(tmp_path / "a", monkeypatch, -1.0, 4.0, num_train_epochs=9)


def test_float32_says_what_it_costs_on_a_gpu_alone():
    assert "use another" in price_of_float32(torch.device("cuda"), "use another")
    assert price_of_float32(torch.device("cpu"), "use another") is None
