"""Samples are kept under all that decides them: another seed, end of turn or length has samples of its own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.evaluation import evaluator
from stages.evaluation.evaluator import Candidate, Evaluator, Sampling
from stages.evaluation.held_out import HeldOut, Prompt
from stages.logprobs.decode import Decoded
from stages.models.loading import Loading
from tests.evaluation.conftest import Ear

PROMPTS = [Prompt(number, number, np.arange(5, 9 + number, dtype=np.int32)) for number in range(2)]


@pytest.fixture
def sample(world, monkeypatch, tmp_path):
    """Returns the answers, and whether they were drawn just now."""

    def sample(cache, seed=1, end_of_turn=None, max_new_tokens=12):
        monkeypatch.setenv("SEPO_CACHE", str(tmp_path / cache))
        ear = Ear()
        how = Sampling(max_new_tokens, seed)
        loading = Loading(torch.device("cpu"), ear)
        measured = Evaluator(None, how, max_tokens=512, loading=loading, reporter=ear)
        held_out = HeldOut(None, SimpleNamespace(end_of_turn=end_of_turn), [], None)
        model = Candidate("m", world / "policy", "hash", held_out, PROMPTS)
        return [answer.tolist() for answer in measured._answers(model)], bool(ear.tasks)

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


def test_answers_stand_at_their_prompts(sample, monkeypatch):
    """In whatever order they come."""
    monkeypatch.setattr(evaluator, "decode", lambda decoding, asked, **how: reversed([*enumerate(map(_echo, asked))]))
    assert sample("echo")[0] == [prompt.ids.tolist() for prompt in PROMPTS]


def _echo(request):
    return Decoded(request.prompt_ids, np.zeros(len(request.prompt_ids), np.float32), False)
