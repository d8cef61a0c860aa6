"""Tokens are made once and kept; what is kept is never another data set's, and never a part."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from stages.data.layouts import read_conversations, read_pairs
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.store.files import cache_folder
from stages.tokens import dataset, fingerprint
from stages.tokens.dataset import LengthLimit, load_pairs, tokenised
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenization_hash, tokenizer_hash
from stages.types import Dropped, content_hash
from tests.conftest import CHATML, Listens, token_pair, word_rows, write_lines


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def make(tokenizer, rows=None, reporter=None, columns=None):
    if rows is not None:
        write_lines("pairs.jsonl", rows)
    return tokenised("pairs.jsonl", Encoder(tokenizer), columns=columns or {}, reporter=reporter or Quiet())


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
    assert found.counts.read == 1200
    assert found.counts.dropped == {"chosen equals rejected": 1, "empty response": 2}
    assert found.counts.examples == {"chosen equals rejected": ["row 3"], "empty response": ["row 700", "row 701"]}
    assert found.layout == "prompt and answers as text"
    assert found.pairs.pair_ids.tolist() == [pair.pair_id for pair in wanted]
    assert found.pairs.lengths.tolist() == [[len(ids) for ids in pair[1:]] for pair in wanted]
    with pytest.raises(IndexError):
        found.pairs[1197]


def test_what_is_odd_about_pairs_is_told_every_time(chatml):
    grades = [(2, 1), (1, 2), (1, 1), (None, 1), (1, 3.5)]
    rows = [row | {"score_chosen": a, "score_rejected": b} for row, (a, b) in zip(word_rows(5), grades, strict=True)]
    warned = []
    for _ in range(2):
        listens = Listens()
        make(chatml, rows, listens)
        warned.append(listens.warnings)
    assert warned[0] == warned[1]
    assert warned[0] == [
        f"pairs.jsonl: in {count} of 5 rows score_chosen {what} score_rejected (first: row {first});"
        " such pairs may teach nothing, or the opposite"
        for count, what, first in ((2, "is below", 1), (1, "equals", 2))
    ]


def test_what_is_odd_is_counted_once_where_the_cache_cannot_be_written(chatml, folder):
    (folder / "cache").write_text("no folder")
    listens = Listens()
    make(chatml, [word_rows(1)[0] | {"score_chosen": 1, "score_rejected": 2}], listens)
    assert "in 1 of 1 rows score_chosen is below" in " ".join(listens.warnings)


def test_conversations_have_a_table_too(chatml):
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "the lazy dog"}]
    write_lines("sft.jsonl", [{"messages": turns * 2}, {"messages": turns}])
    found = tokenised("sft.jsonl", Encoder(chatml), sft=True, reporter=Quiet())
    assert found.pairs.pair_ids.tolist() == [0, 0, 1]
    assert all(map(same, found.pairs, map(Encoder(chatml).encode, read_conversations("sft.jsonl"))))
    assert not found.pairs.lengths[:, 2].any()


def entries():
    return {path.name for path in Path("cache").iterdir() if path.suffix != ".lock"}


def forbid_encoding(monkeypatch):
    def encode_all(self, pairs):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(Encoder, "encode_all", encode_all)


def with_backend(tokenizer, change):
    """The tokenizer with its backend's state changed."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>")
    other.chat_template = tokenizer.chat_template
    return other


def test_nothing_is_tokenised_twice(chatml, monkeypatch):
    first_ear, second_ear = Listens(), Listens()
    rows = word_rows(30)
    rows[4]["rejected"] = rows[4]["chosen"]
    first = make(chatml, rows, first_ear)
    forbid_encoding(monkeypatch)
    second = make(chatml, reporter=second_ear)
    assert all(map(same, first.pairs, second.pairs))
    assert second[1:] == first[1:]
    assert first.counts.examples == {"chosen equals rejected": ["row 4"]}
    assert first_ear.said == second_ear.said == ["pairs.jsonl: prompt and answers as text"]


def test_one_cache_serves_every_limit_and_every_name_of_a_file(chatml, monkeypatch):
    make(chatml, word_rows(30))
    shutil.copy("pairs.jsonl", "copy.jsonl")
    forbid_encoding(monkeypatch)
    for limit in (LengthLimit(20, "truncate"), LengthLimit(25), LengthLimit(40, "truncate")):
        ear = Listens()
        load_pairs("copy.jsonl", Encoder(chatml), limit, reporter=ear)
        assert ear.said[0] == "copy.jsonl: prompt and answers as text"
    assert len(entries()) == 1


def swap_merges(state):
    """The same vocabulary, other ids."""
    state["model"]["merges"][:6] = state["model"]["merges"][:6][::-1]


def lowercase(state):
    state["normalizer"] = {"type": "Lowercase"}


def prefix_space(state):
    state["pre_tokenizer"]["add_prefix_space"] = True


