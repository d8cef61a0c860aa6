import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import SepoError
from stages.store.manifest import Input
from stages.store.place import place_of
from stages.store.run import open_run
from stages.store.scores import open_scores
from stages.store.shards import SCHEMA, own_shard, read_shard, shard_name, write_shard
from stages.types import PairLogps, ScoredPair
from tests.conftest import random_pairs, token_pair


def scored(pair, seed=0, reference=True):
    rng = np.random.default_rng(seed)

    def values():
        return PairLogps(
            *(rng.normal(size=len(ids)).astype(np.float32) for ids in (pair.chosen_ids, pair.rejected_ids))
        )

    return ScoredPair(pair, values(), values() if reference else None)


def same(ours, theirs):
    parts = [(ours.pair[1:], theirs.pair[1:]), (ours.scores, theirs.scores)]
    if ours.reference or theirs.reference:
        parts.append((ours.reference, theirs.reference))
    assert ours.pair.pair_id == theirs.pair.pair_id
    for left, right in parts:
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


@pytest.mark.parametrize("reference", [True, False])
def test_what_is_written_is_read(tmp_path, reference):
    rows = [scored(pair, pair.pair_id, reference) for pair in random_pairs(9, 50)]
    write_shard(place_of(tmp_path), "s.parquet", rows, "sha256:f", "sha256:t")
    for ours, theirs in zip(rows, read_shard(place_of(tmp_path), "s.parquet", "sha256:f"), strict=True):
        same(ours, theirs)


def test_the_contract_on_disk(tmp_path):
    write_shard(place_of(tmp_path), "s.parquet", [scored(pair) for pair in random_pairs(3, 50)], "sha256:f", "sha256:t")
    table = pq.read_table(tmp_path / "s.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "pair_id": "int64",
        "prompt_ids": "list<element: int32 not null>",
        "chosen_ids": "list<element: int32 not null>",
        "rejected_ids": "list<element: int32 not null>",
        "chosen_scores": "list<element: float not null>",
        "rejected_scores": "list<element: float not null>",
        "chosen_reference_logps": "list<element: float not null>",
        "rejected_reference_logps": "list<element: float not null>",
    }
    keys = (b"sepo.format", b"sepo.fingerprint", b"sepo.tokenizer")
    assert [table.schema.metadata[key] for key in keys] == [b"1", b"sha256:f", b"sha256:t"]
    assert pq.ParquetFile(tmp_path / "s.parquet").metadata.row_group(0).column(1).compression == "ZSTD"


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = [scored(pair) for pair in random_pairs(9, 50)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_shard(place_of(tmp_path / folder), "s", rows, "sha256:f", "sha256:t")
    assert (tmp_path / "a/s").read_bytes() == (tmp_path / "b/s").read_bytes()


GOOD = scored(token_pair(7, [1, 2], [3, 4, 5], [6]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (GOOD._replace(scores=PairLogps(GOOD.scores.chosen[:2], GOOD.scores.rejected)), "3 chosen_ids and 2 chosen_scores"),
        (GOOD._replace(scores=PairLogps(GOOD.scores.chosen, GOOD.scores.chosen)), "1 rejected_ids and 3 rejected_scores"),
        (GOOD._replace(reference=PairLogps(GOOD.scores.chosen, GOOD.scores.chosen)), "1 rejected_ids and 3 rejected_reference_logps"),
        (GOOD._replace(scores=PairLogps(np.array([0, np.nan, 1], np.float32), GOOD.scores.rejected)), "a chosen_scores that is not finite, at token 1"),
        (GOOD._replace(scores=PairLogps(GOOD.scores.chosen, np.array([np.inf], np.float32))), "a rejected_scores that is not finite, at token 0"),
        (GOOD._replace(pair=token_pair(7, [1, -2], [3, 4, 5], [6])), "a negative id in prompt_ids"),
        (GOOD._replace(pair=token_pair(7, [], [3, 4, 5], [6])), "no prompt_ids"),
        (scored(token_pair(7, [1], [3], [])), "no rejected_ids"),
    ],
)  # fmt: skip
def test_a_row_that_contradicts_itself_is_refused_in_both_directions(tmp_path, row, said):
    with pytest.raises(SepoError, match=said) as caught:
        write_shard(place_of(tmp_path), "s.parquet", [GOOD, row], "sha256:f", "sha256:t")
    assert "pair 7" in caught.value.message
    assert not (tmp_path / "s.parquet").exists()
    columns = {
        "pair_id": [7],
        "prompt_ids": [row.pair.prompt_ids],
        "chosen_ids": [row.pair.chosen_ids],
        "rejected_ids": [row.pair.rejected_ids],
        "chosen_scores": [row.scores.chosen],
        "rejected_scores": [row.scores.rejected],
        "chosen_reference_logps": [row.reference.chosen],
        "rejected_reference_logps": [row.reference.rejected],
    }
    foreign = pa.Table.from_pydict(columns, schema=SCHEMA.with_metadata({"sepo.fingerprint": "sha256:f"}))
    pq.write_table(foreign, tmp_path / "foreign.parquet")
    with pytest.raises(SepoError, match=said):
        list(read_shard(place_of(tmp_path), "foreign.parquet", "sha256:f"))


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: b"",
        lambda data: flip(data, 0),
        lambda data: flip(data, len(data) // 3),
        lambda data: flip(data, len(data) - 60),
        lambda data: data + b" ",
    ],
    ids=["truncated", "empty", "magic", "page", "footer", "appended"],
)
def test_a_damaged_shard_is_found_before_and_after_the_end(tmp_path, damage):
    place, path = place_of(tmp_path), tmp_path / "s.parquet"
    write_shard(place, "s.parquet", [scored(pair) for pair in random_pairs(9, 50)], "sha256:f", "sha256:t")
    checksum = own_shard(place, "s.parquet", "sha256:f").checksum
    path.write_bytes(damage(path.read_bytes()))
    assert own_shard(place, "s.parquet", "sha256:f") is None
    with pytest.raises(SepoError, match="is damaged: its checksum is not the manifest's"):
        list(read_shard(place, "s.parquet", "sha256:f", checksum))


