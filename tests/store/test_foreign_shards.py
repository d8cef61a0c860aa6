"""Shards by another hand: what can be read as what is promised is, whatever else is refused by name."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.check import check_scores
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.store.place import place_of
from stages.store.scores import open_scores
from stages.store.shards import shard_name

GOOD = {
    "pair_id": [0, 1],
    "prompt_ids": [[1, 2], [3]],
    "chosen_ids": [[4, 5], [6]],
    "rejected_ids": [[7], [8, 9]],
    "chosen_scores": [[0.5, -1.0], [2.0]],
    "rejected_scores": [[0.25], [0.0, 1.5]],
}
KEYS = {"sepo.format": "1", "sepo.fingerprint": "mine", "sepo.tokenizer": "t"}


def column(name, values):
    """The good table with one column of other values, or of none."""
    table = pa.table(GOOD)
    index = table.schema.get_field_index(name)
    return table.remove_column(index) if values is None else table.set_column(index, name, values)


def lists(values, kind, of=pa.list_):
    return pa.array(values, of(kind))


def folder_of(folder, bad, keys=KEYS, good=GOOD):
    """Two shards, of which the second one is the strange one."""
    folder.mkdir()
    rows = len(bad)
    first = pa.table(good | {"pair_id": [0, 1]}).replace_schema_metadata(KEYS)
    pq.write_table(first, folder / shard_name(0))
    pq.write_table(bad.replace_schema_metadata(keys), folder / shard_name(1))
    manifest = {"format": 1, "stage": "score", "fingerprint": "mine", "files": [shard_name(0), shard_name(1)]}
    manifest |= {"counts": {"kept": 2 + rows}, "tokenizer": {"vocabulary": "t", "size": 50}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def later(table):
    """The table, if it has pair ids, as rows that come after those of the first shard."""
    at = table.schema.get_field_index("pair_id")
    return table.set_column(at, "pair_id", pa.array([2, 3])) if at >= 0 else table


IDS = GOOD["chosen_ids"]
STRANGE = {
    "float ids": (column("chosen_ids", lists([[4.0, 17.5], [6.0]], pa.float64())), "column chosen_ids is list<.*double>, not list<int32>"),
    "whole float ids": (column("prompt_ids", lists([[1.0, 2.0], [3.0]], pa.float32())), "column prompt_ids is list<.*float>, not list<int32>"),
    "bool ids": (column("chosen_ids", lists([[True, False], [True]], pa.bool_())), "column chosen_ids is list<.*bool>"),
    "text ids": (column("chosen_ids", lists([["4", "5"], ["6"]], pa.string())), "column chosen_ids is list<.*string>"),
    "nested ids": (column("chosen_ids", lists([[[4], [5]], [[6]]], pa.list_(pa.int32()))), "column chosen_ids is list<.*list<.*not list<int32>"),
    "ids without lists": (column("chosen_ids", pa.array([4, 6])), "column chosen_ids is int64, not list<int32>"),
    "dictionary ids": (column("chosen_ids", pa.array(["a", "b"]).dictionary_encode()), "column chosen_ids is dictionary<"),
    "fixed lists": (column("chosen_ids", pa.array([[4, 5], [6, 7]], pa.list_(pa.int32(), 2))), r"column chosen_ids is fixed_size_list<.*\[2\], not"),
    "no such token": (column("chosen_ids", lists([[4, 50], [6]], pa.int32())), "pair 2 has the id 50 in chosen_ids, where all are below 50"),
    "beyond int32": (column("rejected_ids", lists([[7], [8, 1 << 32]], pa.int64())), "pair 3 has the id 4,294,967,296 in rejected_ids"),
    "below int32": (column("rejected_ids", lists([[7], [8, -(1 << 32) + 5]], pa.int64())), "pair 3 has a negative id in rejected_ids"),
    "null id": (column("chosen_ids", lists([[4, 5], [None]], pa.int32())), "pair 3 has a null in chosen_ids"),
    "null ids": (column("chosen_ids", lists([[4, 5], None], pa.int32())), "pair 3 has no chosen_ids"),
    "no ids": (column("chosen_ids", None), "has no column chosen_ids"),
    "all null": (column("chosen_scores", pa.nulls(2)), "column chosen_scores is null, not list<float32>"),
    "null score": (column("chosen_scores", lists([[0.5, None], [2.0]], pa.float32())), "pair 2 has a chosen_scores that is not finite, at token 1"),
    "null scores": (column("rejected_scores", lists([None, [0.0, 1.5]], pa.float32())), "pair 2 has no rejected_scores"),
    "bool scores": (column("chosen_scores", lists([[True, False], [True]], pa.bool_())), "column chosen_scores is list<.*bool>, not list<float32>"),
    "huge score": (column("chosen_scores", lists([[0.5, 1e300], [2.0]], pa.float64())), "pair 2 has a chosen_scores that is not finite"),
    "float pair_id": (column("pair_id", pa.array([2.0, 3.0])), "column pair_id is double, not int64"),
    "null pair_id": (column("pair_id", pa.array([2, None])), "pair None has no row number"),
    "negative pair_id": (column("pair_id", pa.array([-2, 3])), "pair -2 has no row number"),
    "huge pair_id": (column("pair_id", pa.array([2, 1 << 63], pa.uint64())), "has no row number"),
    "no pair_id": (column("pair_id", None), "has no column pair_id"),
    "twice": (pa.Table.from_arrays([*pa.table(GOOD).columns, pa.array(IDS)], [*GOOD, "chosen_ids"]), "has 2 columns chosen_ids"),
    "bool weights": (pa.table(GOOD | {"chosen_weights": [[True, True], [False]], "rejected_weights": [[1.0], [1.0, 0.0]]}), "column chosen_weights is list<"),
    "text logps": (pa.table(GOOD | {"chosen_reference_logps": ["a", "b"]}), "column chosen_reference_logps is string"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_none_is_refused_by_name_in_any_shard(tmp_path, name):
    table, said = STRANGE[name]
    folder = folder_of(tmp_path / "s", table if "pair_id" in name else later(table))
    with pytest.raises(SepoError, match=said) as caught:
        list(open_scores(folder)._replace(ids_below=50).rows())
    assert shard_name(1) in caught.value.message
    assert caught.value.hint
    summary = check_scores(place_of(folder), None, Quiet())
    assert summary.failure is not None
    assert any(caught.value.message in found for _, found in summary.tables[0].rows)


def test_where_nothing_was_read_nothing_is_called_sound(tmp_path):
    summary = check_scores(place_of(tmp_path), None, Quiet())
    found = dict(summary.tables[0].rows)
    assert {found[kind] for kind in ("rows", "tokenizer", "scores")} == {"nothing was read"}
    assert summary.failure.message.endswith("has 1 fault")


@pytest.mark.parametrize("key", KEYS)
def test_another_key_is_refused(tmp_path, key):
    folder = folder_of(tmp_path / "s", later(pa.table(GOOD)), KEYS | {key: b"\xff2"})
    with pytest.raises(SepoError, match=r"scores-00001.parquet is of (format|another run|another tokenizer)"):
        list(open_scores(folder).rows())
    assert check_scores(place_of(folder), None, Quiet()).failure is not None


@pytest.mark.parametrize(
    "table",
    [
        pa.table(GOOD),
        column("chosen_ids", lists(IDS, pa.int64())),
        column("chosen_ids", lists(IDS, pa.uint8(), pa.large_list)),
        column("chosen_scores", lists(GOOD["chosen_scores"], pa.float16())),
        column("rejected_scores", lists([[1], [0, 2]], pa.int32())),
        column("pair_id", pa.array([0, 1], pa.int16())),
        pa.table(GOOD | {"note": [{"a": 1}, None]}),
    ],
)
def test_other_widths_are_read_as_what_is_promised(tmp_path, table):
    folder = folder_of(tmp_path / "s", later(table))
    rows = list(open_scores(folder).rows())
    assert [row.pair.pair_id for row in rows] == [0, 1, 2, 3]
    for row, ids in zip(rows, [*IDS, *IDS], strict=True):
        assert row.pair.chosen_ids.tolist() == ids
        assert row.reference is None
        assert {part.dtype for part in row.pair[1:]} == {np.dtype(np.int32)}
        assert {part.dtype for part in row.scores} == {np.dtype(np.float32)}
    assert check_scores(place_of(folder), None, Quiet()).failure is None


def test_a_bound_of_a_model_beside_is_held(tmp_path):
    folder = folder_of(tmp_path / "s", later(pa.table(GOOD)))
    assert check_scores(place_of(folder), ("t", 10), Quiet()).failure is None
    assert check_scores(place_of(folder), ("t", 9), Quiet()).failure is not None


def test_checksums_for_some_shards_alone_are_refused(tmp_path):
    folder = folder_of(tmp_path / "s", later(pa.table(GOOD)))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"] = {shard_name(0): {"sha256": "sha256:x", "bytes": 1, "rows": 2}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SepoError, match=r"has checksums, but none for scores-00001\.parquet"):
        open_scores(folder)


def test_no_flipped_bit_of_an_unsummed_shard_is_a_traceback(tmp_path):
    """A foreign scorer need give no checksums: then a flip may be read, but never as anything but rows."""
    folder = folder_of(tmp_path / "s", later(pa.table(GOOD)))
    data = (folder / shard_name(1)).read_bytes()
    refused = 0
    for at in range(0, len(data), 17):
        (folder / shard_name(1)).write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            list(open_scores(folder).rows())
        except SepoError:
            refused += 1
    assert refused > 10
