import json
import math
import re

import pytest
import torch

from stages.configs import OptimizerConfig
from stages.errors import SepoError
from stages.logprobs.batches import collate, whole
from stages.logprobs.logps import Forward, weighted_logps
from stages.method.objectives import sft
from stages.reporting import Quiet
from stages.training.loop import fit
from stages.training.metrics import read_metrics, read_times, training_warnings
from stages.training.schedule import make_schedule, order_of_epoch
from tests.conftest import random_pairs, tiny_llama, token_pair
from tests.training.fits import SETTINGS, objective, train, weights


def test_the_loss_goes_down_and_every_parameter_moves(tmp_path):
    start = tiny_llama(50)
    model = train(tmp_path, pairs=4, num_train_epochs=20)
    records = read_metrics(tmp_path)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    for (name, before), after in zip(start.named_parameters(), model.parameters(), strict=True):
        assert (before != after).any(), name


@pytest.mark.parametrize("max_tokens", [20, 45, 90])
def test_the_token_budget_does_not_change_the_gradient(tmp_path, max_tokens):
    whole_step = train(tmp_path / "a", max_tokens_per_device=100_000)
    in_parts = train(tmp_path / "b", max_tokens_per_device=max_tokens)
    torch.testing.assert_close(weights(in_parts), weights(whole_step), atol=2e-5, rtol=1e-4)
    for ours, theirs in zip(read_metrics(tmp_path / "b"), read_metrics(tmp_path / "a"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_one_step_is_adamw_on_the_mean_of_pair_losses(tmp_path):
    """The plain way: the mean loss of all pairs, one torch.optim.AdamW step, gradients clipped to norm 1."""
    model = train(tmp_path, pairs=6, batch_size=6, num_train_epochs=1, max_tokens_per_device=60)
    plain = tiny_llama(50)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    batch = collate([whole(pair) for pair in random_pairs(6, 50)], torch.device("cpu"))
    objective(weighted_logps(Forward(plain), batch), batch).loss_B.mean().backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    torch.testing.assert_close(weights(model), weights(plain), atol=2e-5, rtol=1e-4)


def test_norms_are_not_decayed(tmp_path):
    """With a learning rate that moves nothing, only decay is left: 0.1 x 0.5 of every matrix in each of the two steps."""
    start, decayed = tiny_llama(50), tiny_llama(50)
    train(
        tmp_path,
        model=decayed,
        pairs=4,
        weight_decay=0.5,
        learning_rate=1e-1,
        max_grad_norm=1e-30,
        lr_scheduler_type="constant",
    )
    for (name, before), after in zip(start.named_parameters(), decayed.named_parameters(), strict=True):
        factor = 0.95**2 if before.ndim > 1 else 1.0
        torch.testing.assert_close(after[1], before * factor, msg=name)


def test_sft_divides_by_the_tokens_of_the_step(tmp_path):
    train(
        tmp_path,
        objective=sft,
        size=lambda example: float(len(example.pair.chosen_ids) + len(example.pair.rejected_ids)),
        learning_rate=1e-9,
        batch_size=10,
        num_train_epochs=1,
    )
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(math.log(50), abs=1.0)


@pytest.mark.parametrize(
    "option",
    [
        {"learning_rate": 2e-2},
        {"batch_size": 5},
        {"num_train_epochs": 3},
        {"max_steps": 2},
        {"warmup_ratio": 0.5},
        {"lr_scheduler_type": "linear"},
        {"weight_decay": 0.5},
        {"max_grad_norm": 0.01},
        {"seed": 7},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(tmp_path, option):
    assert not torch.equal(weights(train(tmp_path / "a")), weights(train(tmp_path / "b", **option)))


def test_the_same_seed_gives_the_same_bits(tmp_path):
    assert torch.equal(weights(train(tmp_path / "a")), weights(train(tmp_path / "b")))
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_a_run_of_one_step_moves_the_weights(tmp_path):
    model = train(tmp_path, pairs=4, num_train_epochs=1, warmup_ratio=0.05)
    assert not torch.equal(weights(model), weights(tiny_llama(50)))


def test_every_epoch_has_an_order_of_its_own():
    assert order_of_epoch(20, 0, 42) != order_of_epoch(20, 1, 42) != order_of_epoch(20, 1, 43)
    assert sorted(order_of_epoch(20, 1, 42)) == list(range(20))


def test_a_smaller_last_step_is_weighted_by_its_own_pairs(tmp_path):
    """Pairs 8 and 9 of ten make the third step of an epoch of 4, 4 and 2: its logged loss is their mean."""
    train(tmp_path, learning_rate=1e-9, num_train_epochs=1)
    order = order_of_epoch(10, 0, 42)
    examples = [whole(random_pairs(10, 50)[place]) for place in order[8:]]
    batch = collate(examples, torch.device("cpu"))
    with torch.no_grad():
        expected = objective(weighted_logps(Forward(tiny_llama(50)), batch), batch).loss_B.mean().item()
    record = read_metrics(tmp_path)[2]
    assert record["loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_pair_and_stops_before_the_weights_change(tmp_path, bad):
    """Two steps are taken; in the third one pair's loss breaks, and only that pair is named."""
    order = order_of_epoch(10, 0, 42)
    culprit = random_pairs(10, 50)[order[8]]
    good = train(tmp_path / "good", num_train_epochs=1, max_steps=2, lr_scheduler_type="constant")

    def broken(logps_RW, batch):
        loss = objective(logps_RW, batch)
        is_it = torch.isin((batch.weights_RW != 0).sum(-1), torch.tensor([len(culprit.chosen_ids)])).chunk(2)[0]
        breaks = is_it & (len(loss.loss_B) == 1)
        return loss._replace(loss_B=torch.where(breaks, loss.loss_B * bad, loss.loss_B))

    model = tiny_llama(50)
    settings = {"max_tokens_per_device": 2, "lr_scheduler_type": "constant", "num_train_epochs": 1}
    # Every pair has a micro-batch of its own; those of the first two steps are left alone.
    calls = iter(range(100))

    def late(logps_RW, batch):
        return (broken if next(calls) >= 8 else objective)(logps_RW, batch)

    message = rf"the loss is not finite at step 3 \(pairs {culprit.pair_id}\); that step was not taken"
    with pytest.raises(SepoError, match=message):
        train(tmp_path / "bad", objective=late, model=model, **settings)
    torch.testing.assert_close(weights(model), weights(good), atol=2e-5, rtol=1e-4)
    assert [line["step"] for line in read_metrics(tmp_path / "bad")] == [1, 2]


class _BrokenBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("nan")


def test_a_loss_that_is_not_finite_stops_a_run_whose_gradient_is(tmp_path):
    """An infinite constant has no gradient: the norm alone would not tell."""

    def endless(logps_RW, batch):
        found = objective(logps_RW, batch)
        return found._replace(loss_B=found.loss_B + float("inf"))

    with pytest.raises(SepoError, match="the loss is not finite at step 1 "):
        train(tmp_path, objective=endless)


def test_a_gradient_that_is_not_finite_names_the_pairs_of_its_step(tmp_path):
    model = tiny_llama(50)
    before = weights(model)
    ids = ", ".join(map(str, sorted(order_of_epoch(10, 0, 42)[:4])))
    with pytest.raises(SepoError, match=rf"the gradient is not finite at step 1 \(pairs {ids}\)"):
        train(tmp_path, objective=lambda logps, batch: objective(_BrokenBackward.apply(logps), batch), model=model)
    assert torch.equal(weights(model), before)


def test_logging_steps_average_over_the_steps_between(tmp_path):
    train(tmp_path / "a", batch_size=5)
    train(tmp_path / "b", batch_size=5, logging_steps=2)
    every, second = read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b")
    assert [record["step"] for record in second] == [2, 4]
    for name in ("loss", "accuracy", "chosen_reward"):
        assert second[0][name] == pytest.approx((every[0][name] + every[1][name]) / 2, abs=1e-5)


def test_metrics_are_json_lines_with_the_loss_of_the_batch(tmp_path):
    train(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    wanted = {"phase", "step", "loss", "accuracy", "chosen_reward", "rejected_reward", "reward_margin"}
    wanted |= {"chosen_logp", "rejected_logp", "selected_share"}
    assert wanted | {"learning_rate", "gradient_norm"} == set(lines[0])


@pytest.mark.parametrize(
    ("pairs", "settings", "steps", "text"),
    [
        (640, {"batch_size": 8}, 80, "640 pairs = 80 steps (80 x 8), 4 of them warm-up"),
        (645, {"batch_size": 8, "num_train_epochs": 2}, 162, "645 pairs = 81 steps (80 x 8 + 1 x 5) x 2 epochs = 162 steps, 9 of them warm-up"),
        (10, {"batch_size": 128}, 1, "10 pairs = 1 step (1 x 10), 0 of them warm-up"),
        (640, {"batch_size": 8, "max_steps": 100}, 100, "640 pairs = 80 steps (80 x 8) x 2 epochs = 160 steps, stopped after 100, 5 of them warm-up"),
    ],
)  # fmt: skip
def test_the_schedule_says_its_sum(pairs, settings, steps, text):
    schedule = make_schedule(pairs, OptimizerConfig(**settings))
    assert schedule.steps == steps
    assert str(schedule) == text


def test_an_epoch_takes_every_pair_once():
    schedule = make_schedule(10, OptimizerConfig(batch_size=4, num_train_epochs=2))
    order = list(range(10))
    assert [len(schedule.step_of(order, step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert sorted(place for step in range(3, 6) for place in schedule.step_of(order, step)) == order
    assert [schedule.epoch_of(step) for step in range(6)] == [0, 0, 0, 1, 1, 1]


def test_pairs_that_are_long_alone_still_train(tmp_path):
    examples = [whole(token_pair(0, [1] * 20, [2] * 30, [3] * 10))]
    config = OptimizerConfig(**{**SETTINGS, "max_tokens_per_device": 2})
    last = fit(tiny_llama(50), examples, objective, config, phase="test", folder=tmp_path, reporter=Quiet())
    assert math.isfinite(last["loss"])


def test_too_little_memory_says_which_knob_and_keeps_what_was_trained(tmp_path):
    """A real allocation that no machine can make, in the last micro-batch of the third step."""
    sizes = []

    def hungry(logps_RW, batch):
        sizes.append(batch.weights_RW.shape)
        return objective(logps_RW + (torch.empty(10**15).sum() if len(sizes) == 3 else 0), batch)

    with pytest.raises(
        SepoError, match=r"out of memory in a micro-batch of 2 pairs with \d+ tokens \(budget 2,048\)"
    ) as caught:
        train(tmp_path, objective=hungry, save_steps=100, num_train_epochs=1)
    tokens = int(re.search(r"with (\d+) tokens", caught.value.message)[1])
    assert caught.value.hint.startswith(f"use --max-tokens-per-device {tokens // 2}:")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["test-00000002"]
    with pytest.raises(SepoError, match="of 1 pairs") as caught:
        train(tmp_path / "b", objective=lambda logps, batch: torch.empty(10**15), max_tokens_per_device=2)
    assert re.search(r"one pair alone, whose longer row has (\d+) tokens: .* --max-length \d+$", caught.value.hint)


def test_another_fault_of_a_step_keeps_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="my own"):
        train(tmp_path, objective=lambda logps, batch: (_ for _ in ()).throw(RuntimeError("my own")))


def test_times_and_memory_stand_in_a_file_of_their_own(tmp_path):
    train(tmp_path, logging_steps=4)
    lines = read_times(tmp_path)
    assert [line["step"] for line in lines] == [4, 6]
    tokens = sum(len(part) for pair in random_pairs(10, 50) for part in pair[1:])
    done = sum(line["seconds"] * line["tokens_per_second"] for line in lines)
    assert done == pytest.approx(2 * tokens)
    assert sum(line["seconds"] * line["pairs_per_second"] for line in lines) == pytest.approx(20)
    assert all(0.05 < line["peak_memory_gb"] < 100 for line in lines)


def test_a_collapse_is_warned_of_once_and_again_in_the_manifest(tmp_path):
    """A loss that only pushes the chosen responses down."""

    def down(logps_RW, batch):
        loss = objective(logps_RW, batch)
        return loss._replace(loss_B=logps_RW.sum(-1).chunk(2)[0])

    reporter = Quiet()
    train(tmp_path, objective=down, reporter=reporter, num_train_epochs=6)
    assert len(reporter.warnings) == 1
    assert re.match(r"test, step \d+: the chosen responses have become less probable", reporter.warnings[0])
    assert training_warnings(tmp_path) == reporter.warnings
    calm = Quiet()
    train(tmp_path / "calm", reporter=calm)
    assert calm.warnings == training_warnings(tmp_path / "calm") == []
