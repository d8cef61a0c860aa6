"""Every source of rows must give the same rows, and a slice of it the same slice; what is unclear is refused."""

import gzip
import hashlib
import io
import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.read import count_rows, dataset_hash, read_rows
from stages.errors import SepoError

ROWS = [{"prompt": f"question {number}, or\nnot", "n": f"{number}"} for number in range(600)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"prompt,n\n" + b"".join(f'"question {number}, or\nnot",{number}\n'.encode() for number in range(600))
CSV_HINT = 'quote a field that holds a comma, a quote or a line end, and double its quotes: "so ""this"", then"'
DAMAGED_HINT = "make or download the file again"
SLICE_HINT = "write [:1000], [100:] or [100:200]"
NO_ROW_HINT = "the second number is the row to stop at"
HEADER_HINT = "the first line of a CSV file names its columns"


def zst(data):
    return pa.compress(data, codec="zstd", asbytes=True)


def arrow(rows=ROWS, *, stream=True):
    """What `datasets` writes is a stream; ``pyarrow.feather`` and polars write the file."""
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=250)
    return sink.getvalue()


def parquet(rows=ROWS):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path


def put(files):
    for name, data in files.items():
        if os.path.dirname(name):
            os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "wb") as file:
            file.write(data)


def columns_of(dataset):
    return [row.columns for row in read_rows(dataset)]


