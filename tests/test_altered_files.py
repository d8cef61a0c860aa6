"""A finished run's files are those that it wrote: found at every rerun, and where they are an input."""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time

import pytest
import torch
from filelock import FileLock

from stages.errors import SepoError
from stages.models.folders import model_hash
from stages.reporting import Quiet
from stages.store import files
from stages.store.manifest import FINISHED, UNFINISHED, read_manifest
from stages.store.run import open_run
from stages.tokens.dataset import load_pairs
from tests.conftest import tiny_llama
from tests.world import run_oracle, run_policy, run_score, weights

STEP = {"max_steps": 1, "save_steps": 1}


def flip(path, bit=None):
    data = bytearray(path.read_bytes())
    bit = len(data) * 4 if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGES = {"cut": lambda path: path.write_bytes(path.read_bytes()[:-4]), "flipped": flip}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_policy_is_not_taken_for_finished(world, chat_folder, tmp_path, damage):
    run_policy(world, chat_folder, output=tmp_path / "p", **STEP)
    path = tmp_path / "p/model.safetensors"
    whole = path.read_bytes()
    DAMAGES[damage](path)
    with pytest.raises(
        SepoError, match=r"p is not as its run finished it: .*model\.safetensors is not what was written"
    ):
        model_hash(tmp_path / "p")
    ear = Quiet()
    assert run_policy(world, chat_folder, ear, output=tmp_path / "p", **STEP).fresh
    assert f"{path} is not what was written there, and is made again" in ear.warnings
    assert path.read_bytes() == whole


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["reference", "oracle"])
def test_only_the_damaged_model_of_an_oracle_is_trained_again(world, chat_folder, tmp_path, name, finished):
    folder = shutil.copytree(world / "oracle", tmp_path / "oracle")
    if not finished:
        manifest = read_manifest(folder, "train-oracle", "")
        (folder / UNFINISHED).write_text(json.dumps(manifest))
        (folder / FINISHED).unlink()
    kept = (folder / "reference/model.safetensors").stat().st_ino
    flip(folder / name / "model.safetensors")
    assert run_oracle(world, chat_folder, output=folder).fresh
    for model in ("reference", "oracle"):
        assert torch.equal(weights(folder / model), weights(world / "oracle" / model))
    assert ((folder / "reference/model.safetensors").stat().st_ino == kept) == (name == "oracle")


def test_an_altered_model_is_no_input(world, chat_folder, tmp_path):
    folder = shutil.copytree(world / "oracle", tmp_path / "oracle")
    (folder / "oracle/pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(SepoError, match=r"pytorch_model\.bin is not of it$") as caught:
        run_score(tmp_path, dataset=world / "pairs.jsonl")
    assert "without manifest.json" in caught.value.hint
    (folder / "oracle/pytorch_model.bin").unlink()
    flip(folder / "reference/tokenizer.json")
    with pytest.raises(SepoError, match=r"reference is not as its run finished it: .*tokenizer\.json is not what was"):
        model_hash(folder / "reference")
    shutil.copytree(folder / "reference", tmp_path / "changed")
    assert model_hash(tmp_path / "changed") == model_hash(world / "oracle/reference")


def test_a_large_file_that_nobody_touched_is_read_once_by_all_processes(tmp_path, monkeypatch):
    """They remember it in the cache; each has a memory of its own besides."""
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "LARGE_BYTES", 8)
    path, small = tmp_path / "weights", tmp_path / "small"
    path.write_bytes(b"0123456789")
    small.write_bytes(b"01")
    late = max(each.stat().st_ctime_ns for each in (path, small)) + files.FRESH_NS
    monkeypatch.setattr(time, "time_ns", lambda: late)
    found = [files.hash_file(path), files.hash_file(small)]
    files._remembered.clear()
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    assert [files.hash_file(path), files.hash_file(small)] == found
    assert read == [str(small)]
    [note] = (tmp_path / "cache/hashes").iterdir()
    flip(note, 8 * 20)
    assert files.hash_file(path) == found[0], "a note that is damaged is none"
    files._remembered.clear()
    os.utime(path, ns=(0, path.stat().st_mtime_ns))
    assert files.hash_file(path) == found[0], "of another time of change it is read again"
    assert read.count(str(path)) == 2


@pytest.fixture
def weight_shards(tmp_path, monkeypatch):
    """Six large files, not read for a while, in the eyes of this process and those that it forks."""
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "LARGE_BYTES", 8)
    paths = [tmp_path / f"shard-{number}" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10)
    late = max(path.stat().st_ctime_ns for path in paths) + files.FRESH_NS
    monkeypatch.setattr(time, "time_ns", lambda: late)
    return paths


