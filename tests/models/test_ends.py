"""A model that was trained says where its answers end."""

import json

import pytest

from stages.models.ends import named_ends, stop_at
from tests.conftest import tiny_llama


@pytest.mark.parametrize(("named", "expected"), [(None, 5), (2, [2, 5]), ([1, 2], [1, 2, 5]), ([5, 1], [5, 1]), (5, 5)])
def test_a_model_stops_where_training_teaches_it_to(named, expected):
    model = tiny_llama(20)
    model.config.eos_token_id = model.generation_config.eos_token_id = named
    stop_at(model, None)
    assert model.generation_config.eos_token_id == named
    stop_at(model, 5)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == expected
    assert named_ends(model) == ({*expected} if isinstance(expected, list) else {expected})


def test_what_training_writes_says_where_it_stops(world, chatml):
    """The model it started from names no end at all."""
    end = chatml.convert_tokens_to_ids("<|im_end|>")
    for folder in ("oracle/reference", "oracle/oracle", "policy"):
        for file in ("config.json", "generation_config.json"):
            assert json.loads((world / folder / file).read_text())["eos_token_id"] == end
