"""Every family of tokenizers with every manner of chat template, against transformers' ids of the whole conversation."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.data.conversations import EMPTY_RESPONSE
from stages.tokens.encode import CONTROL, Encoder
from stages.types import Dropped, Pair
from tests.tokenizers_zoo import FAMILIES, LOSSLESS, MARK, TEMPLATES, dress

QUESTION = [{"role": "user", "content": "what is the capital of France?"}]
TURNS = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "not lazy"}, *QUESTION]
ANSWERS = ["It is Paris, of course.", "sorry! 日本 e\u0301 \U0001f600", "one\n\n two  three", "0"]
# What follows the end of turn in the whole conversation, which no model is asked to write.
AFTER = {"llama2": "", "direct": "", "phi3": "\n</s>"}
WELL_DEFINED = sorted(set(TEMPLATES) - {"bos", "dated", "no_thoughts_in_prompt", "asks_for_thoughts"})


def answered(prompt, answer):
    return [*prompt, {"role": "assistant", "content": answer}]


def whole_ids(tokenizer, messages, **options):
    return list(tokenizer.apply_chat_template(messages, **options)["input_ids"])


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", WELL_DEFINED)
@pytest.mark.parametrize("prompt", [QUESTION, TURNS], ids=["one turn", "three turns"])
def test_ids_are_those_of_transformers_on_the_whole_conversation(family, template, prompt):
    """All of them, but for what the template writes after the end of turn."""
    tokenizer = dress(FAMILIES[family](), template)
    encoder = Encoder(tokenizer)
    for answer in ANSWERS:
        pair = encoder.encode(Pair(0, prompt, answer, "not that"))
        for text, response in ((answer, pair.chosen_ids), ("not that", pair.rejected_ids)):
            ours = [*pair.prompt_ids, *response]
            whole = whole_ids(tokenizer, answered(prompt, text))
            assert ours == whole[: len(ours)]
            assert ours[-1] == encoder.end_of_turn
            end = tokenizer.convert_ids_to_tokens(int(ours[-1])) + AFTER.get(template, "\n")
            assert whole[len(ours) - 1 :] == tokenizer(end, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", sorted(set(TEMPLATES) - {"asks_for_thoughts", "dated"}))
def test_the_prompt_is_what_the_model_will_be_asked_with(family, template):
    tokenizer = dress(FAMILIES[family](), template)
    pair = Encoder(tokenizer).encode(Pair(0, TURNS, "It is", "sorry"))
    asked = whole_ids(tokenizer, TURNS, add_generation_prompt=True)
    if template in ("thinks_in_final_turn", "no_generation_prompt"):  # with a header, see test_chat.py
        assert pair.prompt_ids.tolist()[: len(asked)] == asked
        assert len(pair.prompt_ids) > len(asked)
    else:
        assert pair.prompt_ids.tolist() == asked


@pytest.mark.parametrize("family", ["metaspace_first", "metaspace_always", "llama2_legacy", "unigram"])
def test_a_response_is_not_the_beginning_of_a_text(family):
    """Tokenised on its own it gets SentencePiece's mark of a beginning, which the whole conversation does not have."""
    tokenizer = dress(FAMILIES[family](), "chatml")
    pair = Encoder(tokenizer).encode(Pair(0, QUESTION, "It is Paris", "It is"))
    apart = tokenizer("It is Paris<|im_end|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(apart)[0].startswith(MARK)
    assert not tokenizer.convert_ids_to_tokens(pair.chosen_ids.tolist())[0].startswith(MARK)


@pytest.mark.parametrize("family", ["metaspace_always", "llama2_legacy"])
def test_the_mark_stays_where_the_whole_conversation_has_it(family):
    """These put it behind a special token too, and nothing is taken off."""
    tokenizer = dress(FAMILIES[family](), "direct")
    pair = Encoder(tokenizer).encode(Pair(0, QUESTION, "It is Paris", "It is"))
    assert tokenizer.convert_ids_to_tokens(pair.chosen_ids.tolist())[0].startswith(MARK)


def test_an_unknown_character_at_the_border_belongs_to_the_response():
    """Behind an unknown newline it would be one unknown token with it, and the response would lose its beginning."""
    tokenizer = dress(FAMILIES["unigram"](), "chatml")
    pair = Encoder(tokenizer).encode(Pair(0, QUESTION, "日本", "It is"))
    assert pair.prompt_ids.tolist() == whole_ids(tokenizer, QUESTION, add_generation_prompt=True)
    assert tokenizer.unk_token_id in pair.chosen_ids


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"words"}))
def test_a_merge_over_the_border_is_the_one_difference(family):
    """This template asks with a blank at the end, and a blank is merged with the word that follows it.

    transformers' ids of the whole conversation then hold a token that is half prompt, half answer, and are no
    continuation of what the model is asked with. Ours are: the prompt as asked, then the answer, spelling the same text.
    """
    tokenizer = dress(FAMILIES[family](), "bos")
    pair = Encoder(tokenizer).encode(Pair(0, QUESTION, "It is", "sorry"))
    ours, whole = [*pair.prompt_ids, *pair.chosen_ids], whole_ids(tokenizer, answered(QUESTION, "It is"))
    assert pair.prompt_ids.tolist() == whole_ids(tokenizer, QUESTION, add_generation_prompt=True)
    assert ours != whole
    blank = tokenizer.convert_ids_to_tokens(pair.prompt_ids.tolist())[-1]
    assert blank in (MARK, "Ġ")
    places = [number for number, (left, right) in enumerate(zip(ours, whole, strict=False)) if left != right]
    assert places[0] == len(pair.prompt_ids) - 1
    assert tokenizer.convert_ids_to_tokens(whole)[places[0]].startswith(blank + "I")
    assert text_of(tokenizer, ours) == text_of(tokenizer, whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_date_is_the_one_of_the_design(family):
    """Differs from transformers' ids on every day but one."""
    tokenizer = dress(FAMILIES[family](), "dated")
    pair = Encoder(tokenizer).encode(Pair(0, QUESTION, "It is", "sorry"))
    tokenizer.chat_template = TEMPLATES["dated"].replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    whole = whole_ids(tokenizer, answered(QUESTION, "It is"))
    ours = [*pair.prompt_ids, *pair.chosen_ids]
    assert ours == whole[: len(ours)]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_text_is_the_prompt_then_the_answer_then_eos(family):
    tokenizer = dress(FAMILIES[family]())
    pair = Encoder(tokenizer).encode(Pair(0, [{"role": "user", "content": "what is it?\n"}], "It is", "sorry"))
    assert [*pair.prompt_ids, *pair.chosen_ids] == [
        *tokenizer("what is it?\nIt is")["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert pair.prompt_ids.tolist() == tokenizer("what is it?\n")["input_ids"]


@pytest.mark.parametrize("family", LOSSLESS)
@pytest.mark.parametrize("template", ["chatml", "bos", "phi3", "no_thoughts_in_prompt", None])
def test_any_text_round_trips(family, template):
    """Behind its prompt: on its own, a SentencePiece decoder takes a leading blank for the mark of a beginning."""
    tokenizer = dress(FAMILIES[family](), template)
    encoder = Encoder(tokenizer)
    end = tokenizer.decode([encoder.end_of_turn])

    @settings(max_examples=15, deadline=None)
    @given(
        st.text(min_size=1),
        st.sampled_from(["", " ", "\n", "\n\n ", "It", "'s", "\u0301"]),
        st.sampled_from(["?", "? ", ":\n"]),
    )
    def round_trip(text, start, ending):
        text = start + text
        assume(MARK not in text)
        pair = encoder.encode(Pair(0, [{"role": "user", "content": "what" + ending}], text, ""))
        if isinstance(pair, Dropped):
            assert pair.reason == (EMPTY_RESPONSE if not text.strip() else CONTROL)
            return
        asked, said = pair.prompt_ids.tolist(), pair.chosen_ids.tolist()
        assert text_of(tokenizer, asked + said) == text_of(tokenizer, asked) + text + end
        assert said.count(encoder.end_of_turn) == 1

    round_trip()
