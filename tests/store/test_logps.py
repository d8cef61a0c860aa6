import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.store.logps import FILE, read_logps, write_logps
from stages.types import PairLogps, content_hash
from tests.conftest import random_pairs, token_pair


def logps_of(pair):
    return PairLogps(
        -np.arange(1, len(pair.chosen_ids) + 1, dtype=np.float32), np.full(len(pair.rejected_ids), -0.5, np.float32)
    )


def test_a_pair_is_found_by_its_ids_whatever_its_number(tmp_path):
    pairs = random_pairs(30, 50)
    write_logps(tmp_path, pairs, map(logps_of, pairs), "sha256:m")
    known = read_logps(tmp_path, "sha256:m")
    assert len(known) == 30
    for pair in pairs[::-1]:
        found = known.find(pair._replace(pair_id=99))
        assert found.chosen.tolist() == logps_of(pair).chosen.tolist()
        assert found.rejected.tolist() == logps_of(pair).rejected.tolist()


def test_any_other_pair_is_not_found(tmp_path):
    pair = token_pair(0, [1, 2], [3, 4], [5])
    write_logps(tmp_path, [pair], [logps_of(pair)], "sha256:m")
    known = read_logps(tmp_path, "sha256:m")
    for other in (
        [[1], [2, 3, 4], [5]],
        [[1, 2], [3], [4, 5]],
        [[1, 2], [5], [3, 4]],
        [[1, 2], [3, 4], [6]],
        [[0, 2], [3, 4], [5]],
    ):
        assert known.find(token_pair(0, *other)) is None


def test_of_another_model_or_damaged_nothing_is_known(tmp_path):
    pair = token_pair(0, [1], [2], [3])
    assert read_logps(tmp_path, "sha256:m") is None
    write_logps(tmp_path, [pair], [logps_of(pair)], "sha256:m")
    assert read_logps(tmp_path, "sha256:n") is None
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[:-9])
    assert read_logps(tmp_path, "sha256:m") is None


def test_every_flipped_bit_is_found(tmp_path):
    pairs = random_pairs(30, 50)
    write_logps(tmp_path, pairs, map(logps_of, pairs), "sha256:m")
    data = (tmp_path / FILE).read_bytes()
    assert len(pq.read_table(pa.BufferReader(data))) == 30, "whoever reads Parquet reads it"
    assert read_logps(tmp_path, "sha256:m") is not None
    for at in range(0, len(data), 3):
        (tmp_path / FILE).write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        assert read_logps(tmp_path, "sha256:m") is None, at
    for other in (data[:-1], data + b"x", data[:40] + data[80:], b"", b"PAR1", data[-8:]):
        (tmp_path / FILE).write_bytes(other)
        assert read_logps(tmp_path, "sha256:m") is None


def test_the_hash_knows_where_parts_end():
    assert content_hash(token_pair(0, [1, 2], [3], [4])) != content_hash(token_pair(0, [1], [2, 3], [4]))
    assert content_hash(token_pair(0, [1], [2], [3])) == content_hash(token_pair(7, [1], [2], [3]))
