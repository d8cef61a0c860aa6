"""`sepo cache` shows what lies in the cache, and removes nothing but what is ours, old and in nobody's hands."""

import os
import time

import pytest
from filelock import FileLock

from stages import cache
from stages.configs import CacheConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.tokens.cache import cached_arrays

KEY, CHECKSUM = "a" * 64, "b" * 64
OURS = [f"{KEY}-{CHECKSUM}", f"{KEY}.lock", f"hashes/{KEY}.json", f"finished/{KEY}", f"finished/.{KEY}.7-0a1b2c3d.tmp"]
OURS += [f"{'c' * 64}.lock", f"{'d' * 64}.tmp", f"hashes/{'e' * 64}.lock"]
NOT_OURS = ["notes.txt", f"{KEY}-{CHECKSUM}.txt", "hashes/x.json", f"finished/{KEY}.tmp", f"more/{KEY}-{CHECKSUM}"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache in which everything is 40 days old."""
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    for name in [*OURS, *NOT_OURS]:
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
        age(path, 40)
    return tmp_path / "cache"


def age(path, days):
    os.utime(path, (time.time() - days * 86_400,) * 2)


def prune(**settings):
    return cache.run(CacheConfig(action="prune", **settings), Quiet())


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_there_is_shown_by_kind_and_left(folder):
    cached_arrays("key", lambda: {"a": [1.0]}, name="m", reporter=Quiet())
    before = names(folder)
    rows = {row[0]: row[1:] for row in cache.run(CacheConfig(), Quiet()).tables[0].rows}
    assert rows["ids of data sets"] == ["1", "3 B", "40 days"]
    assert rows["measurements of models"][0] == "1"
    assert [rows[kind][0] for kind in ("locks", "hashes of large files", "finished commands")] == ["5", "1", "2"]
    assert names(folder) == before


def test_only_what_is_ours_is_removed(folder):
    cache.run(CacheConfig(), Quiet())
    assert prune().rows == [("freed", "24 B")]
    assert names(folder) == {*NOT_OURS}


@pytest.mark.parametrize("young", range(len(OURS)))
def test_what_was_used_stays_with_its_lock(folder, young):
    age(folder / OURS[young], 20)
    prune()
    # A lock is of use beside its entry only.
    left = {0: {*OURS[:2]}, 1: set()}.get(young, {OURS[young]})
    assert names(folder) == {*NOT_OURS} | left
    prune(older_than=10)
    assert names(folder) == {*NOT_OURS}


def test_what_another_process_makes_or_looks_at_stays(folder):
    held = FileLock(folder / f"{KEY}.lock")
    with held:
        prune(older_than=0)
    assert names(folder) == {*NOT_OURS, f"{KEY}-{CHECKSUM}", f"{KEY}.lock"}


def test_a_link_and_a_cache_that_is_not_there(folder, tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    (folder / f"{'e' * 64}-{CHECKSUM}").symlink_to(tmp_path / "mine")
    (folder / "hashes").rename(tmp_path / "theirs")
    (folder / "hashes").symlink_to(tmp_path / "theirs")
    prune(older_than=0)
    assert (folder / f"{'e' * 64}-{CHECKSUM}").exists()
    assert (tmp_path / f"theirs/{KEY}.json").exists()
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "none"))
    assert prune().rows == [("freed", "0 B")]
    assert not (tmp_path / "none").exists()


def test_what_was_removed_is_made_again(folder):
    made = []
    for _ in range(2):
        cached_arrays("key", lambda: made.append(1) or {"a": [1.0]}, name="m", reporter=Quiet())
        prune(older_than=0)
    assert len(made) == 2


def test_days_that_change_nothing_are_refused():
    with pytest.raises(SepoError, match="older_than needs prune"):
        CacheConfig(older_than=3)
