"""Tokens are made once and kept; what is kept is never another data set's, and never a part."""

import numpy as np
import pytest

from stages.data.encode import Encoder
from stages.data.layouts import read_conversations, read_pairs
from stages.data.tokens import tokenised_conversations, tokenised_pairs
from stages.reporting import Quiet
from tests.conftest import word_rows, write_lines


class Ear(Quiet):
    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def make(tokenizer, rows=None, reporter=None, columns=None):
    if rows is not None:
        write_lines("pairs.jsonl", rows)
    return tokenised_pairs("pairs.jsonl", Encoder(tokenizer), columns=columns or {}, reporter=reporter or Quiet())


def same(left, right):
    return left.pair_id == right.pair_id and all(map(np.array_equal, left[1:], right[1:]))


def test_the_table_holds_what_the_encoder_makes_of_every_row(chatml):
    rows = word_rows(1200)
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[700]["chosen"] = " "
    rows[701]["chosen"] = ""
    found = make(chatml, rows)
    encoder = Encoder(chatml)
    wanted = [encoder.encode(pair) for pair in read_pairs("pairs.jsonl") if pair.pair_id not in {3, 700, 701}]
    assert len(found.pairs) == len(wanted) == 1197
    assert all(map(same, found.pairs, wanted))
    assert all(map(same, found.pairs[5:9], wanted[5:9]))
    assert same(found.pairs[-1], wanted[-1])
    assert found.read == 1200
    assert {reason: (rows.count, rows.examples) for reason, rows in found.dropped.items()} == {
        "chosen equals rejected": (1, ["row 3"]),
        "empty response": (2, ["row 700", "row 701"]),
    }
    assert found.layout == "prompt and answers as text"
    assert found.pairs.pair_ids.tolist() == [pair.pair_id for pair in wanted]
    assert found.pairs.lengths.tolist() == [[len(ids) for ids in pair[1:]] for pair in wanted]
    with pytest.raises(IndexError):
        found.pairs[1197]


def test_conversations_have_a_table_too(chatml):
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "the lazy dog"}]
    write_lines("sft.jsonl", [{"messages": turns * 2}, {"messages": turns}])
    found = tokenised_conversations("sft.jsonl", Encoder(chatml), reporter=Quiet())
    assert found.pairs.pair_ids.tolist() == [0, 0, 1]
    assert all(map(same, found.pairs, map(Encoder(chatml).encode, read_conversations("sft.jsonl"))))
    assert not found.pairs.lengths[:, 2].any()
