import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stages.errors import SepoError
from stages.store.files import hash_file, hash_json, probe_writable, sweep_writes, whole_folder, write_json, write_whole
from stages.store.manifest import Input, read_manifest
from stages.store.run import open_run

INPUTS = {"dataset": Input("pairs.jsonl", "sha256:aa")}


def claim(folder, settings=None, inputs=None, *, stage="score", overwrite=False):
    return open_run(folder, stage, settings or {"max_length": 512}, inputs or INPUTS, overwrite=overwrite)


def finish(run, files=("a.txt",)):
    for name in files:
        (run.folder / name).write_text("x")
    run.finish(files=list(files), device="cpu", counts={"kept": 3})


def test_a_finished_run_is_not_redone(tmp_path):
    finish(claim(tmp_path / "out"))
    assert claim(tmp_path / "out").finished
    manifest = read_manifest(tmp_path / "out", "score", "run it")
    assert manifest["settings"] == {"max_length": 512}
    assert manifest["counts"] == {"kept": 3}
    assert manifest["made_by"]["device"] == "cpu"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.txt", "manifest.json"}


def test_an_unfinished_run_goes_on(tmp_path):
    claim(tmp_path / "out")
    (tmp_path / "out/part.txt").write_text("x")
    assert not claim(tmp_path / "out").finished
    assert (tmp_path / "out/part.txt").exists()


def test_a_folder_that_lost_only_its_manifest_gets_it_back(tmp_path):
    finish(claim(tmp_path / "out"))
    whole = (tmp_path / "out/manifest.json").read_bytes()
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(SepoError, match="holds another run: max_length is 512 there and 1 here"):
        claim(tmp_path / "out", {"max_length": 1})
    (tmp_path / "out/manifest.json").unlink()
    assert claim(tmp_path / "out").finished
    assert (tmp_path / "out/manifest.json").read_bytes() == whole
    # Not where the files are not what it says.
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/a.txt").unlink()
    assert not claim(tmp_path / "out").finished
    # Nor where there is another one's work.
    finish(claim(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").touch()
    with pytest.raises(SepoError, match="is not empty and holds no run of sepo"):
        claim(tmp_path / "out")


def test_a_promised_file_that_is_gone_reopens_the_run(tmp_path):
    finish(claim(tmp_path / "out"), ["a.txt", "b.txt"])
    (tmp_path / "out/a.txt").unlink()
    assert not claim(tmp_path / "out").finished
    assert not (tmp_path / "out/manifest.json").exists()
    assert (tmp_path / "out/b.txt").exists()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("settings", "inputs", "stage", "said"),
    [
        ({"max_length": 256}, INPUTS, "score", "max_length is 512 there and 256 here"),
        ({"max_length": 512, "seed": 1}, INPUTS, "score", "seed is None there and 1 here"),
        ({"max_length": 512}, {"dataset": Input("pairs.jsonl", "sha256:bb")}, "score", "the dataset differs"),
        ({"max_length": 512}, INPUTS, "train-oracle", "of `sepo score`, not of `sepo train-oracle`"),
    ],
)
def test_another_run_is_refused_and_its_difference_named(tmp_path, finished, settings, inputs, stage, said):
    run = claim(tmp_path / "out")
    (tmp_path / "out/part.txt").write_text("hours of work")
    if finished:
        finish(run)
    before = sorted(path.read_bytes() for path in (tmp_path / "out").iterdir())
    with pytest.raises(SepoError) as caught:
        claim(tmp_path / "out", settings, inputs, stage=stage)
    assert caught.value.message == f"{tmp_path / 'out'} holds another run: {said}"
    assert ("--overwrite" in caught.value.hint) == (stage == "score")
    assert sorted(path.read_bytes() for path in (tmp_path / "out").iterdir()) == before


def test_overwrite_replaces_another_run_and_keeps_the_same_one(tmp_path):
    finish(claim(tmp_path / "out"))
    assert claim(tmp_path / "out", overwrite=True).finished
    run = claim(tmp_path / "out", {"max_length": 1}, overwrite=True)
    assert not run.finished
    assert not (tmp_path / "out/a.txt").exists()
    assert (tmp_path / ".out.replaced/a.txt").exists(), "kept until the new run has finished"
    finish(run)
    assert not (tmp_path / ".out.replaced").exists()


def test_another_stage_is_never_overwritten(tmp_path):
    finish(claim(tmp_path / "out"))
    with pytest.raises(SepoError, match="holds another run: of `sepo score`, not of `sepo train-policy`"):
        claim(tmp_path / "out", stage="train-policy", overwrite=True)
    assert (tmp_path / "out/a.txt").exists()


def test_a_claim_that_made_nothing_does_not_stand_in_the_way(tmp_path):
    claim(tmp_path / "out")
    assert not claim(tmp_path / "out", {"max_length": 1}).finished


def test_what_killed_runs_left_is_swept(tmp_path):
    claim(tmp_path / "out")
    for name in (".oracle.1.tmp", "checkpoints/.dpo-4.1.tmp"):
        (tmp_path / "out" / name).mkdir(parents=True)
    claim(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_names_and_paths_do_not_enter_the_fingerprint(tmp_path):
    here = claim(tmp_path / "a")
    there = claim(tmp_path / "b", inputs={"dataset": Input("/elsewhere/pairs.jsonl", "sha256:aa")})
    assert here.fingerprint == there.fingerprint


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_of_other_things_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SepoError, match="is not empty and holds no run of sepo"):
        claim(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_reading_an_unfinished_or_foreign_stage(tmp_path):
    with pytest.raises(SepoError, match="there is no folder"):
        read_manifest(tmp_path / "none", "score", "run it")
    run = claim(tmp_path / "out")
    with pytest.raises(SepoError, match=r"has no manifest\.json: the stage never finished there"):
        read_manifest(tmp_path / "out", "score", "run it")
    finish(run)
    with pytest.raises(SepoError, match="was made by `sepo score`, not by `sepo train-oracle`"):
        read_manifest(tmp_path / "out", "train-oracle", "run it")


def test_a_broken_manifest_is_one_line(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(SepoError, match=r"cannot read .*manifest\.json"):
        claim(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"a": 1})

    def fail(temporary: Path):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(SepoError, match=r"cannot write .*a\.json: No space left on device"):
        write_whole(target, fail)
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):

    def fail():
        with whole_folder(tmp_path / "model") as temporary:
            (temporary / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("w")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights"]


def test_hashes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(tmp_path / "abc") == expected
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})


