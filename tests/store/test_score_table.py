"""Scored pairs and examples that lie in a file: the same as in memory, and nothing of them stays there."""

import gc
import json

import numpy as np
import pytest

from stages.errors import SepoError
from stages.method.examples import ExampleCounts, join
from stages.method.selection import Selection
from stages.reporting import Quiet
from stages.store.example_table import ExampleTable, write_examples
from stages.store.place import place_of
from stages.store.score_table import ScoreTable, write_score_table
from stages.store.scores import Scores
from stages.store.shards import write_shard
from stages.types import Example, PairLogps, PairWeights, PerToken, ReferenceSums, ScoredPair, longest
from tests.conftest import keep_what_is_loaded, random_pairs

PAIRS = random_pairs(21, 50)
LIMIT = sorted(map(longest, PAIRS))[14]


def per_token(pair, rng):
    return [rng.normal(size=len(ids)).astype(np.float32) for ids in pair.parts[1:]]


def scored(pair, *, referenced=True):
    rng = np.random.default_rng(pair.pair_id)
    reference = PairLogps(*per_token(pair, rng)) if referenced else None
    return ScoredPair(pair, PairLogps(*per_token(pair, rng)), reference)


@pytest.fixture(autouse=True)
def four_rows_in_memory(monkeypatch):
    for module in ("stages.store.shards", "stages.store.example_table"):
        monkeypatch.setattr(f"{module}.ROWS_IN_MEMORY", 4)


def table_of(folder, rows, max_length=10_000):
    """Rows in shards of 9, as a table."""
    (folder / "scores").mkdir(parents=True)
    names = [f"scores-{number}" for number in range(0, len(rows), 9)]
    for number, name in enumerate(names):
        write_shard(place_of(folder / "scores"), name, rows[9 * number :][:9], "f", "t")
    manifest = {"fingerprint": "f", "counts": {"kept": len(rows)}, "tokenizer": {"vocabulary": "t"}}
    write_score_table(Scores(place_of(folder / "scores"), manifest, names), folder / "rows", max_length, Quiet())
    return ScoreTable(folder / "rows")


def as_lists(value):
    """A nested tuple of arrays, to be compared."""
    return json.loads(json.dumps(value, default=lambda array: [str(array.dtype), array.tolist()]))


def test_rows_are_those_of_the_shards_that_are_short_enough(tmp_path):
    rows = [scored(pair, referenced=pair.pair_id % 3 > 0) for pair in PAIRS]
    table = table_of(tmp_path, rows, LIMIT)
    kept = [row for row in rows if longest(row.pair) <= LIMIT]
    assert 10 < len(kept) < 21
    assert (len(table), table.too_long) == (len(kept), 21 - len(kept))
    for found in (list(table), [table[index] for index in range(len(table))], table[:], [*table.map(lambda row: row)]):
        assert as_lists(found) == as_lists(kept)
    assert as_lists(table[-1]) == as_lists(kept[-1])
    assert as_lists([*table.pick(np.array([5, 2, 5]))]) == as_lists([kept[5], kept[2], kept[5]])
    with pytest.raises(IndexError):
        table[len(kept)]
    assert table.highest_id == max(ids.max() for row in kept for ids in row.pair.parts)
    assert not table.referenced
    assert table_of(tmp_path / "all", [scored(pair) for pair in PAIRS]).referenced


def test_pairs_that_are_all_too_long_are_refused(tmp_path):
    shortest_last = [scored(pair) for pair in sorted(PAIRS, key=longest, reverse=True)]
    assert len(table_of(tmp_path / "some", shortest_last, longest(shortest_last[-1].pair))) == 1
    with pytest.raises(SepoError, match="all 21 pairs are longer than 1 tokens"):
        table_of(tmp_path, [scored(pair) for pair in PAIRS], 1)


@pytest.mark.parametrize("every", [False, True])
def test_examples_are_what_is_joined(every, tmp_path):
    rows = [scored(pair) for pair in PAIRS]
    weights = [PairWeights(*(np.arange(len(side), dtype=np.float32) % 3 for side in row.scores)) for row in rows]
    table = table_of(tmp_path, rows)
    counts = ExampleCounts(alone=False)
    joined = join(table, Selection(weights), [row.reference for row in rows], counts, per_token=every)
    write_examples(tmp_path / "examples", joined, summary := {})
    assert summary == {}
    expected = []
    for row, pair in zip(rows, weights, strict=True):
        sums = [float((w.astype(np.float64) * side).sum()) for w, side in zip(pair, row.reference, strict=True)]
        tokens = PerToken(row.reference, row.scores) if every else None
        expected.append(Example(row.pair, pair, ReferenceSums(*sums), tokens))
    expected = [each for each in expected if all(side.any() for side in each.weights)]
    assert 5 < len(expected) < 21, "of a single token the weight is 0"
    examples = ExampleTable(tmp_path / "examples", table)
    assert as_lists([*examples]) == as_lists(expected)
    without = join(table, Selection(weights), None, ExampleCounts(alone=False))
    write_examples(tmp_path / "without", without, {"a": 1})
    alone = ExampleTable(tmp_path / "without", table)
    assert as_lists([*alone]) == as_lists([each._replace(reference=None, per_token=None) for each in expected])
    assert alone.summary == {"a": 1}


def alive(kind):
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


def test_what_was_looked_at_does_not_stay(tmp_path):
    keep_what_is_loaded()
    before = alive(ScoredPair)
    table = table_of(tmp_path, [scored(pair) for pair in PAIRS])
    write_examples(tmp_path / "examples", join(table, Selection(
        PairWeights(*map(np.ones_like, row.scores)) for row in table), None, ExampleCounts(alone=False)), {})  # fmt: skip
    examples = ExampleTable(tmp_path / "examples", table)
    most = 0
    for row, example in zip(table, examples, strict=True):
        assert row.pair.pair_id == example.pair.pair_id
        most = max(most, alive(ScoredPair) - before)
    assert most <= 4 + 1, "a block, and the row of the example"
    del row, example
    assert alive(ScoredPair) == before
    view = table[3].pair.chosen_ids
    assert not view.flags.owndata
    assert not view.flags.writeable


def test_a_file_that_another_host_does_not_see_is_told_in_one_line(tmp_path):
    with pytest.raises(SepoError, match="cannot read") as told:
        ScoreTable(tmp_path / "rows")
    assert "on a disk that all processes share" in told.value.hint
