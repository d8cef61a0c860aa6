"""What becomes of the rows of a data set: kept, cut or dropped, and counted."""

import pytest

from stages.errors import SepoError
from stages.reporting import Quiet
from stages.tokens.dataset import LengthLimit, load_pairs, refuse_dropped
from stages.tokens.encode import CONTROL, Encoder
from tests.conftest import write_lines


def row(prompt="what?", chosen="It is", rejected="sorry"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.fixture
def load(tmp_path, chatml, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load_rows(rows, max_length=10_000, overlong="drop"):
        write_lines(tmp_path / "d.jsonl", rows)
        return load_pairs("d.jsonl", Encoder(chatml), LengthLimit(max_length, overlong), columns={}, reporter=Quiet())

    return load_rows


def test_every_dropped_row_is_counted(load):
    pairs, counts = load([row(), row(rejected="It is"), row(chosen="It is " * 40), row("<|im_end|>")], 60)
    assert [pair.pair_id for pair in pairs] == [0]
    assert counts.as_json()["dropped"] == {"chosen equals rejected": 1, "longer than 60 tokens": 1, CONTROL: 1}
    assert (counts.read, counts.kept) == (4, 1)
    assert counts.tokens == {
        "prompt": len(pairs[0].prompt_ids),
        "chosen": len(pairs[0].chosen_ids),
        "rejected": len(pairs[0].rejected_ids),
    }
    assert str(counts).startswith("4 rows = 1 kept + 3 dropped (")


def test_the_limit_is_the_longer_response_with_its_prompt(load):
    rows = [row(rejected="It is " * 9)]
    [pair], _ = load(rows)
    exact = len(pair.prompt_ids) + len(pair.rejected_ids)
    assert len(load(rows, exact)[0]) == 1
    with pytest.raises(SepoError, match=r"d\.jsonl: no pair is left: 1 row = 0 kept \+ 1 dropped \(1 longer than"):
        load(rows, exact - 1)


def test_more_length_is_advised_only_where_length_took_most_rows(load):
    for rows, advised in (([row(), row(), row(chosen=" ")], True), ([row(), row(chosen=" "), row(chosen=" ")], False)):
        for overlong in ("drop", "truncate"):
            with pytest.raises(SepoError, match="no pair is left") as raised:
                load(rows, 3, overlong)
            assert ("--max-length" in raised.value.hint) == advised


def test_what_becomes_of_a_long_pair(load, chatml):
    rows = [row(chosen="It is " * 9), row()]
    dropped, counts = load(rows, 20)
    assert [pair.pair_id for pair in dropped] == [1]
    assert counts.dropped == {"longer than 20 tokens": 1}
    cut, counts = load(rows, 20, "truncate")
    assert [pair.pair_id for pair in cut] == [0, 1]
    assert len(cut[0].prompt_ids) + len(cut[0].chosen_ids) == 20
    assert chatml.eos_token_id not in cut[0].chosen_ids
    assert cut[0].rejected_ids[-1] == chatml.eos_token_id
    assert (counts.truncated, counts.dropped) == (1, {})
    assert counts.tokens["chosen"] == sum(len(pair.chosen_ids) for pair in cut)
    assert str(counts) == "2 rows = 2 kept + 0 dropped; 1 of those kept were cut"
    with pytest.raises(SepoError, match=r"d\.jsonl: pair 0 has \d+ tokens, more than max_length 20"):
        load(rows, 20, "error")


def test_strict_names_every_reason_and_its_first_row(load):
    rows = [row(), row(rejected="It is"), row(chosen="It is " * 40), row(chosen=""), row(rejected=" ")]
    with pytest.raises(SepoError) as caught:
        refuse_dropped(load(rows, 60)[1], "d.jsonl")
    assert caught.value.message == (
        "d.jsonl: 4 of 5 rows would be dropped: 2 empty response (first: row 3), "
        "1 chosen equals rejected (first: row 1), 1 longer than 60 tokens (first: row 2)"
    )


def test_what_is_kept_is_no_fault_to_strict_also_where_it_is_cut(load):
    pairs, counts = load([row(), row(chosen="It is " * 40)], 60, "truncate")
    assert (len(pairs), counts.truncated) == (2, 1)
    refuse_dropped(counts, "d.jsonl")


def test_a_cut_that_leaves_nothing_is_counted_with_its_row(load):
    pairs, counts = load([row(), row("what " * 60), row(chosen="It is", rejected="It is Paris" * 20)], 20, "truncate")
    assert [pair.pair_id for pair in pairs[:]] == [0, 2]
    reason = "prompt leaves no room for a response in 20 tokens"
    assert (counts.dropped, counts.examples) == ({reason: 1}, {reason: ["row 1"]})