def test_a_truncated_shard_without_a_checksum_is_found(tmp_path):
    path = tmp_path / "s.parquet"
    write_shard(place_of(tmp_path), "s.parquet", [scored(pair) for pair in random_pairs(9, 50)], "f", "t")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SepoError, match="cannot read"):
        list(read_shard(place_of(tmp_path), "s.parquet", "f"))


def test_a_whole_shard_in_the_wrong_place_is_none_of_ours(tmp_path):
    place = place_of(tmp_path)
    write_shard(place, "s.parquet", [scored(pair) for pair in random_pairs(9, 50)], "f", "t")
    assert own_shard(place, "s.parquet", "f").checksum["rows"] == 9
    assert own_shard(place, "s.parquet", "g") is None
    (tmp_path / "s.parquet").rename(tmp_path / "t.parquet")
    assert own_shard(place, "s.parquet", "f") is None
    assert own_shard(place, "t.parquet", "f") is None


def test_a_folder_of_shards_is_read_in_order(tmp_path):
    run = open_run(tmp_path / "s", "score", {}, {"dataset": Input("d", "h")}, overwrite=False)
    pairs = random_pairs(5, 50)
    for index in range(3):
        rows = [scored(pair) for pair in pairs[2 * index : 2 * index + 2]]
        write_shard(run.place, shard_name(index), rows, run.fingerprint, "t")
    names = [shard_name(index) for index in range(3)]
    run.finish(files=names, device="cpu", counts={"kept": 5}, tokenizer={"vocabulary": "t"})
    complete = (tmp_path / "s/manifest.json").read_text()
    # Whoever writes it by hand has no checksum of it.
    complete = json.dumps({name: value for name, value in json.loads(complete).items() if name != "checksum"})
    for said, wrong in [("holds 5 pairs, its manifest says 6", '"kept": 6'), ("another tokenizer", None)]:
        text = (
            complete.replace('"kept": 5', wrong)
            if wrong
            else complete.replace('"vocabulary": "t"', '"vocabulary": "u"')
        )
        (tmp_path / "s/manifest.json").write_text(text)
        with pytest.raises(SepoError, match=said):
            list(open_scores(tmp_path / "s").rows())
    (tmp_path / "s/manifest.json").write_text(complete)
    assert [row.pair.pair_id for row in open_scores(tmp_path / "s").rows()] == [0, 1, 2, 3, 4]
    (tmp_path / "s" / shard_name(1)).unlink()
    with pytest.raises(SepoError, match=r"lacks scores-00001\.parquet"):
        open_scores(tmp_path / "s")