FILES = {
    "a.jsonl": LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zst(LINES),
    "two-frames.jsonl.zst": zst(LINES[:5000]) + zst(LINES[5000:]),
    "a.json.zst": zst(json.dumps(ROWS).encode()),
    "a.csv": CSV,
    "A.CSV": CSV,
    "bom.csv": b"\xef\xbb\xbf" + CSV,
    "a.csv.gz": gzip.compress(CSV),
    "a.csv.zst": zst(CSV),
    "a.tsv": CSV.replace(b"prompt,n", b"prompt\tn").replace(b'not",', b'not"\t'),
    "a.parquet": parquet(),
    "stream.arrow": arrow(),
    "file.arrow": arrow(stream=False),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows_and_slices(name):
    put({name: FILES[name]})
    rows = list(read_rows(name))
    assert [row.columns for row in rows] == ROWS
    assert [row.number for row in rows] == list(range(600))
    assert list(read_rows(f"{name}[:3]")) == rows[:3]
    assert list(read_rows(f"{name}[590:]")) == rows[590:]
    assert list(read_rows(f"{name}[255:258]")) == rows[255:258]
    assert list(read_rows(f"{name}[:]")) == rows
    assert list(read_rows(f"{name}[598:9999]")) == rows[598:]


@pytest.mark.parametrize("name", FILES)
def test_rows_are_counted_where_the_file_says_how_many(name):
    put({name: FILES[name]})
    told = name.endswith(".parquet")
    for rows, expected in (("", 600), ("[:7]", 7), ("[590:]", 10), ("[700:]", 0)):
        assert count_rows(name + rows) == (expected if told else 0)


def test_a_damaged_file_is_not_counted():
    put({"a.parquet": parquet()[:-9], "a.arrow": arrow()[:-9]})
    assert count_rows("a.parquet") == count_rows("a.arrow") == 0


def test_csv_rows_know_the_line_they_start_on():
    put({"a.csv": b'a,b\r\n"one\r\ntwo",""\r\n\r\n" ""x"" ",plain "quotes"\r\n'})
    rows = list(read_rows("a.csv"))
    assert [row.where for row in rows] == ["a.csv:2", "a.csv:5"]
    assert [row.columns for row in rows] == [{"a": "one\r\ntwo", "b": ""}, {"a": ' "x" ', "b": 'plain "quotes"'}]


@pytest.mark.parametrize(("name", "data"), [
    ("a.jsonl", json.dumps({"text": "x" * 10_000_000}).encode()), ("a.csv", b'text\n"' + b"x" * 10_000_000 + b'"\n'),
])  # fmt: skip
def test_a_row_of_ten_megabytes_is_a_row(name, data):
    put({name: data})
    assert [len(row["text"]) for row in columns_of(name)] == [10_000_000]


def test_many_files_in_the_order_of_their_names():
    parts = {
        f"data/part-{number}.jsonl": b"".join(LINES.splitlines(keepends=True)[200 * number : 200 * number + 200])
        for number in (2, 0, 1)
    }
    put(
        parts
        | {
            "data/README.md": b"about",
            "data/.part-3.jsonl.swp": b"x",
            "data/.hidden.csv": b"x",
            "data/more/part-4.jsonl": LINES,
        }
    )
    for dataset in ("data", "data/", "./data", "data/*.jsonl", "data/part-[0-9].jsonl", os.path.abspath("data")):
        rows = list(read_rows(dataset))
        assert [row.columns for row in rows] == ROWS
        assert [row.number for row in rows] == list(range(600))
    assert rows[200].where == os.path.abspath("data/part-1.jsonl") + ":1"
    assert list(read_rows("data/*.jsonl"))[200].where == "data/part-1.jsonl:1"
    assert columns_of("data/*.jsonl[199:401]") == ROWS[199:401]
    assert columns_of("data[199:401]") == ROWS[199:401]
    assert columns_of("data/part-[01].jsonl") == ROWS[:400]


def test_an_existing_path_is_never_a_pattern_or_a_slice():
    put({"a[:2].jsonl": LINES, "a*.jsonl": LINES, "b.jsonl[:2]/x.jsonl": LINES, "b.jsonl": b"{}"})
    assert len(columns_of("a[:2].jsonl")) == len(columns_of("a*.jsonl")) == len(columns_of("b.jsonl[:2]")) == 600


def test_names_that_hold_one_split_only():
    put({"d/train_prefs-0.jsonl": LINES, "d/train_prefs-1.jsonl": LINES, "d/contest-training.jsonl": LINES})
    assert columns_of("d") == ROWS * 3


def test_packed_and_plain_files_of_one_kind_go_together():
    put({"d/a.jsonl": LINES, "d/b.jsonl.gz": gzip.compress(LINES), "d/c.ndjson.zst": zst(LINES)})
    assert columns_of("d") == ROWS * 3


def test_a_folder_that_datasets_saved():
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk("saved", num_shards=3)
    assert columns_of("saved") == ROWS
    assert columns_of("saved[199:401]") == ROWS[199:401]
    assert next(read_rows("saved")).where == "saved/data-00000-of-00003.arrow row 0"
    reordered = whole.select(range(599, -1, -1))
    datasets.DatasetDict(test=whole.select(range(5)), train=reordered).save_to_disk("several")
    assert columns_of("several") == columns_of("several:train") == ROWS[::-1]
    assert columns_of("several:test") == ROWS[:5]
    assert columns_of("several:test[1:3]") == ROWS[1:3]


def test_slices_of_a_hub_name(folder, monkeypatch):
    put(
        {
            f"hub/data/{split}-00000-of-00001.parquet": parquet(rows)
            for split, rows in {"train": ROWS, "test": ROWS[:9]}.items()
        }
    )
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name: load({"org/name": str(folder / "hub")}[name]))
    everything = list(read_rows("org/name"))
    assert [row.columns for row in everything] == ROWS
    assert list(read_rows("org/name[100:200]")) == everything[100:200]
    assert [row.where for row in read_rows("org/name:test[7:20]")] == ["org/name:test row 7", "org/name:test row 8"]
    assert len({dataset_hash(name) for name in ("org/name", "org/name:test", "org/name[:9]", "org/name[1:9]")}) == 4
    with pytest.raises(SepoError, match=r"^org/name:test\[9:\]: no rows$"):
        columns_of("org/name:test[9:]")


