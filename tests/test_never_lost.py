"""Nothing is lost and nothing is wrong, whatever happens to a scorer or to its folder."""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import score
from stages.check import check_scores
from stages.configs import ScoreConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.store.lock import locked
from stages.store.manifest import FINISHED, UNFINISHED
from stages.store.parquet import parquet_bytes
from stages.store.place import Place, place_of
from stages.store.scores import open_scores
from tests import lives
from tests.conftest import word_rows, write_lines
from tests.world import run_score

KILLS = 12


def config(world, output, **options):
    settings = {"oracle": str(world / "oracle"), "dataset": str(world / "pairs.jsonl"), "max_length": 128, **options}
    return ScoreConfig(output_dir=str(output), **{"shard_size": 16, "noise_check": 0.0, **settings})


def contents(folder):
    """Every file's bytes; of the manifest, what does not say who made it."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(found.pop(FINISHED))
    del manifest["made_by"]
    return found, manifest


def state(folder):
    """Where a kill landed, told by what it left."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    shards = {name for name in names if name.endswith(".parquet")}
    growing = [name for name in names if name.endswith(".tmp")]
    if any(name.startswith(f".{FINISHED}") for name in growing):
        return "in the manifest's write"
    if any(".parquet." in name for name in growing):
        return "in a shard's write"
    if growing:
        return "in the claim's write"
    if FINISHED in names:
        return "after the manifest, before the end" if UNFINISHED in names else "after the end"
    return "between shards" if shards else "before the first shard"


def wait_for_a_new_shard(folder, life):
    """The clock of a life runs from its first shard: before it there is little to lose."""
    before = set(folder.glob("scores-*"))
    while life.is_alive() and set(folder.glob("scores-*")) == before:
        time.sleep(0.002)


def test_kills_leave_the_bytes_of_an_untouched_run(world, tmp_path):
    """Half die by the clock, half before some act on a file: a rename takes a time that no clock would hit."""
    write_lines(tmp_path / "pairs.jsonl", word_rows(100))
    small = {"dataset": str(tmp_path / "pairs.jsonl"), "shard_size": 1}
    run_score(world, output=tmp_path / "whole", **small)
    chance = random.Random(7)
    landed, first_seen = Counter(), {}
    folder = tmp_path / "killed"
    lives.start(config(world, tmp_path / "warm")).join()
    for number in range(KILLS):
        life = lives.start(config(world, folder, **small), 0 if number % 2 else chance.randint(1, 30))
        if number % 2:
            wait_for_a_new_shard(folder, life)
            life.join(chance.uniform(0, 0.06))
        else:
            life.join(60)
        life.kill()
        life.join()
        assert life.exitcode == -9, f"it ended after {landed.total()} kills: {landed}"
        landed[state(folder)] += 1
        for path in folder.glob("scores-*.parquet"):
            first_seen.setdefault(path.name, path.stat().st_mtime_ns)
    run_score(world, output=folder, **small)
    print(f"{landed.total()} kills, {len(first_seen)} of 100 shards made on the way; they landed {dict(landed)}")
    assert contents(folder) == contents(tmp_path / "whole")
    for name, seen in first_seen.items():
        assert (folder / name).stat().st_mtime_ns == seen, f"{name} was made twice"
    assert len(first_seen) >= KILLS / 2
    assert "in a shard's write" in landed


def test_a_kill_before_any_act_on_a_file_is_made_good(world, tmp_path):
    """Every place at which a run can be cut, one after the other, up to its last act."""
    landed = Counter()
    for act in range(1, 100):
        folder = tmp_path / str(act)
        life = lives.start(config(world, folder), act)
        life.join()
        if life.exitcode == 0:
            break
        landed[state(folder)] += 1
        run_score(world, output=folder)
        assert contents(folder) == contents(world / "scores"), landed
    print(f"{landed.total()} places: {dict(landed)}")
    assert life.exitcode == 0
    places = {"in the claim's write", "between shards", "in a shard's write"}
    assert places | {"in the manifest's write", "after the manifest, before the end"} <= set(landed)


@pytest.mark.parametrize("share", ["", "1/2"])
def test_two_runs_started_at_once_end_well_or_say_so(world, tmp_path, share):
    both = [lives.start(config(world, tmp_path / "s", worker=share or None)) for _ in range(2)]
    for life in both:
        life.join()
    codes = sorted(life.exitcode for life in both)
    assert codes in ([[0, 0]] if share else [[0, 0], [0, 3]])
    if codes == [0, 3]:
        assert lives.said(config(world, tmp_path / "s")) == f"another run is at work in {tmp_path}/s"
    run_score(world, output=tmp_path / "s")
    assert contents(tmp_path / "s") == contents(world / "scores")


