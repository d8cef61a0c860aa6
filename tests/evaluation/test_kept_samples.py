"""Samples are kept under all that decides them: another seed, end of turn or length has samples of its own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages import evaluate
from stages.configs import EvaluateConfig
from stages.evaluation.held_out import HeldOut, Prompt
from stages.evaluation.judged import Judged
from tests.evaluation.conftest import Ear

PROMPTS = [Prompt(number, number, np.arange(5, 9 + number, dtype=np.int32)) for number in range(2)]


@pytest.fixture
def sample(world, monkeypatch, tmp_path):
    """Returns the answers, and whether they were drawn just now."""

    def sample(cache, seed=1, end_of_turn=None, max_new_tokens=12):
        monkeypatch.setenv("SEPO_CACHE", str(tmp_path / cache))
        ear = Ear()
        config = EvaluateConfig(models=("m",), dataset="d", seed=seed, max_new_tokens=max_new_tokens)
        judged = Judged(None, max_tokens=512, device=torch.device("cpu"), trust_remote_code=False, reporter=ear)
        held_out = HeldOut(None, SimpleNamespace(end_of_turn=end_of_turn), [], None)
        model = evaluate.Model("m", world / "policy", "hash", held_out, PROMPTS)
        job = evaluate.Job(config, [model], None, judged, ear, known={})
        return [answer.tolist() for answer in evaluate._answers(job, model, PROMPTS)], bool(ear.tasks)

    return sample


@pytest.mark.parametrize("change", ["seed", "end_of_turn", "max_new_tokens"])
def test_other_settings_have_other_samples(sample, change):
    first, drawn = sample("shared")
    assert drawn
    assert sample("shared") == (first, False)
    other = {"seed": 2, "end_of_turn": first[0][3], "max_new_tokens": 5}
    settings = {change: other[change]}
    after, drawn = sample("shared", **settings)
    assert drawn
    assert (after, True) == sample("alone", **settings)
    assert after != first
