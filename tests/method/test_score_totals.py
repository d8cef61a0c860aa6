"""Totals of scores: right, the same to the bit in any order and division, and after a file."""

import random

import numpy as np
import pytest

from stages.method import score_totals
from stages.method.score_totals import ScoreTotals
from stages.store.place import place_of
from stages.store.worker_file import WorkerFile, read_worker_files, write_worker_file
from stages.types import PairLogps, ScoredPair, TokenPair

SIZE = 30


def shards_of(count, rows, seed=0):
    """Scores between 1e-7 and 100 nats: floats of such sizes do not add up the same in every order."""
    rng = np.random.default_rng(seed)

    def side():
        length = int(rng.integers(1, 9))
        sizes = 10.0 ** rng.uniform(-7, 2, length) * rng.choice([-1, 1], length)
        return rng.integers(0, SIZE, length).astype(np.int32), sizes.astype(np.float32)

    def row(number):
        (chosen, ours), (rejected, theirs) = side(), side()
        return ScoredPair(TokenPair(number, np.ones(1, np.int32), chosen, rejected), PairLogps(ours, theirs), None)

    return {f"s-{shard}": [row(shard * rows + number) for number in range(rows)] for shard in range(count)}


def tokens(rows):
    return sum(len(side) for row in rows for side in row.scores)


def totals_of(shards, names, kept=()):
    found = ScoreTotals(SIZE, kept)
    starts = dict(zip(shards, np.cumsum([0, *map(tokens, shards.values())]).tolist(), strict=False))
    for name in names:
        found.add(name, shards[name], starts[name])
    return found


def said(totals):
    return totals.drift(str), totals.accuracy, totals.low, totals.high, totals.spread


def test_every_order_and_division_says_the_same_to_the_bit(monkeypatch):
    """Also of a sample that ends within the third shard."""
    shards = shards_of(12, 9)
    names, chance = list(shards), random.Random(0)
    monkeypatch.setattr(score_totals, "MEDIAN_SAMPLE", sum(tokens(shards[name]) for name in names[:2]) + 20)
    whole = said(totals_of(shards, names))
    for _ in range(40):
        chance.shuffle(names)
        merged = totals_of(shards, names[:5])
        merged.merge(totals_of(shards, names[5:]))
        assert said(merged) == whole


def test_what_is_said_is_that_of_all_tokens(monkeypatch):
    shards = shards_of(3, 25, seed=1)
    rows = [row for some in shards.values() for row in some]
    sides = [side for row in rows for side in row.scores]
    monkeypatch.setattr(score_totals, "MEDIAN_SAMPLE", sum(map(len, sides[:41])) + 1)
    totals = totals_of(shards, shards)
    ids, scores = (np.concatenate(each) for each in ([i for row in rows for i in row.pair.parts[1:]], sides))
    exact, drift = scores.astype(np.float64), totals.drift(str)
    assert drift.median == np.median(np.concatenate(sides[:42]))
    assert totals.spread == pytest.approx(exact.std(), rel=1e-12)
    assert (totals.low, totals.high) == (exact.min(), exact.max())
    counts = [np.bincount(np.concatenate([row.pair.parts[side] for row in rows]), minlength=SIZE) for side in (1, 2)]
    shared = np.argsort(-np.minimum(*counts), kind="stable")[:10]
    means = np.array([exact[ids == each].mean() for each in shared])
    assert drift.shared == pytest.approx(exact[np.isin(ids, shared)].mean(), rel=1e-12)
    assert (drift.worst_id, drift.worst) == (
        shared[np.abs(means).argmax()],
        pytest.approx(means[np.abs(means).argmax()], rel=1e-12),
    )
    preferred = sum(float(row.scores.chosen.sum()) > float(row.scores.rejected.sum()) for row in rows)
    assert totals.accuracy.value == preferred / len(rows)


@pytest.mark.parametrize("kept", [(), (3, 30, 1000)])
def test_what_a_worker_writes_down_is_what_it_knew(tmp_path, kept):
    shards, place = shards_of(3, 20), place_of(tmp_path)
    totals = totals_of(shards, ["s-1", "s-2"], kept)
    checksums = {name: {"sha256": name, "bytes": 1, "rows": 20} for name in ("s-1", "s-2")}
    for name in checksums:
        (tmp_path / name).write_text(name)
    write_worker_file(place, (2, 3), "f", WorkerFile(checksums, totals.as_arrays()), place.states())
    [found] = read_worker_files(place, "f", place.states())
    assert found.checksums == checksums
    merged = ScoreTotals.from_arrays(found.arrays)
    assert {each: [side.tolist() for side in scores] for each, scores in merged.kept.items()} == {
        each: [side.tolist() for side in shards["s-1"][each - 20].scores] for each in kept if each == 30
    }
    merged.merge(totals_of(shards, ["s-0"]))
    assert said(merged) == said(totals_of(shards, shards))
    assert not [*read_worker_files(place, "g", place.states())]
    (tmp_path / "s-1").write_text("other")
    assert not [*read_worker_files(place, "f", place.states())]