def test_a_run_at_work_keeps_others_out_and_its_files(world, tmp_path):
    (tmp_path / "s").mkdir()
    growing = tmp_path / "s/.scores-00000.parquet.1.tmp"
    with locked(tmp_path / "s"):
        growing.write_text("half")
        life = lives.start(config(world, tmp_path / "s", overwrite=True))
        life.join()
        assert life.exitcode == 3
        assert lives.said(config(world, tmp_path / "s")) == f"another run is at work in {tmp_path}/s"
        assert growing.exists()
    assert run_score(world, output=tmp_path / "s").fresh
    assert contents(tmp_path / "s") == contents(world / "scores")


def test_a_worker_beside_another_one_sweeps_nothing_and_replaces_nothing(world, tmp_path):
    run_score(world, output=tmp_path / "s", worker="1/2")
    growing = tmp_path / "s/.scores-00001.parquet.1.tmp"
    with locked(tmp_path / "s", shared=True) as lock:
        lock.settle()
        growing.write_text("half")
        for options in ({"max_length": 100, "overwrite": True}, {}):
            life = lives.start(config(world, tmp_path / "s", worker="2/2", **options))
            life.join()
            assert life.exitcode == (3 if options else 0)
            assert growing.exists()
    assert "max_length is 128 there and 100 here" in lives.said(config(world, tmp_path / "s"))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_workers_divide_the_shards_and_the_last_one_judges(world, tmp_path, count):
    ends = [run_score(world, output=tmp_path / "s", worker=f"{n}/{count}").title for n in range(1, count + 1)]
    missing = {1: "1 shard", 2: "2 shards"}[3 - len(range(0, 3, count))]
    assert ends[0] == f"worker 1/{count} done; {missing} of others missing in {tmp_path}/s"
    assert ends[min(count, 3) - 1] == f"scores in {tmp_path}/s"
    assert contents(tmp_path / "s") == contents(world / "scores")


def shards_read(monkeypatch):
    """The shards that are read from now on."""
    read, found = Place.read, []

    def listens(self, name):
        found.extend([name] * name.endswith(".parquet"))
        return read(self, name)

    monkeypatch.setattr(Place, "read", listens)
    return found


LEFT = ".worker-1-of-3.statistics"


@pytest.fixture(scope="module")
def with_noise(world, tmp_path_factory):
    """What one process makes with a noise check of all pairs."""
    folder = tmp_path_factory.mktemp("noise") / "s"
    run_score(world, output=folder, noise_check=1.0)
    return contents(folder)


def test_the_last_worker_reads_no_shard(world, with_noise, tmp_path, monkeypatch):
    """Whichever it is; the noise check too takes what the others wrote down."""
    read = shards_read(monkeypatch)
    for number in (3, 1, 2):
        assert not (tmp_path / "s" / FINISHED).exists()
        run_score(world, output=tmp_path / "s", worker=f"{number}/3", noise_check=1.0)
    assert not read
    assert contents(tmp_path / "s") == with_noise


def reshaped(path, column, values=(1.0,)):
    """The file whole again, with other values in a column."""
    table = pq.read_table(path)
    changed = table.set_column(table.column_names.index(column), column, pa.array([list(values)]))
    path.write_bytes(parquet_bytes(changed.replace_schema_metadata(table.schema.metadata)))


