"""A training that leaves a model that says nothing is no finished one, however late it happened."""

import pytest

from stages.devices.processes import join_processes
from stages.errors import SepoError
from stages.models.references import RunContext, refuse_not_finite
from stages.reporting import Quiet
from stages.store.manifest import FINISHED
from tests.conftest import random_pairs, tiny_llama
from tests.training.fits import objective, train
from tests.world import run_oracle, run_policy


@pytest.mark.parametrize("save_steps", [0, 2])
def test_weights_that_the_last_step_broke_are_refused(tmp_path, save_steps):
    def overflow(weight):
        """Once its gradient, which is finite, is there."""
        weight.data[0] = float("inf")

    def breaks(logps_RW, batch):
        nonlocal steps
        steps += 1
        if steps == 6:
            next(model.parameters()).register_post_accumulate_grad_hook(overflow)
        return objective(logps_RW, batch)

    steps, model = 0, tiny_llama(50)
    with pytest.raises(SepoError, match=r"^test: step 6 has left weights that are not finite; ") as caught:
        train(tmp_path, model=model, objective=breaks, save_steps=save_steps)
    assert caught.value.hint == "lower --learning-rate"
    kept = "the checkpoint after step 4 stays" if save_steps else "nothing of it was kept"
    assert caught.value.message.endswith(kept)
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == (["test-00000004"] if save_steps else [])


@pytest.mark.parametrize("stage", ["sft", "dpo", "policy"])
def test_a_model_that_diverged_in_its_last_step_is_one_line_on_every_rerun(world, chat_folder, tmp_path, stage):
    settings = {"max_steps": 1, "warmup_ratio": 0.0, "save_steps": 1}
    run = run_policy if stage == "policy" else run_oracle
    settings |= {"sft_learning_rate" if stage == "sft" else "learning_rate": 1e38}
    for _ in range(2):
        with pytest.raises(SepoError, match="not finite") as caught:
            run(world, chat_folder, output=tmp_path / "out", **settings)
        assert "lower --learning-rate" in caught.value.hint
    assert not (tmp_path / "out" / FINISHED).exists()


def test_a_model_whose_log_probs_are_not_finite_is_refused_though_its_weights_are(tmp_path):
    model, [pair] = tiny_llama(50), random_pairs(1, 50)
    context = RunContext(join_processes(), tmp_path, 512, Quiet())
    refuse_not_finite(model, pair, context)
    model.model.norm.weight.data.fill_(1e38)
    with pytest.raises(SepoError, match="log-probs of 1 of 1 pairs are not finite"):
        refuse_not_finite(model, pair, context)