def test_the_hash_of_several_files_covers_names_contents_and_order():
    put({"d/a.jsonl": LINES, "d/b.jsonl": LINES[:100]})
    put({"moved/a.jsonl": LINES, "moved/b.jsonl": LINES[:100]})
    put({"renamed/b.jsonl": LINES, "renamed/a.jsonl": LINES[:100]})
    put({"other/a.jsonl": LINES, "other/b.jsonl": LINES[:99] + b" "})
    put({"same-order/a.jsonl": LINES, "same-order/c.jsonl": LINES[:100]})
    assert dataset_hash("same-order") != dataset_hash("d")
    assert dataset_hash("d") == dataset_hash("moved") == dataset_hash("d/*.jsonl")
    assert len({dataset_hash(name) for name in ("d", "renamed", "other", "d/a.jsonl")}) == 4


def test_a_slice_enters_the_hash():
    put({"a.jsonl": LINES})
    names = ["a.jsonl", "a.jsonl[:10]", "a.jsonl[:11]", "a.jsonl[1:10]", "a.jsonl[10:]"]
    assert len({dataset_hash(name) for name in names}) == 5
    assert dataset_hash("a.jsonl[:]") == dataset_hash("a.jsonl") == "sha256:" + hashlib.sha256(LINES).hexdigest()
    assert dataset_hash("a.jsonl[0:10]") == dataset_hash("a.jsonl[:10]")