def test_what_a_killed_run_was_writing_is_swept_and_what_is_being_written_stays(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [f".out.json.{process}-0a1b2c3d.tmp" for process in (dead.pid, os.getpid(), 1 << 40)]
    stays = [f".out.json.{os.getppid()}-0a1b2c3d.tmp", f".out.json.{dead.pid}-thesis.tmp", ".out.json.x.tmp"]
    stays += [f".other.json.{dead.pid}-0a1b2c3d.tmp"]
    for name in [*left, *stays]:
        (tmp_path / name).touch()
    sweep_writes(tmp_path / "out.json")
    assert {path.name for path in tmp_path.iterdir()} == {*stays}


def test_a_run_sweeps_what_it_was_writing_beside_its_folder(tmp_path):
    left = tmp_path / f"..out.manifest.json.{os.getpid()}-0a1b2c3d.tmp"
    left.touch()
    open_run(tmp_path / "out", "score", {}, {}, overwrite=False)
    assert not left.exists()


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files have names here from the beginning")
def test_whether_a_folder_can_be_written_is_asked_without_a_file_that_a_kill_would_leave(tmp_path, monkeypatch):
    opened, system = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *how: opened.append(str(path)) or system(path, *how))
    probe_writable(tmp_path)
    assert opened == [str(tmp_path)]


@pytest.mark.parametrize("loss", ["removed", "taken"])
@pytest.mark.parametrize("act", ["finish", "refuse_if_lost"])
def test_a_run_that_lost_its_folder_writes_nothing_more_there(tmp_path, loss, act):
    """No lock reaches an object store, and some file systems have none."""
    run = open_run(tmp_path / "out", "score", {"k": 1}, {}, overwrite=False)
    shutil.rmtree(tmp_path / "out")
    if loss == "taken":
        open_run(tmp_path / "out", "score", {"k": 2}, {}, overwrite=False)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(SepoError, match=r"^another run has taken .*out$") as caught:
        run.finish(files=[], device="cpu") if act == "finish" else run.refuse_if_lost()
    assert caught.value.hint == "give each run an --output-dir of its own"
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
