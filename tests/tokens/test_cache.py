"""A cache that is damaged, lost, full or shared changes how long a run takes, and nothing else."""

import errno
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.errors import SepoError
from stages.reporting import Quiet
from stages.tokens import cache, tokenised
from stages.tokens.arrays import kept_arrays
from stages.tokens.cache import NewFile
from stages.tokens.encode import Encoder
from stages.tokens.tokenised import tokenised_pairs
from stages.tokens.workers import encode_all
from tests.conftest import Listens, word_rows, write_lines


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    write_lines("pairs.jsonl", word_rows(30))


@pytest.fixture
def read(chatml):
    def read(reporter=None):
        found = tokenised_pairs("pairs.jsonl", Encoder(chatml), columns={}, reporter=reporter or Quiet())
        return found.read, found.dropped, found.layout, [[part.tolist() for part in pair[1:]] for pair in found.pairs]

    return read


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("kept", ["ids.bin", "pairs.bin", "summary.json", "checksums.json", "arrays.npz"])
def test_any_flipped_bit_gives_what_was_kept(read, kept):
    def arrays(reporter=None):
        return kept_arrays(["key"], lambda: {"a": np.arange(9.0)}, name="m", reporter=reporter or Quiet())["a"].tolist()

    ask = arrays if kept == "arrays.npz" else read
    whole = ask()
    [path] = Path("cache").glob(f"*/{kept}")
    chance = random.Random(kept)
    for bit in chance.sample(range(path.stat().st_size * 8), 12):
        flip(path, bit)
        ear = Listens()
        assert ask(ear) == whole
        assert kept == "checksums.json" or any("is damaged, and is made again" in text for text in ear.said)


def test_what_was_made_of_other_data_is_not_taken_for_ours(read):
    whole = read()
    [ours] = Path("cache").iterdir()
    write_lines("pairs.jsonl", word_rows(30, seed=1))
    assert read() != whole
    [theirs] = set(Path("cache").iterdir()) - {ours}
    shutil.rmtree(ours)
    theirs.rename(ours)
    write_lines("pairs.jsonl", word_rows(30))
    assert read() == whole


class Meddles(Listens):
    """Does something to the world once the first rows are read."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def advance(self, amount=1, note=""):
        act, self.act = self.act, lambda: None
        act()


def other_bytes():
    text = Path("pairs.jsonl").read_text()
    Path("pairs.jsonl").write_text(text.replace("France", "Francs"))


def more_rows():
    with open("pairs.jsonl", "a") as file:
        file.write(json.dumps(word_rows(1, seed=3)[0]) + "\n")


@pytest.mark.parametrize("change", [other_bytes, more_rows, lambda: os.replace("other.jsonl", "pairs.jsonl")])
def test_a_data_set_that_changes_while_it_is_read_is_refused_and_not_kept(read, change):
    write_lines("other.jsonl", word_rows(30, seed=2))
    with pytest.raises(SepoError, match=r"^pairs\.jsonl was written to while it was read$"):
        read(Meddles(change))
    assert list(Path("cache").iterdir()) == []
    assert read()[0] in (30, 31)


def lose():
    shutil.rmtree("cache")


def damage():
    [path] = Path("cache").glob(".*/ids.bin")
    path.unlink()
    path.write_bytes(b"junk")


@pytest.mark.parametrize("act", [lose, damage])
def test_a_cache_that_is_lost_or_damaged_while_it_is_written_is_done_without(read, act):
    ear = Meddles(act)
    found = read(ear)
    assert len([text for text in ear.said if "is not kept" in text]) == 1
    assert found == read()


@pytest.mark.parametrize("method", ["write", "close"])
@pytest.mark.parametrize("at", range(3))
def test_a_disk_that_is_full_at_any_moment_is_done_without(read, monkeypatch, method, at):
    write, calls = getattr(NewFile, method), iter(range(99))

    def full(self, *given):
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *given)

    monkeypatch.setattr(NewFile, method, full)
    ear = Listens()
    found = read(ear)
    [said] = [text for text in ear.said if "is not kept" in text]
    assert said.endswith("/cache cannot be written: No space left on device")
    assert found == read(ear)


def test_an_error_of_the_data_is_not_blamed_on_the_cache_and_met_once(read, monkeypatch):
    met = []

    def failing(items, encoder):
        yield from encode_all(items, encoder)
        met.append(1)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tokenised, "encode_all", failing)
    ear = Listens()
    with pytest.raises(OSError, match="Input/output"):
        read(ear)
    assert met == [1]
    assert not any("is not kept" in text for text in ear.said)


def test_what_was_computed_is_not_computed_again_for_a_full_cache(monkeypatch):
    Path("occupied").touch()
    monkeypatch.setenv("SEPO_CACHE", "occupied/cache")
    calls, ear = [], Listens()

    def make():
        calls.append(1)
        return {"a": np.arange(3)}

    for key in "ab":
        assert kept_arrays([key], make, name=key, reporter=ear)["a"].tolist() == [0, 1, 2]
    assert len(calls) == 2
    assert len([text for text in ear.said if "is not kept" in text]) == 1


def test_only_its_own_is_swept_from_the_cache(read):
    ours = f".{'ab' * 32}.k2_j.tmp"
    others = [".vim.tmp", ".thesis.tmp", f".{'ab' * 31}.x.tmp", "notes", f".{'ab' * 32}.x.tmp.old"]
    for name in [ours, *others]:
        Path("cache", name).mkdir(parents=True)
        Path("cache", name, "file").touch()
    Path("cache", f".{'cd' * 32}.file.tmp").touch()
    Path("cache", f".{'ef' * 32}.link.tmp").symlink_to(Path("cache/notes").resolve())
    os.mkfifo(Path("cache", f".{'01' * 32}.pipe.tmp"))
    read()
    assert not Path("cache", ours).exists()
    assert all(Path("cache", name, "file").exists() for name in others)
    assert {path.name[66:] for path in Path("cache").glob(".*.tmp") if len(path.name) > 70} >= {"file.tmp", "pipe.tmp"}


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(read, monkeypatch):
    flock, swept = cache.fcntl.flock, []

    def sweep_first(lock, how):
        if not swept:
            swept.extend(Path("cache").glob(".*.tmp"))
            shutil.rmtree(swept[0])
        flock(lock, how)

    monkeypatch.setattr(cache.fcntl, "flock", sweep_first)
    ear = Listens()
    read(ear)
    assert len(swept) == 1
    assert not any("is not kept" in text for text in ear.said)
    assert len(list(Path("cache").iterdir())) == 1
