"""Log-probs that are computed once: what a kill in the middle of them costs, and what it must not change."""

import numpy as np
import pytest
from accelerate import Accelerator

from stages.models import references
from stages.models.references import Frozen, RunContext, WantedLogps, kept_logps, logps_of_rows
from stages.reporting import Quiet
from stages.store.place import place_of
from stages.store.score_table import ScoreTable, write_score_table
from stages.store.scores import Scores
from stages.store.shards import write_shard
from stages.types import PairLogps, ScoredPair
from tests import reference
from tests.conftest import random_pairs, tiny_llama
from tests.training.fits import Killed

FILE = "logps.parquet"
# Two pairs of one content stand in different parts.
PAIRS = [*random_pairs(20, 50), random_pairs(20, 50)[3]._replace(pair_id=20)]


class Watched(Quiet):
    """Counts the pairs that are computed; killed behind so many."""

    def __init__(self, most=1000):
        super().__init__()
        self.most, self.computed, self.totals, self.said = most, 0, [], []

    def say(self, text):
        self.said.append(text)

    def task(self, title, total, unit):
        self.totals.append(total)
        return super().task(title, total, unit)

    def advance(self, amount=1, figures=None):
        if self.computed >= self.most:
            raise Killed
        self.computed += amount


@pytest.fixture(autouse=True)
def parts_of_eight(monkeypatch):
    monkeypatch.setattr(references, "PART_PAIRS", 8)


def keep(folder, reporter=None, *, model="sha256:one", pairs=PAIRS, load=lambda: tiny_llama(50)):
    folder.mkdir(exist_ok=True)
    around = RunContext(Accelerator(cpu=True), folder, 40, reporter or Quiet())
    return kept_logps(WantedLogps(Frozen("m", folder, model), load, pairs, around, FILE, "m"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def part(number):
    return f".{FILE}.0000{number}.part"


def test_they_are_those_of_every_pair_in_its_place(tmp_path):
    found = keep(tmp_path, first := Watched())
    model = tiny_llama(50)
    for pair, logps in zip(PAIRS, found, strict=True):
        for side in ("chosen", "rejected"):
            expected = reference.response_logps(model, pair.prompt_ids, getattr(pair, f"{side}_ids"))
            np.testing.assert_allclose(getattr(logps, side), expected, atol=2e-5)
    assert (first.totals, first.computed) == ([21], 21)
    assert names(tmp_path) == [FILE]
    again = Watched()
    keep(tmp_path, again, load=None)
    assert again.totals == []


@pytest.mark.parametrize(("most", "parts"), [(1, 0), (8, 1), (17, 2)])
def test_a_kill_costs_one_part_and_changes_no_bit(tmp_path, most, parts):
    keep(tmp_path / "whole")
    with pytest.raises(Killed):
        keep(tmp_path / "killed", Watched(most))
    assert names(tmp_path / "killed") == [part(number) for number in range(parts)]
    second = Watched()
    keep(tmp_path / "killed", second)
    assert (second.totals, second.computed) == ([21 - 8 * parts], 21 - 8 * parts)
    assert second.said[: bool(parts)] == [f"m: {parts} of 3 parts are there already"][: bool(parts)]
    assert names(tmp_path / "killed") == [FILE]
    assert (tmp_path / "killed" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


def test_a_part_that_is_damaged_or_of_another_model_or_of_other_pairs_is_made_again(tmp_path):
    keep(tmp_path / "whole")
    with pytest.raises(Killed):
        keep(tmp_path / "p", Watched(17))
    torn = tmp_path / "p" / part(0)
    torn.write_bytes(torn.read_bytes()[:-50])
    for total, options in ((13, {}), (21, {"model": "sha256:two"}), (21, {"pairs": PAIRS[::-1]})):
        left = {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()}
        keep(tmp_path / "p", reporter := Watched(), **options)
        assert reporter.totals == [total]
        if not options:
            assert (tmp_path / "p" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
        (tmp_path / "p" / FILE).unlink()
        for name, data in left.items():
            (tmp_path / "p" / name).write_bytes(data)


def test_parts_that_a_kill_left_beside_the_whole_are_removed(tmp_path):
    keep(tmp_path)
    (tmp_path / part(2)).write_bytes(b"")
    keep(tmp_path, load=None)
    assert names(tmp_path) == [FILE]


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({"precision": "float32"}, True),
        ({"precision": "medium"}, False),
        ({"precision": "float32", "quantize": "4bit"}, False),
    ],
)
def test_what_a_scorer_rounded_is_not_taken_for_the_model_s_own(settings, taken, tmp_path):
    """The shards say 0 of every token."""
    zeros = [PairLogps(*(np.zeros(len(ids), np.float32) for ids in pair.parts[1:])) for pair in PAIRS]
    place = place_of(tmp_path)
    write_shard(place, "s", [ScoredPair(pair, zero, zero) for pair, zero in zip(PAIRS, zeros, strict=True)], "f", "t")
    made = {"fingerprint": "f", "counts": {"kept": len(PAIRS)}, "tokenizer": {"vocabulary": "t"}}
    scores = Scores(place, made | {"settings": settings, "inputs": {"reference": "sha256:one"}}, ["s"])
    write_score_table(scores, tmp_path / "rows", 1000, Quiet())
    rows = ScoreTable(tmp_path / "rows")
    model = Frozen("a model", tmp_path, "sha256:one")
    context = RunContext(Accelerator(cpu=True), tmp_path, 60, Quiet())
    found = logps_of_rows(model, lambda: tiny_llama(50), rows, scores, context, file=FILE)
    assert all(not side.any() for each in found for side in each) == taken
