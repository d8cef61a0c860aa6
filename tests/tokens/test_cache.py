"""A cache that is damaged, lost, full or shared changes how long a run takes, and nothing else."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from stages.errors import SepoError
from stages.reporting import Quiet
from stages.tokens.cache import NewFile, cached_arrays
from stages.tokens.dataset import tokenised
from stages.tokens.encode import Encoder
from tests.conftest import Listens, word_rows, write_lines


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    write_lines("pairs.jsonl", word_rows(30))


@pytest.fixture
def read(chatml):
    def read(reporter=None):
        found = tokenised("pairs.jsonl", Encoder(chatml), reporter=reporter or Quiet())
        return (
            found.counts.read,
            found.counts.dropped,
            found.layout,
            [[part.tolist() for part in pair[1:]] for pair in found.pairs],
        )

    return read


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def entries():
    return [path for path in Path("cache").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("what", ["ids", "arrays"])
def test_any_flipped_bit_gives_what_was_cached(read, what):
    def arrays(reporter=None):
        return cached_arrays(["key"], lambda: {"a": np.arange(9.0)}, name="m", reporter=reporter or Quiet())[
            "a"
        ].tolist()

    ask = arrays if what == "arrays" else read
    whole = ask()
    [path] = entries()
    chance = random.Random(what)
    for bit in chance.sample(range(path.stat().st_size * 8), 24):
        flip(path, bit)
        ear = Listens()
        assert ask(ear) == whole
        assert any("is damaged, and is made again" in text for text in ear.said)
    assert entries() == [path]


def test_what_was_made_of_other_data_is_not_taken_for_ours(read):
    """Neither under our key nor with our checksum."""
    whole = read()
    [ours] = entries()
    write_lines("pairs.jsonl", word_rows(30, seed=1))
    other = read()
    assert other != whole
    [theirs] = set(entries()) - {ours}
    ours.write_bytes(theirs.read_bytes())
    assert read() == other
    write_lines("pairs.jsonl", word_rows(30))
    assert read() == whole


class Meddles(Listens):
    """Does something to the world once the first rows are read."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def advance(self, amount=1, figures=None):
        act, self.act = self.act, lambda: None
        act()


def other_bytes():
    text = Path("pairs.jsonl").read_text()
    Path("pairs.jsonl").write_text(text.replace("France", "Francs"))


def more_rows():
    with open("pairs.jsonl", "a") as file:
        file.write(json.dumps(word_rows(1, seed=3)[0]) + "\n")


@pytest.mark.parametrize("change", [other_bytes, more_rows, lambda: os.replace("other.jsonl", "pairs.jsonl")])
def test_a_data_set_that_changes_while_it_is_read_is_refused_and_not_cached(read, change):
    write_lines("other.jsonl", word_rows(30, seed=2))
    with pytest.raises(SepoError, match=r"^pairs\.jsonl was written to while it was read$"):
        read(Meddles(change))
    assert entries() == []
    assert read()[0] in (30, 31)


def lose():
    shutil.rmtree("cache")


def damage():
    [path] = Path("cache").glob("*.tmp")
    path.unlink()
    path.write_bytes(b"junk")


@pytest.mark.parametrize("act", [lose, damage])
def test_a_cache_that_is_lost_or_damaged_while_it_is_written_is_done_without(read, act):
    ear = Meddles(act)
    found = read(ear)
    assert len([text for text in ear.said if "is not cached" in text]) == 1
    assert found == read()


class Full:
    """A file on a disk that takes a few writes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 5, 30])
def test_a_disk_that_is_full_at_any_moment_is_done_without(read, monkeypatch, room):
    begin, disks = NewFile.__init__, iter([room])

    def on_a_full_disk(self, path):
        begin(self, path)
        self._file = Full(self._file, next(disks, 1 << 20))

    monkeypatch.setattr(NewFile, "__init__", on_a_full_disk)
    ear = Listens()
    found = read(ear)
    [said] = [text for text in ear.said if "is not cached" in text]
    assert said.endswith("/cache cannot be written: No space left on device")
    assert entries() == []
    assert found == read(ear)


def test_an_error_of_the_data_is_not_blamed_on_the_cache_and_met_once(read, monkeypatch):
    met = []

    def failing(self, pairs):
        met.append(1)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Encoder, "encode_all", failing)
    ear = Listens()
    with pytest.raises(OSError, match="Input/output"):
        read(ear)
    assert met == [1]
    assert not any("is not cached" in text for text in ear.said)


def test_what_was_computed_is_not_computed_again_for_a_full_cache(monkeypatch):
    Path("occupied").touch()
    monkeypatch.setenv("SEPO_CACHE", "occupied/cache")
    calls, ear = [], Listens()

    def make():
        calls.append(1)
        return {"a": np.arange(3)}

    for key in "ab":
        assert cached_arrays([key], make, name=key, reporter=ear)["a"].tolist() == [0, 1, 2]
    assert len(calls) == 2
    assert len([text for text in ear.said if "is not cached" in text]) == 1


def test_only_its_own_is_swept_from_the_cache(read):
    ours, hashed = f"{'ab' * 32}.tmp", "cd" * 32
    others = [".vim.tmp", "thesis.tmp", f"{'ab' * 31}.tmp", "notes", f"{'ab' * 32}.tmp.old", f"{hashed}.tmp/file"]
    for name in [ours, *others]:
        Path("cache", name).parent.mkdir(parents=True, exist_ok=True)
        Path("cache", name).touch()
    Path("cache", f"{'ef' * 32}.tmp").symlink_to(Path("cache/notes").resolve())
    read()
    assert not Path("cache", ours).exists()
    assert all(Path("cache", name).exists() for name in others)


def test_what_another_process_is_writing_stays_and_is_waited_for(read, monkeypatch):
    """The other one holds the lock; when it has gone without an entry, we make ours."""
    [path] = (read(), entries())[1]
    key = path.name.partition("-")[0]
    path.unlink()
    theirs = [FileLock(f"cache/{key}.lock"), FileLock(f"cache/{'0' * 64}.lock")]
    for lock in theirs:
        lock.acquire()
        Path(lock.lock_file).with_suffix(".tmp").touch()

    class Hears(Listens):
        def say(self, text):
            super().say(text)
            if "waiting" in text:
                theirs[0].release()

    ear = Hears()
    assert read(ear)[0] == 30
    assert any("another process is making this entry" in text for text in ear.said)
    assert {path.name for path in entries()} == {path.name, f"{'0' * 64}.tmp"}
    theirs[1].release()
    path.unlink()
    read()
    assert entries() == [path]


def test_workers_that_start_together_tokenise_once_and_one_that_is_killed_keeps_nobody_waiting(
    read, tmp_path, monkeypatch
):
    whole = read()
    [entry] = entries()
    encode, log, kill = Encoder.encode_all, tmp_path / "log", tmp_path / "kill"

    def noted(self, pairs):
        with log.open("a") as notes:
            notes.write(f"{os.getpid()}\n")
        if kill.exists():
            kill.unlink()
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, pairs)

    monkeypatch.setattr(Encoder, "encode_all", noted)
    fork = multiprocessing.get_context("fork")
    for killed in (0, 1):
        entry.unlink()
        log.write_text("")
        for _ in range(killed):
            kill.touch()
        workers = [fork.Process(target=read) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert sorted(worker.exitcode for worker in workers) == [-signal.SIGKILL] * killed + [0] * (3 - killed)
        assert len(log.read_text().split()) == 1 + killed
        assert entries() == [entry]
    assert read() == whole
