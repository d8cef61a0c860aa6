"""What generation_config.json asks for, taken as transformers takes it or refused by name."""

import json

import pytest
from transformers import GenerationConfig

from stages.errors import SepoError
from stages.models.habits import NO_HABITS, REFUSED, Habits, habits_of, read_generation_config

TAKEN = {"temperature", "top_p", "top_k", "repetition_penalty", "do_sample"}
# Lengths, how many, how fast, and what is of beams or an assistant alone.
NOTHING_DRAWN = """
_from_model_config assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind
bos_token_id cache_config cache_implementation compile_config continuous_batching_config decoder_start_token_id
disable_compile early_stopping eos_token_id is_assistant length_penalty low_memory max_cache_len max_length
max_matching_ngram_size max_new_tokens num_assistant_tokens num_assistant_tokens_schedule num_return_sequences
output_attentions output_hidden_states output_logits output_scores pad_token_id prefill_chunk_size
prompt_lookup_num_tokens remove_invalid_values renormalize_logits return_dict_in_generate speculation_type
target_lookbehind transformers_version use_cache use_mtp
"""


def test_all_that_transformers_knows_is_taken_or_refused_or_changes_nothing():
    assert {*GenerationConfig().to_dict()} - {*NOTHING_DRAWN.split()} == TAKEN | {*REFUSED}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, NO_HABITS),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}, Habits(0.6, 0.95, 20)),
        ({"repetition_penalty": 1, "temperature": 1}, Habits(1.0, repetition_penalty=1.0)),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.05}, Habits(0.0, repetition_penalty=1.05)),
        ({"temperature": 0.0, "top_k": 0, "eos_token_id": [1, 2]}, Habits(0.0)),
        # As older versions write what is off.
        ({"num_beams": 1, "typical_p": 1.0, "min_length": 0, "bad_words_ids": None, "suppress_tokens": []}, NO_HABITS),
    ],
)
def test_what_is_taken(said, expected):
    assert habits_of(said, "m") == expected


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"min_p": 0.05}, "asks for min_p, which sepo does not do"),
        ({"num_beams": 4}, "asks for num_beams"),
        ({"forced_bos_token_id": 0}, "asks for forced_bos_token_id"),
        ({"temperature": "hot"}, "holds what transformers does not take: could not convert string to float"),
        ({"temperature": -1}, "`temperature` .* strictly positive"),
        ({"top_k": 2.5}, "`top_k` has to be a strictly positive integer"),
        ({"top_p": 1.5}, "`top_p`"),
        ({"repetition_penalty": 0}, "`penalty`"),
    ],
)
def test_what_is_refused(said, words):
    with pytest.raises(SepoError, match=f"^m: its generation_config.json .*{words}") as error:
        habits_of(said, "m")
    assert "leave out --use-generation-config" in error.value.hint


def test_an_adapters_file_is_that_of_its_base(tmp_path, chat_folder):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(chat_folder)}))
    (tmp_path / "generation_config.json").write_text('{"top_k": 5}')
    assert read_generation_config(tmp_path) == json.loads((chat_folder / "generation_config.json").read_text())
    (tmp_path / "adapter_config.json").unlink()
    assert read_generation_config(tmp_path) == {"top_k": 5}
    (tmp_path / "generation_config.json").unlink()
    assert read_generation_config(tmp_path) == {}
