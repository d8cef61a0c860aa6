"""Files are made on the spot; the hub reader meets the real `datasets.load_dataset`, pointed at a local folder."""

import datetime
import gzip
import hashlib
import json
import os
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.json_files import _Text
from stages.data.read import Row, dataset_hash, load_split, read_rows
from stages.errors import SepoError

ROWS = [{"prompt": f"question {number}", "n": number} for number in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
JSON_HINT = "each line is one JSON object; a .json file may also be a list of objects"
DAMAGED_HINT = "make or download the file again"
KINDS = ".jsonl, .json, .csv or .tsv (each may end in .gz or .zst), .parquet or .arrow"
KINDS_HINT = f"convert it to {KINDS}"
PATH_HINT = "check the path; a data set on the hub is org/name[:split]"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Tests name files the way a user does, relative to where they stand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path


def error_of(dataset):
    with pytest.raises(SepoError) as caught:
        list(read_rows(dataset))
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize(
    ("name", "data", "first_where"),
    [
        ("a.jsonl", LINES, "a.jsonl:1"),
        ("a.ndjson", LINES, "a.ndjson:1"),
        ("A.JSONL", LINES, "A.JSONL:1"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0), "a.jsonl.gz:1"),
        ("a.jsonl", LINES.rstrip(), "a.jsonl:1"),
        ("a.jsonl", LINES.replace(b"\n", b"\r\n"), "a.jsonl:1"),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES, "a.jsonl:1"),
        ("a.json", LINES, "a.json:1"),
        ("a.json", json.dumps(ROWS).encode(), "a.json row 0"),
        ("a.json", b"\xef\xbb\xbf\n " + json.dumps(ROWS, indent=2).encode(), "a.json row 0"),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0), "a.json.gz row 0"),
    ],
)
def test_json_of_every_shape_gives_the_same_rows(folder, name, data, first_where):
    (folder / name).write_bytes(data)
    rows = list(read_rows(name))
    assert rows[0] == Row(0, first_where, ROWS[0])
    assert [row.columns for row in rows] == ROWS
    assert [row.number for row in rows] == [0, 1, 2]


def test_blank_lines_count_as_lines_but_not_as_rows(folder):
    (folder / "a.jsonl").write_bytes(b'\n{"n": 0}\n  \n{"n": 1}\n\n')
    assert list(read_rows("a.jsonl")) == [Row(0, "a.jsonl:2", {"n": 0}), Row(1, "a.jsonl:4", {"n": 1})]


def test_a_line_separator_inside_a_text_does_not_end_the_line(folder):
    (folder / "a.jsonl").write_text('{"a": "one\u2028two\u0085three"}\n', encoding="utf-8")
    assert [row.columns for row in read_rows("a.jsonl")] == [{"a": "one\u2028two\u0085three"}]


def test_parquet_of_several_batches_and_nested_columns(folder):
    rows = [{"chosen": [{"role": "user", "content": f"{number}"}], "n": number} for number in range(700)]
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet", row_group_size=300)
    read = list(read_rows("a.parquet"))
    assert [row.columns for row in read] == rows
    assert [row.where for row in read] == [f"a.parquet row {number}" for number in range(700)]


def test_rows_stream_so_that_a_late_fault_does_not_hide_the_early_rows(folder):
    (folder / "a.jsonl").write_bytes(LINES + b"{broken\n")
    rows = read_rows("a.jsonl")
    assert [next(rows).number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SepoError, match=r"^a\.jsonl:4: broken JSON"):
        next(rows)


def test_blanks_in_a_list_are_not_held():
    pieces = iter(range(100))
    text = _Text(SimpleNamespace(read=lambda size: " " * size if next(pieces, None) is not None else ""), "a.json")
    assert text.next() == ""
    assert len(text._held) <= 1 << 16


def test_a_home_folder_is_found(folder, monkeypatch):
    (folder / "a.jsonl").write_bytes(LINES)
    monkeypatch.setenv("HOME", str(folder))
    assert next(read_rows("~/a.jsonl")).where == "~/a.jsonl:1"