@pytest.mark.parametrize("change", [swap_merges, lowercase, prefix_space])
def test_a_tokenizer_that_works_otherwise_is_another_one(chatml, change):
    left, right = with_backend(chatml, lambda state: None), with_backend(chatml, change)
    assert tokenizer_hash(left) == tokenizer_hash(right)
    assert tokenization_hash(left) != tokenization_hash(right)
    assert Encoder(left).fingerprint == Encoder(with_backend(chatml, lambda state: None)).fingerprint
    assert Encoder(left).fingerprint != Encoder(right).fingerprint


@pytest.mark.parametrize("changed", ["data", "slice", "template", "merges", "columns", "code", "kind", "special"])
def test_whatever_decides_an_id_decides_what_is_looked_up(chatml, monkeypatch, changed):
    rows = [row | {"question": "Hello?"} for row in word_rows(30)]
    plain = with_backend(chatml, lambda state: None)
    before = make(plain, rows)
    other, name, columns = plain, "pairs.jsonl", {}
    match changed:
        case "data":
            write_lines("pairs.jsonl", [*rows[:-1], rows[0] | {"chosen": rows[29]["chosen"]}])
        case "slice":
            name = "pairs.jsonl[:29]"
        case "template":
            other = with_backend(chatml, lambda state: None)
            other.chat_template = CHATML.replace("assistant\n", "assistant:\n")
        case "merges":
            other = with_backend(chatml, swap_merges)
        case "columns":
            columns = {"prompt": "question"}
        case "code":
            monkeypatch.setattr(dataset, "code_fingerprint", lambda: "other")
        case "special":
            other = with_backend(chatml, lambda state: None)
            other.eos_token = "<|im_start|>"
    if changed == "kind":
        after = tokenised(name, Encoder(other), sft=True, reporter=Quiet())
    else:
        after = tokenised(name, Encoder(other), columns=columns, reporter=Quiet())
    assert len(entries()) == 2
    encoder = Encoder(other)
    read = read_conversations(name) if changed == "kind" else read_pairs(name, columns)
    assert all(map(same, after.pairs, map(encoder.encode, read)))
    assert len(before.pairs) == 30


def test_calling_a_tokenizer_does_not_make_it_another_one(chatml):
    fresh = with_backend(chatml, lambda state: None)
    fresh.pad_token = "<|im_end|>"
    before = Encoder(fresh).fingerprint
    fresh(["a text", "another"], padding=True, truncation=True, max_length=3)
    assert Encoder(fresh).fingerprint == before


def test_the_code_that_makes_ids_is_part_of_the_key(monkeypatch, tmp_path):
    before = fingerprint.code_fingerprint.__wrapped__()
    copy = shutil.copytree(Path(fingerprint.__file__).parents[1], tmp_path / "stages") / "tokens" / "fingerprint.py"
    monkeypatch.setattr(fingerprint, "__file__", str(copy))
    assert fingerprint.code_fingerprint.__wrapped__() == before
    for name in ("data/read.py", "tokens/chat.py", "types.py"):
        place = tmp_path / "stages" / name
        place.write_text(place.read_text() + "\n")
        after, before = fingerprint.code_fingerprint.__wrapped__(), before
        assert after != before
        before = after


def test_hashes_tell_prompts_and_contents_apart(chatml):
    row = {"prompt": "what is it?", "chosen": "the dog", "rejected": "the fox"}
    rows = [
        row,
        row,
        row | {"rejected": "not"},
        row | {"chosen": "not"},
        row | {"prompt": "what"},
        {"prompt": "what is it?", "chosen": "the fox", "rejected": "the dog"},
    ]
    found = make(chatml, rows).pairs
    prompts, contents = found.prompt_hashes.tolist(), found.content_hashes.tolist()
    assert [prompts.index(each) for each in prompts] == [0, 0, 0, 0, 4, 0]
    assert [contents.index(each) for each in contents] == [0, 0, 2, 3, 4, 5]


def test_a_hash_knows_where_a_response_ends():
    """Without the lengths, ids that are the same in a row would count as the same pair."""
    pairs = [token_pair(0, [1], [2, 3], [4]), token_pair(1, [1], [2], [3, 4]), token_pair(2, [1, 2], [3], [4])]
    assert len({content_hash(pair) for pair in pairs}) == 3


