"""A manifest of any shape is read right or refused in one line, and nothing outside of its folder is touched."""

import copy
import json
from itertools import islice
from types import SimpleNamespace

import pytest

from stages.check import check_scores
from stages.configs import EvaluateConfig
from stages.errors import SepoError
from stages.evaluation.contamination import TrainedOn, training_history, training_pairs
from stages.reporting import Quiet
from stages.store.manifest import FINISHED, UNFINISHED, Input
from stages.store.place import place_of
from stages.store.run import open_run
from stages.store.scores import is_sound, open_scores
from stages.store.shape import is_inside, parse_json
from stages.store.shards import own_shard, shard_name, write_shard
from tests.conftest import random_pairs
from tests.store.test_scores import scored

WRONG = [
    None, True, -3, 17.5, 10**400, "x", "../outside.txt", "/etc/passwd", "é" * 200, "~nobody/x", [], [[1]], ["../outside.txt"], ["a", "a"], {},
    {"x": 1}, {"../outside.txt": {"sha256": "x", "bytes": 1, "rows": 1}},
]  # fmt: skip
INPUTS = {"dataset": Input("d", "h"), "scores": Input("scores", "f"), "model": Input("m", "h")}
SECTIONS = {
    "score": {
        "counts": {"kept": 1},
        "tokenizer": {"vocabulary": "t", "hash": "h", "size": 50},
        "results": {"noise": {"p99": 0.5}},
        "warnings": ["w"],
    },
    "train-policy": {"counts": {"kept": 1}},
    "train-oracle": {"counts": {"held_out": 1}},
}
SETTINGS = {"columns": None, "max_length": 512, "sft_epochs": 1.0}


def paths(value, path=()):
    yield path
    for key, inside in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from paths(inside, (*path, key))


def mutants(value):
    """The value with each of its parts taken away, or replaced by each of the wrong ones."""
    for path in paths(value):
        for wrong in [..., *WRONG]:
            found = {"": copy.deepcopy(value)}
            inside = found
            for key in ("", *path)[:-1]:
                inside = inside[key]
            last = ("", *path)[-1]
            if wrong is ...:
                del inside[last]
            else:
                inside[last] = wrong
            if found:
                yield found[""]


def finished(folder, stage):
    run = open_run(folder, stage, SETTINGS, INPUTS, overwrite=False)
    [pair] = random_pairs(1, 50)
    write_shard(run.place, shard_name(0), [scored(pair)], run.fingerprint, "t")
    checksum = own_shard(run.place, shard_name(0), run.fingerprint).checksum
    shards = {"shards": {shard_name(0): checksum}} if stage == "score" else {}
    run.finish(files=[shard_name(0)], device="cpu", **SECTIONS[stage], **shards)
    return {name: value for name, value in json.loads((folder / FINISHED).read_text()).items() if name != "made_by"}


def read_scores(folder):
    return [row.pair.pair_id for row in open_scores(folder).rows()] == [0]


def check(folder):
    """It names faults, or finds the folder sound."""
    summary = check_scores(place_of(folder), None, Quiet())
    if summary.failure is not None:
        raise summary.failure
    return summary.title.endswith("is sound")


def fault_of(read, folder):
    try:
        assert read(folder)
    except SepoError as error:
        return error
    return None


def claim(folder):
    (folder / UNFINISHED).write_bytes((folder / FINISHED).read_bytes())
    return open_run(folder, "score", SETTINGS, INPUTS, overwrite=False, sound=is_sound)


def claim_other(folder):
    return open_run(folder, "score", {"max_length": 1}, INPUTS, overwrite=False)


def trace(folder):
    held_out = SimpleNamespace(tokenizer_hash="h")
    sources, _ = training_history(folder)
    return [training_pairs(each, held_out, EvaluateConfig(), Quiet()) for each in (TrainedOn(str(folder)), *sources)]


@pytest.mark.parametrize(
    ("stage", "read", "every"),
    [
        ("score", read_scores, 2),
        ("score", check, 5),
        ("score", claim, 5),
        ("score", claim_other, 5),
        ("score", trace, 5),
        ("train-policy", trace, 1),
        ("train-oracle", trace, 1),
    ],
)
def test_a_manifest_of_any_shape_is_right_or_one_line(tmp_path, stage, read, every):
    good = finished(tmp_path / "out", stage)
    (tmp_path / "outside.txt").write_text("the user's")
    before = {path.name for path in tmp_path.iterdir()}
    shards = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")}
    refused = count = 0
    for bad in islice(mutants(good), None, None, every):
        (tmp_path / "out" / FINISHED).write_text(json.dumps(bad))
        count += 1
        fault = fault_of(read, tmp_path / "out")
        refused += fault is not None
        assert fault is None or ("\n" not in fault.message and fault.message), bad
    assert count > 100
    assert refused > count / 10
    # A run that is reopened takes its own copy of the manifest away.
    assert {path.name for path in tmp_path.iterdir()} | {".out.manifest.json"} == before | {".out.manifest.json"}
    assert (tmp_path / "outside.txt").read_text() == "the user's"
    assert {path: path.read_bytes() for path in shards} == shards


@pytest.mark.parametrize(
    "text",
    [
        "", "{", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", "[" * 99_999,
        '{"a":' * 101 + "1" + "}" * 101, b"\xff\xfe", b'"\xe9"', "\ufeff{}",
    ],
)  # fmt: skip
def test_json_that_could_not_be_written_again_is_refused(tmp_path, text):
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(data)
    finished(tmp_path / "out", "score")
    (tmp_path / "out" / FINISHED).write_bytes(data)
    with pytest.raises(SepoError, match=r"cannot read .*manifest\.json"):
        open_scores(tmp_path / "out")


def test_another_format_is_refused(tmp_path):
    good = finished(tmp_path / "out", "score")
    (tmp_path / "out" / FINISHED).write_text(json.dumps(good | {"format": 2}))
    with pytest.raises(SepoError, match="is of format 2, and this sepo reads format 1"):
        open_scores(tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/a", "a/", "a//b", "../a", "a/../b", "a\0", "a\\b", "x" * 256, 5, None]
)
def test_a_name_is_no_path_that_leads_away(name):
    assert not is_inside(name)
    assert is_inside("oracle/model.safetensors")
