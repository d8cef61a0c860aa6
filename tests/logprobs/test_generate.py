"""Samples are the model's own, whatever the settings for generation that came with it."""

import json
import shutil

import numpy as np
import pytest
import torch

from stages.logprobs.generate import sample, stop_at
from stages.models.folders import load_model
from stages.reporting import Quiet
from tests.conftest import tiny_llama

PROMPTS = [np.array(ids, np.int32) for ids in ([5, 9, 9], [7], [5, 9, 30, 31])]


def draw(model, prompts=PROMPTS, *, seed=0, end_of_turn=None, max_new_tokens=24):
    with Quiet().task("", len(prompts), "") as task:
        return sample(
            model,
            prompts,
            end_of_turn=end_of_turn,
            max_new_tokens=max_new_tokens,
            batch_size=1000,
            seed=seed,
            task=task,
        )


def lists(answers):
    return [answer.tolist() for answer in answers]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(200))},
        {"min_p": 0.9, "do_sample": True},
        {"typical_p": 0.1, "do_sample": True},
        {"eos_token_id": list(range(200))},
        {"min_new_tokens": 24, "num_beams": 2, "temperature": 0.1, "do_sample": True, "top_k": 1},
    ],
)
def test_settings_that_came_with_a_model_change_no_sample(chat_folder, tmp_path, settings):
    folder = shutil.copytree(chat_folder, tmp_path / "model")
    plain = draw(load_model(folder, trust_remote_code=False).eval())
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = load_model(folder, trust_remote_code=False).eval()
    assert lists(draw(model)) == lists(plain)
    for name, value in settings.items():
        assert getattr(model.generation_config, name) == value


def test_tokens_are_drawn_as_often_as_the_model_says():
    """4,000 first tokens of one prompt against the model's own probabilities: chi-squared, 31 degrees of freedom."""
    model = tiny_llama(32, seed=3)
    drawn = np.concatenate(draw(model, [PROMPTS[1]] * 4000, max_new_tokens=1))
    expected = 4000 * model(torch.tensor([[7]])).logits[0, -1].softmax(-1).detach().numpy()
    seen = np.bincount(drawn, minlength=32)
    assert ((seen - expected) ** 2 / expected).sum() < 61.1  # exceeded by 1 in 1,000


def test_an_answer_ends_with_its_turn():
    model = tiny_llama(32, seed=3)
    answers = draw(model, PROMPTS * 4, end_of_turn=2)
    assert {len(answer) for answer in answers} != {24}
    assert all(2 not in answer[:-1] for answer in answers)
    assert lists(draw(model, seed=1)) != lists(draw(model))


@pytest.mark.parametrize(("named", "expected"), [(None, 5), (2, [2, 5]), ([1, 2], [1, 2, 5]), ([5, 1], [5, 1]), (5, 5)])
def test_a_model_stops_where_training_teaches_it_to(named, expected):
    model = tiny_llama(20)
    model.config.eos_token_id = model.generation_config.eos_token_id = named
    stop_at(model, None)
    assert model.generation_config.eos_token_id == named
    stop_at(model, 5)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == expected


def test_what_training_writes_says_where_it_stops(world, chatml):
    """The model it started from names no end at all."""
    end = chatml.convert_tokens_to_ids("<|im_end|>")
    for folder in ("oracle/reference", "oracle/oracle", "policy"):
        for file in ("config.json", "generation_config.json"):
            assert json.loads((world / folder / file).read_text())["eos_token_id"] == end