FAULTS = {
    "lost": lambda folder: (folder / LEFT).unlink(),
    "damaged": lambda folder: (folder / LEFT).write_bytes((folder / LEFT).read_bytes()[:-1] + b"?"),
    "a shard has changed": lambda folder: os.utime(folder / "scores-00000.parquet"),
    "of another shape": lambda folder: reshaped(folder / LEFT, "figures"),
    "not of numbers": lambda folder: reshaped(folder / LEFT, "types", ["a"]),
    "of more shards": lambda folder: shutil.copy(folder / ".worker-1-of-1.statistics", folder / LEFT),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_of_which_nothing_is_known_is_read(world, tmp_path, monkeypatch, fault):
    run_score(world, output=tmp_path / "s", worker="2/3")
    run_score(world, output=tmp_path / "s", worker="1/3")
    (tmp_path / "s/.worker-1-of-1.statistics").write_text("neither Parquet nor ours")
    FAULTS[fault](tmp_path / "s")
    read = shards_read(monkeypatch)
    run_score(world, output=tmp_path / "s", worker="3/3")
    assert read == ["scores-00000.parquet"]
    assert contents(tmp_path / "s") == contents(world / "scores")


def test_scores_for_the_noise_that_no_worker_kept_are_read(world, with_noise, tmp_path, monkeypatch):
    run_score(world, output=tmp_path / "s", worker="1/2")
    read = shards_read(monkeypatch)
    run_score(world, output=tmp_path / "s", worker="2/2", noise_check=1.0)
    assert sorted(read) == ["scores-00000.parquet", "scores-00002.parquet"]
    assert contents(tmp_path / "s") == with_noise


def test_what_workers_left_is_in_nobodys_way(world, tmp_path):
    """Of workers that are divided otherwise now, of a run that is replaced, and beside a manifest."""
    run_score(world, output=tmp_path / "s", worker="1/3", max_length=100)
    run_score(world, output=tmp_path / "s", overwrite=True)
    assert contents(tmp_path / "s") == contents(world / "scores")
    for worker in ("1/3", "1/2", "2/2"):
        run_score(world, output=tmp_path / "t", worker=worker)
        left = {path.name: path.read_bytes() for path in (tmp_path / "t").glob(".worker-*")}
        if worker == "1/2":
            assert {*left} == {LEFT, ".worker-1-of-2.statistics"}
            kept = left[LEFT]
    assert not left
    (tmp_path / "t" / LEFT).write_bytes(kept)
    assert check_scores(place_of(tmp_path / "t"), None, Quiet()).failure is None
    assert not run_score(world, output=tmp_path / "t").fresh
    assert contents(tmp_path / "t") == contents(world / "scores")


def test_a_dead_workers_shards_are_made_by_running_it_again(world, tmp_path):
    life = lives.start(config(world, tmp_path / "s", worker="1/2"), 12)
    life.join()
    assert life.exitcode == -9
    assert "1/2" not in run_score(world, output=tmp_path / "s", worker="2/2").title
    assert not (tmp_path / "s" / FINISHED).exists()
    run_score(world, output=tmp_path / "s", worker="1/2")
    assert contents(tmp_path / "s") == contents(world / "scores")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("fault", ["deleted", "truncated", "flipped", "foreign", "exchanged"])
def test_only_the_faulty_shard_is_made_again(world, tmp_path, fault, finished):
    folder = tmp_path / "s"
    run_score(world, output=folder, worker=None if finished else "1/2")
    path, other = folder / "scores-00000.parquet", folder / "scores-00002.parquet"
    data = path.read_bytes()
    if fault == "deleted":
        path.unlink()
    elif fault == "exchanged":
        path.write_bytes(other.read_bytes())
    elif fault == "foreign":
        run_score(world, output=tmp_path / "t", max_length=127)
        shutil.copy(tmp_path / "t/scores-00000.parquet", path)
    else:
        path.write_bytes(data[:-9] if fault == "truncated" else data[:200] + bytes([data[200] ^ 4]) + data[201:])
    before = other.stat().st_mtime_ns
    if finished:
        with pytest.raises(SepoError):
            list(open_scores(folder).rows())
    assert run_score(world, output=folder).fresh
    assert other.stat().st_mtime_ns == before
    assert contents(folder) == contents(world / "scores")


def test_a_clock_that_runs_backwards_changes_nothing(world, tmp_path, monkeypatch):
    run_score(world, output=tmp_path / "s", worker="1/2")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    run_score(world, output=tmp_path / "s")
    assert contents(tmp_path / "s") == contents(world / "scores")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_seconds_and_says_how_to_go_on(world, tmp_path, sent, code):
    write_lines(tmp_path / "pairs.jsonl", word_rows(1000))
    arguments = ["--oracle", world / "oracle", "--dataset", tmp_path / "pairs.jsonl", "--output-dir", tmp_path / "s"]
    [run] = lives.run_module("sepo_cli", "score", *arguments, "--shard-size", "1", folder=tmp_path)
    while run.alive() and not list((tmp_path / "s").glob("*.parquet")):
        time.sleep(0.05)
    started = time.monotonic()
    os.kill(run.pid, sent)
    ended, err = run.end()
    assert time.monotonic() - started < 10
    assert ended == code
    assert err.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert "Traceback" not in err


def test_a_worker_that_comes_late_to_a_finished_run_scores_nothing(world, tmp_path, monkeypatch):
    """The others finish while it still reads its data: their checksums have gone into the manifest by then."""
    run_score(world, output=tmp_path / "s", worker="1/2")
    load = score.load_pairs

    def slow(*given, **named):
        found = load(*given, **named)
        monkeypatch.setattr(score, "load_pairs", load)
        run_score(world, output=tmp_path / "s", worker="2/2")
        return found

    monkeypatch.setattr(score, "load_pairs", slow)
    summary = run_score(world, output=tmp_path / "s", worker="1/2")
    assert not summary.fresh
    assert contents(tmp_path / "s") == contents(world / "scores")


def test_two_interrupted_replacements_leave_the_finished_run_waiting(world, tmp_path, monkeypatch):
    run_score(world, output=tmp_path / "s")
    whole = contents(tmp_path / "s")
    # Interrupted when there is something to lose: behind the last shard.
    monkeypatch.setattr(score, "_gather", lambda *given: 1 / 0)
    for length in (100, 101):
        with pytest.raises(ZeroDivisionError):
            run_score(world, output=tmp_path / "s", max_length=length, overwrite=True)
    (tmp_path / ".s.replaced/.sepo.lock").unlink()
    assert contents(tmp_path / ".s.replaced") == whole


def test_a_folder_by_uri_is_made(world, tmp_path):
    score.run(config(world, f"file://{tmp_path}/new/scores"), Quiet())
    assert contents(tmp_path / "new/scores") == contents(world / "scores")
