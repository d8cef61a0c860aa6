"""JSON in and out: whatever is in it, what was written can be read, and what was read can be written."""

import json
import os

import pytest

from stages.errors import SepoError
from stages.reporting import printable
from stages.store.files import hash_json, json_text, read_object, write_json
from stages.store.shape import MOST_LEVELS


def nested(levels):
    return b'{"a": ' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_null(value):
    found = json.loads(json_text({"a": {"b": [value, (1.5, value)]}}))
    assert found == {"a": {"b": [None, [1.5, None]]}}


def test_names_that_are_no_utf8_come_back(tmp_path):
    name = b'\xff\xc3\xa9 \xf0\x9f\xa6\x8a \\ "'.decode(errors="surrogateescape")
    write_json(tmp_path / "a.json", {name: name})
    assert read_object(tmp_path / "a.json", "do") == {name: name}
    (tmp_path / "a.json").read_bytes().decode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "Expecting value"),
        (b"[]", "it is no JSON object"),
        (b"null", "it is no JSON object"),
        (b'{"a": 1', "Expecting"),
        (b"\xff\xfe\x00", "decode"),
        (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
        (nested(MOST_LEVELS), f"nested more than {MOST_LEVELS} levels deep"),
        (nested(900), f"nested more than {MOST_LEVELS} levels deep"),
        (nested(100_000), "deep"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "deep"),
    ],
)
def test_a_damaged_object_is_one_line(tmp_path, data, said):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(SepoError, match=said) as caught:
        read_object(tmp_path / "a.json", "do")
    assert str(tmp_path / "a.json") in caught.value.message


@pytest.mark.parametrize("name", ["none", "folder", "a" * 300, "a\0b"])
def test_a_file_that_is_none(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(SepoError, match="cannot be read"):
        read_object(tmp_path / name, "do")


def test_a_file_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.store.files.MOST_JSON_BYTES", 1000)
    (tmp_path / "long").write_bytes(b" " * 1001)
    os.mkfifo(tmp_path / "pipe")
    for path, said in (("long", "more than 1,000 bytes"), ("pipe", "not a regular file"), ("/dev/zero", "not a reg")):
        with pytest.raises(SepoError, match=said):
            read_object(tmp_path / path, "do")


def test_what_is_read_can_be_hashed_and_written(tmp_path):
    (tmp_path / "a.json").write_bytes(nested(MOST_LEVELS - 1))
    found = read_object(tmp_path / "a.json", "do")
    assert hash_json(found)
    write_json(tmp_path / "b.json", found)
    assert read_object(tmp_path / "b.json", "do") == found


@pytest.mark.parametrize(
    ("uri", "safe"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("s3://key:se/cr+et@bucket/a?region=x", "s3://bucket/a?region=x"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("mail a@b: no", "mail a@b: no"),
    ],
)
def test_keys_in_a_uri_are_neither_written_nor_printed(uri, safe):
    assert json.loads(json_text({uri: [f"at {uri} and"]})) == {safe: [f"at {safe} and"]}
    assert printable(f"cannot reach {uri}") == f"cannot reach {safe}"
