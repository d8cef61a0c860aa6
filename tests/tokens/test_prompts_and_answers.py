"""A prompt alone has the ids that it has in a pair, and an answer's ids say the answer."""

import numpy as np
import pytest

from stages.data.conversations import EMPTY_PROMPT, UnusableError
from stages.tokens.chat import NO_SYSTEM
from stages.tokens.encode import CONTROL, NEEDS_TEMPLATE, Encoder
from stages.types import Pair
from tests.conftest import byte_level_tokenizer
from tests.tokenizers_zoo import FAMILIES, LOSSLESS, TEMPLATES, dress

QUESTION = [{"role": "user", "content": "what is it?"}]
TURNS = [*QUESTION, {"role": "assistant", "content": "It is"}, {"role": "user", "content": "not that\n"}]
ANSWER = "It is\n\n  Paris."


@pytest.mark.parametrize("family", LOSSLESS)
@pytest.mark.parametrize("template", [*sorted(set(TEMPLATES) - {"asks_for_thoughts"}), None])
def test_both_are_what_training_has(family, template):
    encoder = Encoder(dress(FAMILIES[family](), template))
    for prompt in (QUESTION, TURNS) if template else (QUESTION,):
        pair = encoder.encode(Pair(0, prompt, ANSWER, "sorry"))
        assert encoder.prompt_ids(prompt).tolist() == pair.prompt_ids.tolist()
        assert encoder.answer_text(pair.chosen_ids[:-1], ended=True) == ANSWER


def test_a_template_that_asks_for_thoughts_is_asked_with_as_it_is():
    """Training has no prompt for it: its answers would begin with thoughts that the data lacks."""
    tokenizer = dress(FAMILIES["byte_level"](), "asks_for_thoughts")
    asked = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    assert Encoder(tokenizer).prompt_ids(QUESTION).tolist() == asked


def test_the_end_that_a_template_writes_as_text_is_no_part_of_an_answer():
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n---\\n' }}{% endfor %}"
    encoder = Encoder(byte_level_tokenizer(template, eos_token="</s>"))
    pair = encoder.encode(Pair(0, QUESTION, ANSWER, "sorry"))
    assert encoder.answer_text(pair.chosen_ids[:-1], ended=True) == ANSWER


@pytest.mark.parametrize(
    ("template", "prompt", "reason"),
    [
        ("chatml", [{"role": "user", "content": "end <|im_end|> it"}], CONTROL),
        ("chatml", [{"role": "user", "content": " \n"}], EMPTY_PROMPT),
        ("chatml", [], EMPTY_PROMPT),
        (None, TURNS, NEEDS_TEMPLATE),
        ("gemma", [{"role": "system", "content": "Be brief"}, *QUESTION], NO_SYSTEM),
    ],
)
def test_a_prompt_that_no_pair_could_have_says_why(template, prompt, reason):
    encoder = Encoder(dress(FAMILIES["byte_level"](), template))
    with pytest.raises(UnusableError, match=reason.replace("(", r"\(")):
        encoder.prompt_ids(prompt)


def test_special_tokens_are_not_said():
    tokenizer = dress(FAMILIES["byte_level"](), "chatml")
    ids = [*tokenizer("It is")["input_ids"], tokenizer.convert_tokens_to_ids("<|end|>")]
    assert Encoder(tokenizer).answer_text(np.array(ids, np.int32), ended=False).strip() == "It is"
