"""Nothing that a run reads, and nothing that no run of sepo wrote, is written over, moved or removed."""

import json
import os

import pytest

from stages.errors import SepoError
from stages.store.manifest import Input
from stages.store.place import place_of
from stages.store.protect import files_meant, refuse_own_input_file, refuse_strangers
from stages.store.run import open_run
from tests.store.test_manifest import claim, finish
from tests.world import manifest


def lines(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"prompt": "a"}\n')
    return path


def linked(path, folder):
    path.symlink_to(folder)
    return path


def adapter(folder, base):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return folder


NAMES = {
    "a file": lambda root: root / "out/data.jsonl",
    "a slice": lambda root: f"{root}/out/data.jsonl[:64]",
    "a pattern": lambda root: f"{root}/out/*.jsonl",
    "a pattern and a slice": lambda root: f"{root}/o*/d?ta.jsonl[2:]",
    "a split of the folder": lambda root: f"{root}/out:train",
    "the folder with a slash": lambda root: f"{root}/out/",
    "by way of another folder": lambda root: f"{root}/out/../out/data.jsonl",
    "a link to the folder": lambda root: linked(root / "other", root / "out") / "data.jsonl",
    "a link in the folder": lambda root: linked(root / "out/link.jsonl", lines(root / "far.jsonl")),
    "the base of an adapter": lambda root: adapter(root / "adapter", root / "out"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", ["out", "out/", "out/.", "way/../out", "linked"])
def test_an_output_folder_never_holds_what_the_run_reads(tmp_path, name, output):
    finish(claim(tmp_path / "out"))
    (tmp_path / "linked").symlink_to(tmp_path / "out")
    data = lines(tmp_path / "out/data.jsonl")
    given = {"dataset": Input(str(NAMES[name](tmp_path)), "sha256:aa")}
    (tmp_path / "way").mkdir()
    with pytest.raises(SepoError, match="holds the dataset it would be made from"):
        open_run(f"{tmp_path}/{output}", "score", {"max_length": 1}, given, overwrite=True)
    assert data.exists()


@pytest.mark.parametrize("name", ["../near/data.jsonl", "org/name:train", "s3://bucket/out", "a" * 5000, "[", "\0"])
def test_what_lies_elsewhere_is_in_nobodys_way(tmp_path, name, monkeypatch):
    lines(tmp_path / "near/data.jsonl")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert not open_run("out", "score", {}, {"dataset": Input(name, "sha256:aa")}, overwrite=False).finished


@pytest.mark.parametrize("name", ["data.jsonl", "link.jsonl", "hard.jsonl", "data.jsonl[:1]", "*.jsonl", "new/x.jsonl"])
def test_a_file_that_is_written_is_no_part_of_a_data_set(tmp_path, name):
    data = lines(tmp_path / "data.jsonl")
    linked(tmp_path / "link.jsonl", data)
    os.link(data, tmp_path / "hard.jsonl")
    lines(tmp_path / "new/a.jsonl")
    given = {"dataset": Input(f"{tmp_path}/{name}".replace("new/x.jsonl", "new"), "h", data=True)}
    for file in (tmp_path / "new/x.jsonl",) if name.startswith("new") else (data, tmp_path / "hard.jsonl"):
        with pytest.raises(SepoError, match=r"is, or would become, a part of the dataset"):
            refuse_own_input_file(file, given, "choose another")
    refuse_own_input_file(tmp_path / "report.json", given, "choose another")


@pytest.mark.parametrize("file", ["notes.txt", "model.safetensors", "deep/er/notes.txt"])
@pytest.mark.parametrize("finished", [True, False])
def test_overwriting_keeps_what_others_put_there(tmp_path, file, finished):
    run = claim(tmp_path / "out")
    if finished:
        finish(run)
    path = tmp_path / "out" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("years of work")
    with pytest.raises(SepoError, match=f"holds what no run of sepo wrote there: {file}"):
        claim(tmp_path / "out", {"max_length": 1}, overwrite=True)
    if not finished:
        with pytest.raises(SepoError, match="holds what no run of sepo wrote there"):
            open_run(tmp_path / "out", "score", {"max_length": 512}, {}, overwrite=True, resume=False)
    assert path.read_text() == "years of work"
    assert claim(tmp_path / "out").finished == finished, "the same work goes on beside it"


def test_what_a_run_promised_before_it_was_killed_is_its_own(tmp_path):
    run = claim(tmp_path / "out")
    run.promise(["model.safetensors"])
    (tmp_path / "out/model.safetensors").touch()
    assert not claim(tmp_path / "out", {"max_length": 1}, overwrite=True).finished


@pytest.mark.parametrize("stage", ["oracle", "scores", "policy"])
def test_no_stage_takes_its_own_files_for_a_strangers(world, stage):
    refuse_strangers(place_of(world / stage), manifest(world / stage), finished=True)


def test_a_link_is_followed_and_stays(tmp_path):
    linked(tmp_path / "out", tmp_path / "disk")
    finish(claim(tmp_path / "out"))
    assert claim(tmp_path / "out").finished
    claim(tmp_path / "out", {"max_length": 1}, overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / ".disk.replaced/a.txt").exists()
    (tmp_path / "disk/scores-00000.parquet").touch()
    open_run(tmp_path / "out", "score", {"max_length": 1}, {"dataset": Input("x", "sha256:aa")}, overwrite=False,
             resume=False)  # fmt: skip
    assert not (tmp_path / "disk/scores-00000.parquet").exists()


def test_the_current_folder_can_be_written_but_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    finish(claim("."))
    assert claim(".").finished
    assert claim("../here/").finished
    with pytest.raises(SepoError, match=r"\. is the current folder"):
        claim(".", {"max_length": 1}, overwrite=True)
    assert claim(".").finished


@pytest.mark.parametrize("name", ["x" * 300, "file", "loop", "a\udcff", "file/deeper", "/proc/none"])
def test_a_folder_that_cannot_be_is_one_line(tmp_path, name):
    (tmp_path / "file").touch()
    linked(tmp_path / "loop", tmp_path / "loop")
    with pytest.raises(SepoError, match=r"cannot (read|write)|is not UTF-8"):
        claim(str(tmp_path / name))


@pytest.mark.parametrize("name", ["~/out", "a\nb", "a b", "dangling", "[x]"])
def test_a_folder_of_an_odd_name_is_a_folder(tmp_path, name, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    linked(tmp_path / "dangling", tmp_path / "far/away")
    finish(claim(name))
    assert claim(name).finished
    assert (tmp_path / name.replace("~/", "") / "manifest.json").exists()


def test_what_a_name_means_is_known_to_the_last_file_or_not_at_all(tmp_path):
    """What is not here cannot be seen to be as it was: `sepo_cli.finished` then asks the stage."""
    data = lines(tmp_path / "base/data.jsonl")
    assert files_meant(f"{data}[:2]") == [data]
    inner = adapter(tmp_path / "inner", tmp_path / "base")
    outer = adapter(tmp_path / "outer", "/moved/from/inner")
    assert files_meant(str(outer)) == [data, *(folder / "adapter_config.json" for folder in (inner, outer))]
    (tmp_path / "s3").mkdir()
    for name in ("org/model", "s3://bucket/scores", adapter(tmp_path / "hub", "org/model")):
        with pytest.raises(FileNotFoundError):
            files_meant(str(name))
