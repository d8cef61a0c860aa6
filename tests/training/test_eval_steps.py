"""What held-out pairs say during training is right, repeats itself, and changes nothing of the training."""

import json

import pytest
import torch

from stages import train_policy
from stages.configs import OptimizerConfig, PolicyConfig
from stages.errors import SepoError
from stages.logprobs.batches import collate, whole
from stages.logprobs.logps import Forward, weighted_logps
from stages.method.objectives import sft
from stages.reporting import Quiet
from stages.training.metrics import read_metrics
from tests.conftest import Listens, random_pairs
from tests.training.fits import Killed, KilledAfter, objective, train, weights
from tests.world import run_oracle

HELD_OUT = [whole(pair) for pair in random_pairs(5, 50, seed=9)]


def test_figures_are_those_of_the_model_and_change_nothing_of_its_training(tmp_path):
    reporter = Listens()
    plain = train(tmp_path / "plain", logging_steps=2)
    model = train(
        tmp_path / "eval", reporter=reporter, held_out=HELD_OUT, eval_steps=4, logging_steps=2, max_tokens_per_device=60
    )
    batch = collate(HELD_OUT, torch.device("cpu"))
    with torch.no_grad():
        expected = objective(weighted_logps(Forward(model), batch), batch)
    records = read_metrics(tmp_path / "eval")
    figures = [{name: record.pop(name) for name in list(record) if name.startswith("eval_")} for record in records]
    assert [len(each) for each in figures] == [0, 3, 3]
    assert figures[-1] == pytest.approx(
        {
            "eval_loss": expected.loss_B.mean().item(),
            "eval_accuracy": expected.metrics["accuracy"].mean().item(),
            "eval_reward_margin": expected.metrics["reward_margin"].mean().item(),
        },
        abs=1e-4,
    )
    assert figures[1]["eval_loss"] != figures[2]["eval_loss"]
    assert [said for said in reporter.said if "held-out" in said][-1].startswith("test, step 6, held-out pairs: loss ")
    same = train(tmp_path / "same", held_out=HELD_OUT, eval_steps=4, logging_steps=2)
    assert torch.equal(weights(same), weights(plain))
    for ours, theirs in zip(read_metrics(tmp_path / "same"), read_metrics(tmp_path / "plain"), strict=True):
        assert {name: ours[name] for name in theirs} == theirs


def test_the_loss_of_sft_is_a_mean_over_tokens(tmp_path):
    size = lambda example: float(len(example.pair.chosen_ids) + len(example.pair.rejected_ids))  # noqa: E731
    train(tmp_path, objective=sft, size=size, held_out=HELD_OUT, eval_steps=1, learning_rate=1e-9)
    records = read_metrics(tmp_path)
    assert "eval_accuracy" not in records[0]
    assert records[0]["eval_loss"] == pytest.approx(4, abs=1.5)


class Watches(Quiet):
    """Remembers the live figures."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def advance(self, amount=1, figures=None):
        self.seen.append(dict(figures or {}))


def test_the_live_figures_are_those_of_the_step_that_was_just_logged(tmp_path):
    reporter = Watches()
    train(tmp_path, reporter=reporter, held_out=HELD_OUT, eval_steps=4, logging_steps=2)
    # What a resumed run brings along comes first.
    shown, records = reporter.seen[1:], read_metrics(tmp_path)
    assert [bool(figures) for figures in shown] == [False, True] * 3
    assert [figures["loss"] for figures in shown[1::2]] == [record["loss"] for record in records]
    assert [figures.get("held-out accuracy") for figures in shown[1::2]] == [
        record.get("eval_accuracy") for record in records
    ]
    assert {"margin", "chosen logp", "rejected logp", "tokens/s", "memory, GB"} < set(shown[1])


@pytest.mark.parametrize("steps", [3, 5])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, steps):
    settings = {"held_out": HELD_OUT, "eval_steps": 2, "logging_steps": 2, "save_steps": 3}
    train(tmp_path / "a", **settings)
    with pytest.raises(Killed):
        train(tmp_path / "b", reporter=KilledAfter(steps), **settings)
    train(tmp_path / "b", **settings)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_an_oracle_is_looked_at_in_both_phases_and_a_policy_on_pairs_of_its_own(world, chat_folder, tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes((world / "pairs.jsonl").read_bytes())
    run_oracle(tmp_path, chat_folder, eval_steps=1)
    for name in ("oracle/model.safetensors", "reference/model.safetensors"):
        assert (tmp_path / "oracle" / name).read_bytes() == (world / "oracle" / name).read_bytes()
    lines = read_metrics(tmp_path / "oracle")
    assert {line["phase"] for line in lines if "eval_loss" in line} == {"sft", "dpo"}
    assert [line for line in lines if line["phase"] == "dpo"][-1]["eval_accuracy"] >= 0
    names = {"model": str(chat_folder), "scores": str(world / "scores"), "output_dir": str(tmp_path / "policy")}
    train_policy.run(PolicyConfig(**names, batch_size=8, eval_fraction=0.25, eval_steps=2), Quiet())
    manifest = json.loads((tmp_path / "policy/manifest.json").read_text())
    counts = manifest["counts"]
    assert 0 < counts["held_out"] < counts["kept"]
    assert manifest["results"]["eval_loss"] == read_metrics(tmp_path / "policy")[-1]["eval_loss"]


def test_steps_without_pairs_or_between_lines_are_refused():
    with pytest.raises(SepoError, match="eval_steps needs eval_fraction"):
        OptimizerConfig(eval_steps=1)
    with pytest.raises(SepoError, match="eval_steps must be a multiple of logging_steps, got 3, 2"):
        OptimizerConfig(eval_steps=3, logging_steps=2, eval_fraction=0.1)