DAMAGES = {
    "half is missing": lambda entry: entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2]),
    "empty": lambda entry: entry.write_bytes(b""),
    "a folder": lambda entry: (entry.unlink(), entry.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(chatml, monkeypatch, damage):
    first = make(chatml, word_rows(30))
    [name] = entries()
    whole = [[ids.tolist() for ids in pair[1:]] for pair in first.pairs]
    DAMAGES[damage](Path("cache") / name)
    ear = Listens()
    second = make(chatml, reporter=ear)
    assert [[ids.tolist() for ids in pair[1:]] for pair in second.pairs] == whole
    assert "pairs.jsonl: what the cache holds of it is damaged, and is made again" in ear.said
    if damage != "a folder":
        forbid_encoding(monkeypatch)
        assert len(make(chatml).pairs) == 30
    assert entries() == {name}


class PowerCut(Quiet):
    def advance(self, amount=1, figures=None):
        os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_of_a_killed_writer_is_read_and_nothing_of_it_stays(chatml):
    child = os.fork()
    if child == 0:
        try:
            make(chatml, word_rows(30), PowerCut())
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    [left] = entries()
    assert left.endswith(".tmp")
    assert len(make(chatml).pairs) == 30
    [entry] = entries()
    assert not entry.endswith(".tmp")


def test_two_processes_at_once_make_one_entry(chatml):
    """The second one waits for the first, and tokenises nothing."""
    write_lines("pairs.jsonl", word_rows(30))
    begun, go_on = os.pipe(), os.pipe()

    class Slow(Quiet):
        def advance(self, amount=1, figures=None):
            os.write(begun[1], b".")
            os.read(go_on[0], 1)

    child = os.fork()
    if child == 0:
        try:
            make(chatml, reporter=Slow())
        finally:
            os._exit(0)
    os.read(begun[0], 1)

    class Waits(Quiet):
        def say(self, text):
            if "waiting for" in text:
                os.write(go_on[1], b".")

        def advance(self, amount=1, figures=None):
            raise AssertionError("tokenised again")

    assert len(make(chatml, reporter=Waits()).pairs) == 30
    assert os.waitpid(child, 0)[1] == 0
    assert len(entries()) == 1


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(chatml, monkeypatch, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    Path("occupied").write_text("")
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "occupied" / "cache"))
    ear = Listens()
    found = make(chatml, word_rows(30), ear)
    place = os.environ["SEPO_CACHE"]
    assert f"pairs.jsonl: what was made of it is not cached: {place} cannot be written: Not a directory" in ear.said
    assert ear.said.count("pairs.jsonl: prompt and answers as text") == 1
    assert all(map(same, found.pairs, map(Encoder(chatml).encode, read_pairs("pairs.jsonl"))))
    assert len(found.pairs) == 30
    assert list(temporary.iterdir()) == []


def test_nowhere_to_write(chatml, monkeypatch, tmp_path):
    Path("occupied").write_text("")
    monkeypatch.setenv("SEPO_CACHE", "occupied/cache")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(SepoError, match=r"^cannot write to .*gone: No such file or directory$"):
        make(chatml, word_rows(3))


def test_a_fault_in_the_data_is_told_as_it_is_and_nothing_of_it_is_kept(chatml):
    write_lines("pairs.jsonl", word_rows(30))
    with open("pairs.jsonl", "a") as file:
        file.write("{broken\n")
    for _ in range(2):
        with pytest.raises(SepoError, match=r"^pairs\.jsonl:31: broken JSON"):
            make(chatml)
    assert entries() == set()


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SEPO_CACHE", "~/here")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/home/me/here")
    monkeypatch.delenv("SEPO_CACHE")
    assert cache_folder() == Path("/xdg/sepo")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/me/.cache/sepo")


def test_rows_that_all_fall_away_are_cached_too(chatml, monkeypatch):
    rows = [row | {"rejected": row["chosen"]} for row in word_rows(7)]
    assert len(make(chatml, rows).pairs) == 0
    forbid_encoding(monkeypatch)
    assert make(chatml).counts.dropped == {"chosen equals rejected": 7}
    assert make(chatml).counts.examples == {"chosen equals rejected": ["row 0", "row 1", "row 2"]}


@pytest.mark.parametrize(("rows", "characters"), [(8, 1 << 20), (512, 300)])
def test_many_pairs_in_batches_have_the_ids_of_each_alone(chatml, monkeypatch, rows, characters):
    """However the batches are cut, and with a row that is larger than a batch may be."""
    data = word_rows(40)
    data[7]["chosen"] = "the quick brown fox " * 200
    monkeypatch.setattr(dataset, "BATCH_ROWS", rows)
    monkeypatch.setattr(dataset, "BATCH_CHARACTERS", characters)
    found = make(chatml, data)
    assert all(map(same, found.pairs, map(Encoder(chatml).encode, read_pairs("pairs.jsonl"))))
    assert found.pairs.pair_ids.tolist() == list(range(40))


def test_only_a_batch_is_in_memory(chatml, monkeypatch):
    monkeypatch.setattr(dataset, "BATCH_ROWS", 8)
    drawn = []
    batches = dataset._batches(iter(drawn.append(number) or Dropped(number, "x") for number in range(100)))
    for given, batch in enumerate(batches, start=1):
        assert len(batch) == min(8, 100 - 8 * (given - 1))
        assert len(drawn) <= 8 * given