FAULTS = {
    "broken": ("a.jsonl", LINES + b'{"prompt": "x",}\n', "a.jsonl:4: broken JSON: ", JSON_HINT),
    "cut off": ("a.jsonl", LINES + b'{"prompt":\n', "a.jsonl:4: broken JSON: Expecting value (column 11)", JSON_HINT),
    "pretty": ("a.json", json.dumps(ROWS[0], indent=1).encode(), "a.json:1: broken JSON: Expecting property name enclosed in double quotes (column 2)", JSON_HINT),
    "list": ("a.json", b'[{"n": 1},\n{"n" 2}]', "a.json:2: broken JSON: Expecting ':' delimiter (column 6)", JSON_HINT),
    "line is null": ("a.jsonl", b"null\n", "a.jsonl:1: null, not an object", JSON_HINT),
    "latin-1": ("a.jsonl", LINES + b'{"prompt": "caf\xe9"}\n', "a.jsonl:4: not UTF-8 at byte 16", "save the file as UTF-8"),
    "empty parquet": ("a.parquet", b"", "a.parquet: damaged Parquet data: Parquet file size is 0 bytes", DAMAGED_HINT),
    "empty": ("a.jsonl", b"", "a.jsonl: no rows", "give a data set with at least one row"),
    "unknown": ("a.txt", LINES, "a.txt: unknown kind of file", KINDS_HINT),
    "unknown gz": ("a.parquet.gz", LINES, "a.parquet.gz: unknown kind of file", KINDS_HINT),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_trusted_stops_the_run(folder, fault):
    name, data, expected, expected_hint = FAULTS[fault]
    (folder / name).write_bytes(data)
    message, hint = error_of(name)
    assert hint == expected_hint
    # The end of a message that comes from Python or Arrow may change with their versions.
    assert message.startswith(expected)
    if any(words in expected for words in ("not an object", "not UTF-8", "no rows", "unknown", "too early")):
        assert message == expected


@pytest.mark.parametrize("name", ["gone.jsonl", "data/gone.json.gz", "org/gone.parquet", "./gone", "/gone/x", "~/gone", "gone", "a/b/c", ".", "x" * 5000])  # fmt: skip
def test_a_missing_file_is_not_taken_for_a_hub_name(name):
    expected = (
        (".: no data file in this folder", f"data files are {KINDS}")
        if name == "."
        else (f"{name}: no such file", PATH_HINT)
    )
    assert error_of(name) == expected
    with pytest.raises(SepoError) as caught:
        dataset_hash(name)
    assert (caught.value.message, caught.value.hint) == expected


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_closed_file(folder):
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "a.jsonl").chmod(0)
    expected = ("a.jsonl cannot be read: Permission denied", "check the file and its permissions")
    assert error_of("a.jsonl") == expected


def test_hash_of_a_file_is_that_of_its_bytes(folder):
    packed = gzip.compress(LINES)
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "a.jsonl.gz").write_bytes(packed)
    assert dataset_hash("a.jsonl") == "sha256:" + hashlib.sha256(LINES).hexdigest()
    assert dataset_hash("a.jsonl.gz") == "sha256:" + hashlib.sha256(packed).hexdigest()


def hub_folder(folder, *splits):
    """A folder that `load_dataset` reads as it would read a repository of the hub."""
    source = folder / "org" / "-".join(splits)
    for split in splits:
        (source / "data").mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": f"{split} {number}"} for number in range(2)]
        pq.write_table(pa.Table.from_pylist(rows), source / "data" / f"{split}-00000-of-00001.parquet")
    return str(source)


@pytest.mark.parametrize(
    ("splits", "wanted", "expected"),
    [
        (("test_prefs", "train", "train_prefs"), None, "train_prefs"),
        (("test", "train"), None, "train"),
        (("even",), None, "even"),
        (("test", "train"), "test", "test"),
    ],
)
def test_the_split_that_is_taken(folder, splits, wanted, expected):
    name, rows = load_split(hub_folder(folder, *splits), wanted)
    assert name == expected
    assert list(rows) == [{"prompt": f"{expected} 0"}, {"prompt": f"{expected} 1"}]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [(None, "has several splits, and none is train_prefs or train"), ("train", "has no split train")],
)
def test_a_split_that_is_not_there(folder, wanted, problem):
    source = hub_folder(folder, "even", "odd")
    with pytest.raises(SepoError) as caught:
        load_split(source, wanted)
    assert caught.value.message == f"{source} {problem}"
    assert caught.value.hint == f"choose one: {source}:even, {source}:odd"


def test_damaged_data_on_the_hub_is_one_line_with_its_cause(folder):
    (folder / "train.jsonl").write_text('{"prompt": 1')
    with pytest.raises(SepoError) as caught:
        load_split(str(folder), None)
    assert caught.value.message.startswith(f"{folder} cannot be loaded from the hub: JSON parse error: ")
    assert "\n" not in caught.value.message


def test_rows_and_hash_of_a_hub_name(folder, monkeypatch):
    """Only the address is changed: the name's two parts must reach `load_dataset`, and its rows must come back."""
    source = hub_folder(folder, "test", "train")
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name: load({"hub-org/name.v1": source}[name]))
    assert list(read_rows("hub-org/name.v1:test")) == [
        Row(0, "hub-org/name.v1:test row 0", {"prompt": "test 0"}),
        Row(1, "hub-org/name.v1:test row 1", {"prompt": "test 1"}),
    ]
    assert next(read_rows("hub-org/name.v1")).where == "hub-org/name.v1:train row 0"
    canonical = b'{"prompt":"train 0"}\n{"prompt":"train 1"}\n'
    assert dataset_hash("hub-org/name.v1") == "sha256:" + hashlib.sha256(canonical).hexdigest()


def test_hash_of_hub_rows_ignores_the_order_of_columns_and_takes_any_type(folder, monkeypatch):
    columns = {"prompt": ["why?"], "made": [datetime.date(2024, 3, 1)]}
    pq.write_table(pa.table(columns), "train.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, load=datasets.load_dataset: load(str(folder)))
    expected = hashlib.sha256(b'{"made":"2024-03-01","prompt":"why?"}\n').hexdigest()
    assert dataset_hash("org/name") == f"sha256:{expected}"


@pytest.mark.parametrize("name", ["sepo-tests/not-there", "sepo-tests/not-there:train"])
def test_a_hub_name_while_offline(name):
    message, hint = error_of(name)
    assert message.startswith("sepo-tests/not-there cannot be loaded from the hub: Couldn't reach ")
    assert hint == "check the name, the network and `hf auth login`, or give a .jsonl, .json or .parquet file"
