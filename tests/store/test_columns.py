"""Shards as flat columns: what the row reader takes or refuses, with the same words, many times quicker."""

import numpy as np
import pyarrow as pa
import pytest

from stages.errors import SepoError
from stages.store.scores import open_scores
from stages.types import SIDES
from tests.store.test_foreign_shards import GOOD, IDS, STRANGE, column, folder_of, later, lists

LOGPS = {"chosen_reference_logps": [[-1.0, -2.0], None], "rejected_reference_logps": [[-3.0], None]}
WEIGHTS = {"chosen_weights": [[0.0, 1.0], [2.0]], "rejected_weights": [[1.0], [0.5, 0.5]]}
FINE = {
    "six columns": pa.table(GOOD),
    "wide ids": column("chosen_ids", lists(IDS, pa.uint8(), pa.large_list)),
    "narrow scores": column("chosen_scores", lists(GOOD["chosen_scores"], pa.float16())),
    "a row without logps": pa.table(GOOD | LOGPS),
    "logps of one side": pa.table(GOOD | {"chosen_reference_logps": [[-1.0, -2.0], [-3.0]]}),
    "null logps": pa.table(GOOD | {name: pa.nulls(2, pa.list_(pa.float32())) for name in LOGPS}),
    "weights": pa.table(GOOD | WEIGHTS),
    "weights of one row": pa.table(GOOD | {name: [values[0], None] for name, values in WEIGHTS.items()}),
}  # fmt: skip


def plain(row):
    parts = [*row.pair[1:], *row.scores, *(row.reference or ()), *(row.weights or ())]
    return [
        int(row.pair.pair_id),
        [(each.dtype, each.tolist()) for each in parts],
        row.reference is None,
        row.weights is None,
    ]


@pytest.mark.parametrize("name", FINE)
def test_the_columns_are_the_rows(tmp_path, name):
    scores = open_scores(folder_of(tmp_path / "s", later(FINE[name])))
    batches = [*scores.columns()]
    rows = [row for columns in batches for row in columns.rows()]
    assert [*map(plain, rows)] == [*map(plain, scores.rows())]
    assert [columns.start for columns in batches] == [0, 2]
    for side in SIDES:
        found = getattr(batches[1], side)
        assert found.lengths.tolist() == [len(ids) for ids in GOOD[f"{side}_ids"]]
        assert all(values is None or len(values) == len(found.ids) for values in found[:4])


BAD = {
    name: pa.table(GOOD | {"pair_id": [2, 3]} | WEIGHTS | more)
    for name, more in {
        "negative weight": {"chosen_weights": [[0.0, -1.0], [2.0]]},
        "infinite weight": {"rejected_weights": [[1.0], [0.5, np.inf]]},
        "too few weights": {"chosen_weights": [[0.0], [2.0]]},
        "no such weights": {"chosen_weights": [[0.0, 1.0], None]},
        "no prompt": {"prompt_ids": [[1, 2], []]},
        "infinite logps": {"chosen_reference_logps": [[-1.0, -np.inf], [0.0]], "rejected_reference_logps": [[0.0], [0.0, 0.0]]},
    }.items()
} | {"other lengths": column("chosen_scores", lists([[0.5], [2.0, 1.0]], pa.float32()))}  # fmt: skip


@pytest.mark.parametrize("name", [*STRANGE, *BAD])
def test_what_the_row_reader_refuses_is_refused_in_its_words(tmp_path, name):
    table = BAD[name] if name in BAD else STRANGE[name][0]
    folder = folder_of(tmp_path / "s", table if "pair_id" in name else later(table))
    scores = open_scores(folder)._replace(ids_below=50)
    with pytest.raises(SepoError) as by_row:
        [*scores.rows()]
    with pytest.raises(SepoError) as by_column:
        [*scores.columns()]
    assert (by_column.value.message, by_column.value.hint) == (by_row.value.message, by_row.value.hint)


def test_a_count_that_is_not_the_manifests_is_refused(tmp_path):
    scores = open_scores(folder_of(tmp_path / "s", later(pa.table(GOOD))))
    scores.manifest["counts"]["kept"] = 5
    with pytest.raises(SepoError, match="holds 4 pairs, its manifest says 5"):
        [*scores.columns()]