def slow_digest(log, seconds):
    """`hashlib.file_digest`, which takes some time and notes what was read."""
    digest = hashlib.file_digest

    def read(file, kind):
        with log.open("a") as notes:
            notes.write(f"{os.getpid()} {file.name}\n")
        time.sleep(seconds)
        return digest(file, kind)

    return read


def test_workers_that_start_together_read_each_file_once_and_each_a_part(weight_shards, tmp_path, monkeypatch):
    right = {path: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in weight_shards}
    monkeypatch.setattr(hashlib, "file_digest", slow_digest(tmp_path / "log", 0.1))
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(files.hash_files, [weight_shards] * 3, chunksize=1) == [right] * 3
    readers, read = zip(*(line.split() for line in (tmp_path / "log").read_text().splitlines()), strict=True)
    assert sorted(read) == sorted(map(str, weight_shards))
    assert len(set(readers)) == 3
    assert {path.suffix for path in (tmp_path / "cache/hashes").iterdir()} == {".json"}


def test_a_reader_that_is_killed_keeps_nobody_waiting(weight_shards, tmp_path, monkeypatch):
    log = tmp_path / "log"
    with monkeypatch.context() as slow:
        slow.setattr(hashlib, "file_digest", slow_digest(log, 60))
        reader = multiprocessing.get_context("fork").Process(target=files.hash_files, args=(weight_shards[:1],))
        reader.start()
        while not log.exists():
            time.sleep(0.01)
    threading.Timer(0.3, reader.kill).start()
    assert files.hash_file(weight_shards[0]) == f"sha256:{hashlib.sha256(bytes(10)).hexdigest()}"
    reader.join()
    assert not [*(tmp_path / "cache/hashes").glob("*.lock")]


def test_a_reader_that_hangs_keeps_others_waiting_for_a_while_only(weight_shards, tmp_path, monkeypatch):
    path = weight_shards[0]
    lock = files._note(str(path), files._state(path)).with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.1)
    with FileLock(lock):
        assert files.hash_file(path) == f"sha256:{hashlib.sha256(bytes(10)).hexdigest()}"


def test_a_hash_is_never_that_of_the_file_before(tmp_path):
    """Written twice within one tick of the disk's clock, as long as before."""
    path = tmp_path / "file"
    seen = set()
    for number in range(50):
        path.write_text(f"{number:02}")
        seen.add(files.hash_file(path))
    assert len(seen) == 50


def test_a_blob_of_the_hub_is_named_by_its_hash(tmp_path):
    blob = tmp_path / "models--org--name/blobs" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"weights")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert files.hash_file(tmp_path / "model.safetensors") == f"sha256:{'ab' * 32}"


def test_any_digit_of_a_manifest_is_vouched_for(world, tmp_path):
    """A place of the noise decides which tokens `--select auto` takes."""
    run_score(world, output=tmp_path / "s", noise_check=0.01)
    path = tmp_path / "s" / FINISHED
    text = path.read_text()
    for line in [
        line for line in text.splitlines() if '"p99": ' in line or '"kept": ' in line or '"vocabulary": ' in line
    ]:
        digit = next(at for at in range(len(line) - 1, 0, -1) if line[at] in "0123456789")
        altered = line[:digit] + chr(ord(line[digit]) ^ 1) + line[digit + 1 :]
        path.write_text(text.replace(line, altered))
        with pytest.raises(SepoError, match=r"manifest\.json is not as it was written"):
            read_manifest(tmp_path / "s", "score", "")
    path.write_text(json.dumps(json.loads(text) | {"warnings": ["edited"]}))
    assert read_manifest(tmp_path / "s", "score", "")["warnings"] == ["edited"]


def test_weights_that_are_not_vouched_for_are_told_from_those_of_a_folder_of_ones_own(chatml, tmp_path):
    """A folder that no run of sepo finished vouches for nothing."""
    tiny_llama(50).save_pretrained(tmp_path / "m")
    (tmp_path / FINISHED).write_text('{"a manifest": "of something else"}')
    assert model_hash(tmp_path / "m")


class Taken(Quiet):
    """Another run takes the folder as soon as something was scored, as where no lock reaches it."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def advance(self, amount=1, figures=None):
        shutil.rmtree(self.folder)
        open_run(self.folder, "score", {"another": "run"}, {}, overwrite=False)


def test_a_scorer_that_lost_its_folder_puts_no_shard_there(world, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "stages.score.load_pairs", lambda *given, reporter, **named: load_pairs(*given, reporter=Quiet(), **named)
    )
    with pytest.raises(SepoError, match=r"^another run has taken"):
        run_score(world, Taken(tmp_path / "s"), output=tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == [UNFINISHED]
