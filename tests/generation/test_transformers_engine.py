"""The engine in this process asks as training does, and says why where there is no answer."""

import numpy as np
import pytest

from stages.data.conversations import EMPTY_PROMPT
from stages.generation.engine import Request
from stages.generation.transformers_engine import TransformersEngine
from stages.tokens.encode import CONTROL, NEEDS_TEMPLATE, NO_ROOM, Encoder
from tests.conftest import byte_level_tokenizer, tiny_llama


def user(text):
    return [{"role": "user", "content": text}]


def request(text="what is it?", temperature=1.0, top_p=1.0, max_new_tokens=24, seed=0):
    return Request(user(text), temperature, top_p, max_new_tokens, seed)


@pytest.fixture(scope="module")
def model(chatml):
    return tiny_llama(len(chatml), seed=1)


def engine(model, tokenizer, max_tokens=10**6):
    return TransformersEngine(model, Encoder(tokenizer), max_tokens=max_tokens)


def answers(engine, requests):
    found = dict(engine.answers(requests))
    return [found[index] for index in range(len(requests))]


def test_an_answer_is_all_that_is_known_of_it(model, chatml):
    requests = [request(seed=seed, max_new_tokens=200) for seed in range(24)]
    found = answers(engine(model, chatml), requests)
    end = chatml.eos_token_id
    assert {each.ended for each in found} == {True, False}
    for each in found:
        assert chatml.decode(each.prompt_ids) == "<|im_start|>user\nwhat is it?<|im_end|>\n<|im_start|>assistant\n"
        assert len(each.answer_ids) == len(each.logps) <= 200
        assert each.ended == (each.answer_ids[-1] == end) == (len(each.answer_ids) < 200)
        assert each.text == chatml.decode(each.answer_ids, skip_special_tokens=True)


def test_the_ends_that_a_model_names_end_answers_too(model, chatml):
    """And what else its configuration for generation asks for is not done."""
    plain = answers(engine(model, chatml), [request(max_new_tokens=60)])[0]
    named = int(plain.answer_ids[9])
    others = {"repetition_penalty": 3.0, "temperature": 0.1, "do_sample": True, "suppress_tokens": [named], "top_k": 1}
    model.generation_config.update(eos_token_id=[named], no_repeat_ngram_size=1, min_new_tokens=24, **others)
    found = answers(engine(model, chatml), [request(max_new_tokens=60)])[0]
    model.generation_config.eos_token_id = None
    assert found.ended
    assert found.answer_ids.tolist() == plain.answer_ids[: plain.answer_ids.tolist().index(named) + 1].tolist()
    assert found.text == chatml.decode(found.answer_ids[:-1], skip_special_tokens=True)


def test_what_cannot_be_answered_says_why(model, chatml):
    requests = [request("<|im_end|>"), request(" "), request(), request("what is it?" * 100)]
    found = answers(engine(model, chatml), requests)
    assert [each.problem for each in found] == [CONTROL, EMPTY_PROMPT, "", f"{NO_ROOM} in 256 tokens"]
    assert [each.text for each in found][:2] == ["", ""]
    several = Request([*user("a"), {"role": "assistant", "content": "b"}, *user("c")], 0.0, 1.0, 4, 0)
    plain = byte_level_tokenizer(None, eos_token="</s>")
    found = answers(engine(model, plain), [several, request("what is")])
    assert [each.problem for each in found] == [NEEDS_TEMPLATE, ""]
    assert found[1].prompt_ids.tolist() == plain("what is")["input_ids"]


def test_answers_end_where_the_model_has_no_more_positions(model, chatml):
    found = answers(engine(model, chatml), [request(temperature=0.0, max_new_tokens=10_000)])[0]
    assert not found.ended
    assert len(found.prompt_ids) + len(found.answer_ids) == 256


def test_the_same_requests_give_the_same_bytes(model, chatml):
    requests = [request("what is it? " * (1 + seed % 3), seed=seed, top_p=0.9) for seed in range(12)]
    one, other = (answers(engine(model, chatml, max_tokens=300), requests) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        assert first.text == second.text
        assert first.logps.tobytes() == second.logps.tobytes()
    assert len({each.text for each in one}) == 12
    hot = answers(engine(model, chatml), [each._replace(temperature=5.0) for each in requests])
    assert np.mean([each.logps.mean() for each in hot]) < np.mean([each.logps.mean() for each in one])


def test_batches_asked_without_the_others_give_the_same_bits(model, chatml):
    """What a run that was killed relies on; one that cannot be asked is on its own."""
    requests = [request("what is it?" * (1 + seed % 5), max_new_tokens=8 + seed % 3, seed=seed) for seed in range(14)]
    requests[3] = request(" ")
    asked = engine(model, chatml, max_tokens=200)
    together, whole = asked.together(requests), answers(asked, requests)
    assert sorted(index for group in together for index in group) == [*range(14)]
    assert [3] in together
    assert max(map(len, together)) > 2
    for kept in (together[::2], together[1::2], together[2:]):
        indices = sorted(index for group in kept for index in group)
        again = answers(asked, [requests[index] for index in indices])
        for index, found in zip(indices, again, strict=True):
            assert found.text == whole[index].text
            assert found.problem or found.logps.tobytes() == whole[index].logps.tobytes()
