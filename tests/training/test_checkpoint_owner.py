"""Whose a checkpoint is: a run goes on from its own, and from no other's."""

import shutil
from functools import partial

import pytest
import torch

from stages.configs import OptimizerConfig
from stages.errors import SepoError
from stages.logprobs.batches import whole
from stages.reporting import Quiet
from stages.training.loop import fit
from tests.conftest import random_pairs, tiny_llama
from tests.training.fits import SETTINGS, Killed, KilledIn, objective, weights
from tests.world import run_oracle, run_policy


def train(folder, fingerprint, epochs=2):
    folder.mkdir(exist_ok=True)
    model = tiny_llama(50)
    config = OptimizerConfig(**{**SETTINGS, "save_steps": 2, "num_train_epochs": epochs})
    examples = [whole(pair) for pair in random_pairs(10, 50)]
    fit(model, examples, objective, config, phase="t", folder=folder, reporter=Quiet(), fingerprint=fingerprint)
    return model


def test_another_runs_checkpoint_is_refused_and_kept(tmp_path):
    first = train(tmp_path, "sha256:one")
    with pytest.raises(SepoError, match=r"t-00000006 is of another run$") as caught:
        train(tmp_path, "sha256:two")
    assert caught.value.hint == f"move {tmp_path / 'checkpoints'} away, and run the same again"
    assert torch.equal(weights(train(tmp_path, "sha256:one")), weights(first))


def test_a_checkpoint_beyond_the_schedule_is_refused(tmp_path):
    train(tmp_path, "sha256:one")
    with pytest.raises(SepoError, match=r"t-00000006 is beyond the 3 steps of this run$"):
        train(tmp_path, "sha256:one", epochs=1)


def test_checkpoints_copied_from_another_run_are_refused_by_both_stages(world, chat_folder, tmp_path):
    """The other run differs in one setting, which does not show in the files."""
    policy, oracle = partial(run_policy, world, chat_folder), partial(run_oracle, world, chat_folder)
    for train, phase, setting in (
        (policy, "sepo", {"gamma": 3.0}),
        (oracle, "sft", {"beta": 0.7}),
        (oracle, "dpo", {"beta": 0.7}),
    ):
        one, two = tmp_path / f"{phase}-one", tmp_path / f"{phase}-two"
        for folder, settings in ((one, {}), (two, setting)):
            with pytest.raises(Killed):
                train(output=folder, save_steps=1, reporter=KilledIn(phase, 2), **settings)
        shutil.rmtree(two / "checkpoints")
        shutil.copytree(one / "checkpoints", two / "checkpoints")
        with pytest.raises(SepoError, match=f"{phase}-00000002 is of another run"):
            train(output=two, save_steps=1, **setting)