FAULTS = {
    "arrow cut between batches": ({"a.arrow": arrow()[:-8]}, "a.arrow", "a.arrow: damaged Arrow data: the stream ends too early", DAMAGED_HINT),
    "cut arrow file": ({"a.arrow": arrow(stream=False)[:-9]}, "a.arrow", "a.arrow: damaged Arrow data: ", DAMAGED_HINT),
    "arrow with wrong offsets": ({"a.arrow": arrow([{"a": "one"}, {"a": "three"}]).replace(b"\x03\0\0\0\x08\0\0\0", b"\x09\0\0\0\x08\0\0\0")}, "a.arrow", "a.arrow: damaged Arrow data: ", DAMAGED_HINT),
    "text after a quote": ({"a.csv": b'a,b\nx,y\n"x" z,y\n'}, "a.csv", "a.csv:3: broken CSV: ", CSV_HINT),
    "no name": ({"a.csv": b"a,,b\n1,2,3\n"}, "a.csv", "a.csv:1: a column has no name", HEADER_HINT),
    "empty CSV": ({"a.csv": b""}, "a.csv", "a.csv: no rows", "give a data set with at least one row"),
    "empty folder": ({"d/README.md": b"x"}, "d", "d: no data file in this folder", "data files are .jsonl, .json, .csv or .tsv (each may end in .gz or .zst), .parquet or .arrow"),
    "two kinds": ({"d/a.jsonl": LINES, "d/b.csv": CSV}, "d", "d holds files of two kinds: a.jsonl is JSON Lines, b.csv is CSV", "choose by a pattern, such as '*.jsonl'"),
    "two splits": ({"d/train-0.jsonl": LINES, "d/test-0.jsonl": LINES}, "d", "d holds several splits: test, train", "name a file, such as d/train-0.jsonl, or choose by a pattern"),
    "two kinds of training rows": ({f"d/{split}-00000-of-00001.jsonl": LINES for split in ("train_sft", "train_prefs", "test_sft")}, "d", "d holds several splits: test_sft, train_prefs, train_sft", "name a file, such as d/train_prefs-00000-of-00001.jsonl, or choose by a pattern"),
    "a kind nobody reads": ({"d/a.txt": b"x"}, "d/*.txt", "d/a.txt: unknown kind of file", "convert it to .jsonl, .json, .csv or .tsv (each may end in .gz or .zst), .parquet or .arrow"),
    "no match": ({"d/a.jsonl": LINES}, "d/*.csv", "d/*.csv: no file matches", "check the pattern; quote it, or the shell expands it"),
    "late fault in a folder": ({"d/a.jsonl": LINES, "d/b.jsonl": b"{}\n{"}, "d", "d/b.jsonl:2: broken JSON: ", "each line is one JSON object; a .json file may also be a list of objects"),
    "split of a plain folder": ({"d/a.jsonl": LINES}, "d:train", "d has no splits, so no train", "give d, or a file in it"),
    "lost shard": ({"d/state.json": b'{"_data_files": [{"filename": "x.arrow"}]}'}, "d", "d: x.arrow is missing", "write the folder again, or copy all of it"),
    "broken state": ({"d/state.json": b"{"}, "d", "d: the folder cannot be read: Expecting property name", "check its permissions; if `datasets` wrote it, write it again"),
    "unknown split": ({"d/dataset_dict.json": b'{"splits": ["even", "odd"]}'}, "d:train", "d has no split train", "choose one: d:even, d:odd"),
    "several splits": ({"d/dataset_dict.json": b'{"splits": ["even", "odd"]}'}, "d", "d has several splits, and none is train_prefs or train", "choose one: d:even, d:odd"),
    "one number": ({"a.jsonl": LINES}, "a.jsonl[5]", "a.jsonl[5]: [5] is no slice of rows", SLICE_HINT),
    "a step": ({"a.jsonl": LINES}, "a.jsonl[1:9:2]", "a.jsonl[1:9:2]: [1:9:2] is no slice of rows", SLICE_HINT),
    "from the end": ({"a.jsonl": LINES}, "a.jsonl[-5:]", "a.jsonl[-5:]: [-5:] is no slice of rows", SLICE_HINT),
    "percent": ({}, "org/name:train[:10%]", "org/name:train[:10%]: [:10%] is no slice of rows", SLICE_HINT),
    "words": ({"a.jsonl": LINES}, "a.jsonl[]", "a.jsonl[]: [] is no slice of rows", SLICE_HINT),
    "backwards": ({"a.jsonl": LINES}, "a.jsonl[20:10]", "a.jsonl[20:10]: the slice [20:10] holds no row", NO_ROW_HINT),
    "empty slice": ({"a.jsonl": LINES}, "a.jsonl[:0]", "a.jsonl[:0]: the slice [:0] holds no row", NO_ROW_HINT),
    "behind the end": ({"a.jsonl": LINES}, "a.jsonl[600:]", "a.jsonl[600:]: no rows", "give a data set with at least one row"),
    "slice of nothing": ({}, "gone.jsonl[:9]", "gone.jsonl: no such file", "check the path; a data set on the hub is org/name[:split]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_that_cannot_be_trusted_stops_the_run(fault):
    files, dataset, message, hint = FAULTS[fault]
    put(files)
    with pytest.raises(SepoError) as caught:
        columns_of(dataset)
    assert caught.value.hint == hint
    assert "\n" not in caught.value.message
    # The end of a message that comes from Python or Arrow may change with their versions.
    assert caught.value.message.startswith(message)
    if not message.endswith(": ") and "JSON" not in message:
        assert caught.value.message == message or "Expecting" in message


NOISE = [{"text": os.urandom(500).hex()} for _ in range(3000)]
NOISE_LINES = "".join(json.dumps(row) + "\n" for row in NOISE).encode()
CUT = {
    "a.jsonl": NOISE_LINES + b"{",
    "a.jsonl.gz": gzip.compress(NOISE_LINES)[:-9],
    "a.jsonl.zst": zst(NOISE_LINES)[:-9],
    "a.csv": b"text\n" + "".join(f"{row['text']}\n" for row in NOISE).encode() + b'"x\n',
    "a.arrow": arrow(NOISE).replace(NOISE[-1]["text"].encode(), b"\xff" * 1000),
}


@pytest.mark.parametrize("name", CUT)
def test_reading_streams(name):
    """The first rows come before the fault in the last part of the file is met."""
    put({name: CUT[name]})
    rows = read_rows(name)
    assert [next(rows).columns for _ in range(2000)] == NOISE[:2000]
    with pytest.raises(SepoError):
        list(rows)
