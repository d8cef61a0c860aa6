"""What is shown of a pair is what is there: every token with its own text, every blank and every control token."""

import re

import numpy as np
import pytest

from stages.report.visible import BORDER, pair_table, shortened, text_parts, token_table, token_texts, visible
from stages.tokens.encode import Encoder
from stages.types import Pair
from tests import reference
from tests.conftest import token_pair
from tests.data.turns import bot, system, user
from tests.tokenizers_zoo import FAMILIES, LOSSLESS, byte_level, dress, with_added_tokens


def of(table, label):
    [text] = [text for name, text in table.rows if name.split()[0] == label]
    return text


def test_nothing_is_invisible():
    assert visible("a b\n\tc\x00\u200b\u2028é") == "a·b⏎⇥c\\x00\\u200b\\u2028é"


def test_a_text_is_shown_on_one_line_and_a_long_one_without_its_middle():
    assert shortened("one  two\n three\x07") == "one  two⏎ three\\x07"
    assert shortened("x" * 700) == "x" * 400 + " ... 150 characters ... " + "x" * 150


def test_a_pair_is_shown_as_turns():
    table = pair_table(Pair(7, [system("be kind"), user("hi"), bot("hello"), user("why?")], "so", "no"))
    assert table.rows == [
        ["system", "be kind"],
        ["user", "hi"],
        ["assistant", "hello"],
        ["user", "why?"],
        ["= chosen", "so"],
        ["= rejected", "no"],
    ]
    assert "Row 7 " in table.title


def test_of_many_turns_the_first_and_the_last_are_shown():
    turns = [turn for number in range(10) for turn in (user(f"q{number}"), bot(f"a{number}"))]
    table = pair_table(Pair(0, [*turns, user("last")], "so", "no"))
    assert [text for _, text in table.rows] == [
        "q0", "a0", "q1", "15 turns that are not shown", "q9", "a9", "last", "so", "no",
    ]  # fmt: skip


def test_what_the_template_is_given_is_shown_too():
    tools = [{"type": "function", "function": {"name": "weather"}}, {"name": "clock"}, {"function": "odd"}]
    table = pair_table(Pair(0, [user("a")], "so", "no", {"tools": tools, "style": "brief"}))
    assert table.rows[:2] == [["(tools)", "weather, clock, ?"], ["(template)", "style='brief'"]]


@pytest.mark.parametrize("family", LOSSLESS)
def test_the_tokens_together_are_the_text(family):
    tokenizer = dress(FAMILIES[family](), "chatml")
    pair = Encoder(tokenizer).encode(Pair(0, [user("what is\n  it?")], "It is Paris, of course é 日本", "sorry"))
    table = token_table(pair, tokenizer)
    text = re.sub(f"[«»\ufffd{BORDER}]", "", of(table, "chosen"))
    assert text == "It·is·Paris,·of·course·é·日本<|im_end|>"
    assert "what·is⏎··it?" in of(table, "prompt").replace(BORDER, "")
    for (label, shown), ids in zip(table.rows, pair[1:], strict=True):
        assert shown.count(BORDER) == len(ids)
        assert label.endswith(f" {len(ids)}")


def test_only_control_tokens_are_marked():
    tokenizer = dress(with_added_tokens(), "chatml")
    pair = Encoder(tokenizer).encode(Pair(0, [user("what?")], "<think>It is", "sorry"))
    tokens = of(token_table(pair, tokenizer), "chosen").split(BORDER)
    assert [token for token in tokens if "«" in token] == ["«<think>»", "«<|im_end|>»"]
    assert token_texts(np.array([1]), dress(byte_level())) == ["«<s>»"]


def test_tokens_that_are_part_of_a_character():
    tokenizer = dress(byte_level())
    ids = np.array(tokenizer("x日", add_special_tokens=False)["input_ids"])
    assert token_texts(ids, tokenizer) == ["x", "\ufffd", "\ufffd", "日"]


def test_of_many_tokens_the_first_and_the_last_are_shown():
    tokenizer = dress(byte_level())
    ids = np.array(tokenizer("0" * 400, add_special_tokens=False)["input_ids"])
    texts = token_texts(ids, tokenizer)
    assert len(texts) == 131
    assert texts[100] == f" ... {len(ids) - 130:,} tokens ... "
    assert token_table(token_pair(0, ids, [5], [6]), tokenizer).rows[0][0] == f"prompt {len(ids):,}"


MANY = "It is 日本語 🙂 👩‍👩‍👧 مرحبا\n\n  naïve\x00\ufffd end"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", [MANY, " what is\n it?" * 9, "日本" * 20])
def test_parts_are_those_of_decoding_every_beginning(family, text):
    tokenizer = FAMILIES[family]()
    ids = [2, *tokenizer.encode(text, add_special_tokens=False).ids, 4, *tokenizer.encode(text).ids]

    def decode(some):
        return tokenizer.decode(some, skip_special_tokens=False)

    assert text_parts(ids, decode) == reference.token_parts(ids, decode)


def test_bytes_that_never_become_a_character_do_not_make_it_slow():
    tokenizer = byte_level()
    begins = tokenizer.encode("日", add_special_tokens=False).ids[0]
    longest = 0

    def decode(some):
        nonlocal longest
        longest = max(longest, len(some))
        return tokenizer.decode(some, skip_special_tokens=False)

    found = text_parts([begins] * 500 + tokenizer.encode("so", add_special_tokens=False).ids, decode)
    assert "".join(found[500:]).endswith("so")
    assert longest <= 40
