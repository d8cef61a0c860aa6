"""What is shown of a pair is what is there: every token with its own text, every blank and every control token."""

import re

import numpy as np
import pytest

from stages.report.visible import BORDER, pair_passage, token_passage, token_pieces, visible, words
from stages.tokens.encode import Encoder
from stages.types import Pair
from tests.conftest import token_pair
from tests.data.turns import bot, system, user
from tests.tokenizers_zoo import FAMILIES, LOSSLESS, byte_level, dress, with_added_tokens


def shown(line):
    return "".join(piece.text for piece in line.pieces)


def of(passage, label):
    [line] = [line for line in passage.lines if line.label.split()[0] == label]
    return line


def test_nothing_is_invisible():
    assert visible("a b\n\tc\x00\u200b\u2028é") == "a·b⏎⇥c\\x00\\u200b\\u2028é"


def test_a_turn_is_shown_with_its_newlines_and_in_words():
    assert [piece.text for piece in words("one  two\n three\x07")] == ["one  ", "two⏎ ", "three\\x07"]
    assert "".join(piece.text for piece in words("x" * 700)) == "x" * 400 + " ... 150 characters ... " + "x" * 150


def test_a_pair_is_shown_as_turns():
    passage = pair_passage(Pair(7, [system("be kind"), user("hi"), bot("hello"), user("why?")], "so", "no"))
    assert [(line.label, shown(line)) for line in passage.lines] == [
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "why?"),
        ("= chosen", "so"),
        ("= rejected", "no"),
    ]
    assert "Row 7 " in passage.title


def test_of_many_turns_the_first_and_the_last_are_shown():
    turns = [turn for number in range(10) for turn in (user(f"q{number}"), bot(f"a{number}"))]
    passage = pair_passage(Pair(0, [*turns, user("last")], "so", "no"))
    assert [shown(line) for line in passage.lines] == [
        "q0", "a0", "q1", "15 turns that are not shown", "q9", "a9", "last", "so", "no",
    ]  # fmt: skip


def test_what_the_template_is_given_is_shown_too():
    tools = [{"type": "function", "function": {"name": "weather"}}, {"name": "clock"}, {"function": "odd"}]
    passage = pair_passage(Pair(0, [user("a")], "so", "no", {"tools": tools, "style": "brief"}))
    assert [(line.label, shown(line)) for line in passage.lines[:2]] == [
        ("(tools)", "weather, clock, ?"),
        ("(template)", "style='brief'"),
    ]


@pytest.mark.parametrize("family", LOSSLESS)
def test_the_tokens_together_are_the_text(family):
    tokenizer = dress(FAMILIES[family](), "chatml")
    pair = Encoder(tokenizer).encode(Pair(0, [user("what is\n  it?")], "It is Paris, of course é 日本", "sorry"))
    passage = token_passage(pair, tokenizer)
    assert passage.border == BORDER
    text = re.sub("[«»\ufffd]", "", shown(of(passage, "chosen")))
    assert text == "It·is·Paris,·of·course·é·日本<|im_end|>"
    assert "what·is⏎··it?" in shown(of(passage, "prompt"))
    for line, ids in zip(passage.lines, pair[1:], strict=True):
        assert len(line.pieces) == len(ids)
        assert line.label.endswith(f" {len(ids)}")


def test_only_control_tokens_are_marked():
    tokenizer = dress(with_added_tokens(), "chatml")
    pair = Encoder(tokenizer).encode(Pair(0, [user("what?")], "<think>It is", "sorry"))
    pieces = of(token_passage(pair, tokenizer), "chosen").pieces
    assert [piece.text for piece in pieces if piece.special] == ["«<think>»", "«<|im_end|>»"]
    assert pieces[-1].special
    assert [piece.text for piece in token_pieces(np.array([1]), dress(byte_level()))] == ["«<s>»"]


def test_tokens_that_are_part_of_a_character():
    tokenizer = dress(byte_level())
    ids = np.array(tokenizer("x日", add_special_tokens=False)["input_ids"])
    assert [piece.text for piece in token_pieces(ids, tokenizer)] == ["x", "\ufffd", "\ufffd", "日"]


def test_of_many_tokens_the_first_and_the_last_are_shown():
    tokenizer = dress(byte_level())
    ids = np.array(tokenizer("0" * 400, add_special_tokens=False)["input_ids"])
    pieces = token_pieces(ids, tokenizer)
    assert len(pieces) == 131
    assert pieces[100].text == f" ... {len(ids) - 130:,} tokens ... "
    line = token_passage(token_pair(0, ids, [5], [6]), tokenizer).lines[0]
    assert line.label == f"prompt {len(ids):,}"
