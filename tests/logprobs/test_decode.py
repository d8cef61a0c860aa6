"""Answers decoded together are those that a model gives one prompt at a time."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from stages.devices.precision import products
from stages.errors import SepoError
from stages.logprobs.decode import DecodePlan, DecodeRequest, decode
from stages.logprobs.decode_trial import find_decoding
from stages.logprobs.logps import Forward, response_logps
from stages.logprobs.paths import find_paths
from stages.models.habits import Habits
from stages.reporting import Quiet
from stages.types import TokenPair
from tests.conftest import Listens, tiny_llama
from tests.logprobs.zoo import VOCABULARY, tiny

END = 7
ROOMS = (12, 7, 20, 3, 16)
"""of the answers to `PROMPTS`"""
PROMPTS = [
    np.random.default_rng(1).integers(0, VOCABULARY, length).astype(np.int32) for length in (9, 3, 5, 5, 14)
]  # fmt: skip
OTHER = np.array([0], np.int32)
TOGETHER = ("llama", "gpt2, absolute positions", "gemma3, a window of 4", "mamba, a state space", "lfm2, a convolution")


def asked(temperature=0.0, top_p=1.0, prompts=PROMPTS, rooms=ROOMS):
    pairs = enumerate(zip(prompts, rooms, strict=True))
    return [DecodeRequest(prompt, temperature, top_p, room, seed) for seed, (prompt, room) in pairs]


def answers(model, requests, max_tokens=10**6, ends=(END,), processors=None):
    decoding = find_decoding(find_paths(model, Quiet()), Quiet())
    found = dict(decode(decoding, requests, ends=ends, max_tokens=max_tokens, processors=processors))
    assert sorted(found) == [*range(len(requests))]
    return [found[index] for index in range(len(requests))]


def generated(model, prompt, room, **options):
    """What transformers answers to one prompt."""
    how = GenerationConfig(max_new_tokens=room, do_sample=False, eos_token_id=END, pad_token_id=0, **options)
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    model(ids[:, :1])  # lets go of frequencies that it has from a longer row
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "gpt2, absolute positions",
        "gemma3, a window of 4",
        "granite, scaled logits",
        "mamba, a state space",
        "lfm2, a convolution",
        "phi3, longrope beyond 12 positions",
    ],
)
def test_the_likeliest_tokens_are_those_of_generate(family):
    model = tiny(family)
    expected = [generated(model, prompt, room) for prompt, room in zip(PROMPTS, ROOMS, strict=True)]
    assert len({*map(len, expected)}) > 2
    for max_tokens in (1, 60, 10**6):
        found = answers(model, asked(), max_tokens)
        assert [each.answer_ids.tolist() for each in found] == expected
        assert [each.ended for each in found] == [ids[-1] == END for ids in expected]


def test_tokens_are_penalised_as_by_generate():
    """Of a row its own alone, whatever it is padded with."""
    model, penalty = tiny("llama"), {"repetition_penalty": 1.5}
    # What rows are often padded with is what a short prompt is answered with.
    model.lm_head.weight.data[0] = 1.1 * model.lm_head.weight.data[generated(model, PROMPTS[1], 1)[0]]
    expected = [generated(model, prompt, room, **penalty) for prompt, room in zip(PROMPTS, ROOMS, strict=True)]
    assert (0 in PROMPTS[1], expected[1][0]) == (False, 0)
    # Of one token the likeliest is drawn at any temperature.
    for requests, habits in ((asked(), Habits(**penalty)), (asked(2.0), Habits(top_k=1, **penalty))):
        found = answers(model, requests, processors=habits.processors())
        assert [each.answer_ids.tolist() for each in found] == expected


@pytest.mark.parametrize("family", ["llama", "gemma3, a window of 4", "mamba, a state space", "recurrent gemma"])
def test_log_probs_are_those_of_the_primitive(family):
    """Of the model itself, however its tokens were drawn."""
    model = tiny(family)
    found = answers(model, asked(temperature=0.7, top_p=0.9), processors=Habits(repetition_penalty=1.5).processors())
    pairs = [TokenPair(n, PROMPTS[n], each.answer_ids, OTHER) for n, each in enumerate(found)]
    [expected] = response_logps([find_paths(model, Quiet())], pairs, max_tokens=1000, device=model.device, task=Quiet())
    for each, logps in zip(found, expected, strict=True):
        np.testing.assert_allclose(each.logps, logps.chosen, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        *((family, {"mixed": True, "alone": False, "cached": True}) for family in TOGETHER),
        ("phi3, longrope beyond 12 positions", {"mixed": True, "alone": True, "cached": True}),
        ("recurrent gemma", {"mixed": True, "alone": True, "cached": False}),
    ],
)
def test_a_model_that_cannot_be_batched_is_not(family, expected):
    heard = Listens()
    decoding = find_decoding(find_paths(tiny(family), Quiet()), heard)
    assert {name: getattr(decoding, name) for name in expected} == expected
    assert bool(heard.said) == decoding.alone


def test_a_model_that_mixes_up_padding_answers_prompts_of_one_length_together(monkeypatch):
    """Positions that count the padding make such a model of one."""
    model = tiny("gpt2, absolute positions")
    forward = model.base_model.forward

    def careless(*inputs, position_ids=None, **how):
        if position_ids is not None:
            position_ids = position_ids[:1].expand_as(position_ids)
        return forward(*inputs, position_ids=position_ids, **how)

    monkeypatch.setattr(model.base_model, "forward", careless)
    decoding = find_decoding(Forward(model, chunked=True), Quiet())
    assert (decoding.mixed, decoding.alone, decoding.cached) == (False, False, True)
    monkeypatch.undo()
    expected = [generated(model, prompt, room) for prompt, room in zip(PROMPTS, ROOMS, strict=True)]
    monkeypatch.setattr(model.base_model, "forward", careless)
    found = dict(decode(decoding, asked(), ends=(END,), max_tokens=10**6))
    assert [found[index].answer_ids.tolist() for index in range(len(PROMPTS))] == expected


def test_a_seed_gives_its_answer_in_any_company():
    model = tiny("llama")
    requests = asked(temperature=1.0)
    found = [each.answer_ids.tolist() for each in answers(model, requests)]
    for request, expected in zip(requests, found, strict=True):
        assert [each.answer_ids.tolist() for each in answers(model, [request])] == [expected]
    others = [request._replace(seed=request.seed + 1) for request in requests]
    assert [each.answer_ids.tolist() for each in answers(model, others)] != found


def test_tokens_are_drawn_as_often_as_the_model_says():
    """4,000 first tokens of one prompt against the model's own probabilities: chi-squared, 31 degrees of freedom."""
    model = tiny_llama(32, seed=3)
    found = answers(model, asked(1.0, 1.0, [np.array([7], np.int32)] * 4000, [1] * 4000), ends=())
    expected = 4000 * model(torch.tensor([[7]])).logits[0, -1].softmax(-1).detach().numpy()
    seen = np.bincount([each.answer_ids[0] for each in found], minlength=32)
    assert ((seen - expected) ** 2 / expected).sum() < 61.1  # exceeded by 1 in 1,000


def test_what_is_not_finite_is_said():
    model = tiny("llama")
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(SepoError, match="not finite"):
        [*decode(DecodePlan(Forward(model)), asked(), ends=(), max_tokens=100)]


def test_decoding_is_tried_in_exact_products_whatever_the_recipe_that_is_open():
    model, seen = tiny_llama(20), set()
    model.base_model.register_forward_pre_hook(lambda *_: seen.add(torch.get_float32_matmul_precision()))
    with products("medium"):
        find_decoding(Forward(model), Quiet())
        assert torch.get_float32_matmul_precision() == "medium"
    assert seen == {"highest"}
