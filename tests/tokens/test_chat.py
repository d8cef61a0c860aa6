"""What chat templates do to a conversation, and where in it an answer begins."""

import pytest

from stages.data.conversations import EMPTY_RESPONSE
from stages.tokens import rendering
from stages.tokens.chat import NO_SYSTEM, NOT_CONTINUED, REFUSED, REWRITTEN
from stages.tokens.encode import Encoder
from stages.types import Dropped, Pair
from tests.conftest import CHATML
from tests.tokenizers_zoo import TEMPLATES, byte_level, dress, with_added_tokens

THINKING = "<think>\nreasons\n</think>\n\nIt is"
SYSTEM = {"role": "system", "content": "Be brief"}


def user(text):
    return {"role": "user", "content": text}


def texts(template, chosen="It is", rejected="sorry", prompt=(user("what?"),), make=byte_level, **options):
    """Prompt, chosen and rejected as text with their tokens, or why the pair was dropped."""
    tokenizer = dress(make(), template, **options)
    pair = Encoder(tokenizer).encode(Pair(0, list(prompt), chosen, rejected))
    if isinstance(pair, Dropped):
        return pair.reason
    return [tokenizer.decode(ids) for ids in pair[1:]]


def test_an_empty_thinking_block_in_the_final_turn_belongs_to_the_prompt():
    """It is the same before every answer: not a token of the response, none to be scored or selected."""
    prompt, chosen, rejected = texts("thinks_in_final_turn", make=with_added_tokens)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert (chosen, rejected) == ("It is<|im_end|>", "sorry<|im_end|>")


def test_thoughts_that_the_data_has_belong_to_the_response():
    """Both responses begin where the generation prompt ends, for they have one prompt."""
    prompt, chosen, rejected = texts("thinks_in_final_turn", THINKING, make=with_added_tokens)
    assert prompt.endswith("<|im_start|>assistant\n")
    assert chosen == THINKING + "<|im_end|>"
    assert rejected == "<think>\n\n</think>\n\nsorry<|im_end|>"


def test_an_empty_thinking_block_in_the_generation_prompt_alone_stays_there():
    prompt, chosen, rejected = texts("no_thoughts_in_prompt")
    assert prompt == "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert (chosen, rejected) == ("It is<|im_end|>", "sorry<|im_end|>")
    assert texts("no_thoughts_in_prompt", rejected=THINKING) == NOT_CONTINUED


def test_a_template_that_asks_for_thoughts_cannot_take_answers_without():
    assert texts("asks_for_thoughts") == NOT_CONTINUED
    keeps = TEMPLATES["thinks_in_final_turn"].replace(
        "assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}"
    )
    prompt, chosen, _ = texts(keeps)
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert chosen == "It is<|im_end|>"
    prompt, chosen, rejected = texts(keeps, THINKING)
    assert prompt.endswith("assistant\n<think>\n")
    assert chosen == "reasons\n</think>\n\nIt is<|im_end|>"
    assert rejected == "\n</think>\n\nsorry<|im_end|>"


def test_a_header_that_the_generation_prompt_lacks_belongs_to_the_prompt():
    prompt, chosen, _ = texts("no_generation_prompt")
    assert prompt == "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n"
    assert chosen == "It is<|im_end|>"
    colon = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    assert texts(colon)[:2] == ["user: what?</s>assistant:", " It is</s>"]


def test_a_blank_before_the_answer_stays_with_it():
    assert texts("llama2")[:2] == ["<s>[INST] what? [/INST]", " It is </s>"]


def test_a_default_system_turn_gives_way_to_the_data():
    assert texts("default_system")[0].startswith("<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user")
    assert texts("default_system", prompt=(SYSTEM, user("what?")))[0].startswith(
        "<|im_start|>system\nBe brief<|im_end|>"
    )


@pytest.mark.parametrize("template", ["gemma", "llama2"])
def test_a_refused_system_turn_has_a_reason_of_its_own(template):
    assert texts(template, prompt=(SYSTEM, user("what?"))) == NO_SYSTEM
    assert isinstance(texts(template), list)


def test_any_other_refusal():
    refuses = CHATML.replace("{% for", "{% if messages|length > 2 %}{{ raise_exception('no') }}{% endif %}{% for", 1)
    assert texts(refuses, prompt=(user("a"), {"role": "assistant", "content": "b"}, user("c"))) == REFUSED


def test_stripped_answers():
    assert texts("gemma", "  It is\n")[1] == "It is<|im_end|>"
    assert texts("gemma", "  \n") == EMPTY_RESPONSE
    assert texts("llama2", "  \n") == EMPTY_RESPONSE


def test_what_follows_the_end_of_turn_is_cut():
    """Phi-3 writes a newline and an eos behind it, and neither is the end of turn."""
    encoder = Encoder(dress(byte_level(), "phi3"))
    assert encoder.end_of_turn == byte_level().token_to_id("<|end|>")
    assert texts("phi3")[1:] == ["It is<|end|>", "sorry<|end|>"]


def test_an_end_of_turn_that_the_template_writes_twice_is_learnt_once():
    assert texts(CHATML.replace("'<|im_end|>'", "'<|im_end|><|im_end|>'"))[1] == "It is<|im_end|>"


@pytest.mark.parametrize("special", [{"bos_token": None}, {"pad_token": "</s>"}, {"pad_token": "<|im_end|>"}])
def test_special_tokens_that_are_missing_or_shared(special):
    assert texts("chatml", **special)[1] == "It is<|im_end|>"
    assert texts(None, **special)[1] == "It is</s>"


def test_no_eos_at_all():
    assert texts(None, eos_token=None)[1] == "It is"
    assert texts("chatml", eos_token=None)[1] == "It is<|im_end|>"


def test_the_day_does_not_matter(monkeypatch):
    """The clock of the template stands still; everything else of it is left as it is, blank lines included."""
    template = "\n  {% set today = strftime_now('%d %b %Y, %-d.%m.%y') %}\n {{ today }}\n" + CHATML
    prompt = texts(template)[0]
    still = template.replace("strftime_now('%d %b %Y, %-d.%m.%y')", "'26 Jul 2024, 26.07.24'")
    assert prompt == texts(still)[0]
    assert "26 Jul 2024, 26.07.24" in prompt
    defined = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}" + CHATML
    assert texts(defined)[0].startswith("2024<|im_start|>")
    monkeypatch.setattr(rendering, "TODAY", rendering.TODAY.replace(year=2031))
    assert texts(defined)[0].startswith("2031<|im_start|>")


def test_no_more_than_three_renderings_a_pair(monkeypatch):
    tokenizer = dress(byte_level(), "default_system")
    encoder = Encoder(tokenizer)
    calls, render = [], tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda *args, **options: calls.append(1) or render(*args, **options)
    )
    encoder.encode(Pair(0, [user("what?")], "It is", "sorry"))
    assert len(calls) == 3
    encoder.encode(Pair(0, [user("what?")], "It is", ""))
    assert len(calls) == 5


def test_a_control_token_that_only_the_template_spells():
    """It joins what the data had apart: the text is harmless, the ids are not."""
    joins = CHATML.replace("message['content']", "message['content'].replace('~', '')")
    assert texts(joins, "It <|im_~end|> is") == REWRITTEN
    assert texts(joins, "It is", "so <|im_~end|>") == REWRITTEN
