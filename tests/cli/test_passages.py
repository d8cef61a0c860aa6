"""Passages fit the screen, break between tokens, and say the same in a file as on a terminal."""

import pytest
from rich.cells import cell_len

from sepo_cli.console import print_summary
from sepo_cli.passages import passage_lines
from stages.reporting import Line, Passage, Piece, Summary


def pieces(*texts):
    return [Piece(text) for text in texts]


def plain(passage, width):
    return [text.plain for text in passage_lines(passage, width)]


def test_labels_stand_on_the_left_and_text_beside_them():
    passage = Passage("t", [Line("user", pieces("one ", "two ", "three")), Line("= chosen", pieces("so"))])
    assert plain(passage, 80) == ["  user      one two three", "  = chosen  so"]
    assert plain(passage, 22) == ["  user      one two", "            three", "  = chosen  so"]


def test_a_line_breaks_between_tokens_and_keeps_their_borders():
    passage = Passage("t", [Line("p", pieces("abcd", "·efg", "·hi"))], "│")
    assert plain(passage, 16) == ["  p  abcd│·efg│", "     ·hi│"]


@pytest.mark.parametrize("width", [1, 20, 33, 80])
def test_what_is_longer_than_a_line_is_folded(width):
    texts = ["x" * 50, "日本" * 30, "", "end"]
    passage = Passage("t", [Line("p", pieces(*texts)), Line("empty", [])], "│")
    lines = plain(passage, width)
    assert all(cell_len(line) <= max(width, 19) for line in lines)
    assert "".join(line[9:] for line in lines if line[2:7] != "empty") == "│".join(texts) + "│"


def test_a_control_token_is_marked_by_a_style_of_its_own():
    [text] = passage_lines(Passage("t", [Line("p", [Piece("a"), Piece("«b»", special=True)])]), 80)
    assert [text.plain[span.start : span.end] for span in text.spans if "magenta" in str(span.style)] == ["«b»"]


PASSAGE = Passage("As tokens", [Line("chosen 2", [Piece("[so]"), Piece("«<|im_end|>»", special=True)])], "│")


def test_a_passage_in_a_file(capsys):
    print_summary(Summary("done", [("a", "b")], tables=(PASSAGE,)))
    assert capsys.readouterr().out == "done\n  a  b\n\nAs tokens\n\n  chosen 2  [so]│«<|im_end|>»│\n"


def test_a_passage_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_summary(Summary("done", [], tables=(PASSAGE,)))
    shown = capsys.readouterr().out
    assert "[so]" in shown
    assert "\x1b[1;35m«<|im_end|>»" in shown


def test_json_is_one_object_and_nothing_else(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_summary(Summary("done", [("a", "b")], tables=(PASSAGE,), json={"a": "é [x]"}))
    assert capsys.readouterr().out == '{"a": "\\u00e9 [x]"}\n'
