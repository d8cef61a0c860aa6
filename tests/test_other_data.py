"""Out of distribution: an oracle of one data set scores another one."""

import json

import numpy as np

from stages.store.scores import open_scores
from tests.conftest import word_rows, write_lines
from tests.world import run_policy, run_score


def test_an_oracle_of_one_data_set_scores_another(world, chat_folder, tmp_path):
    """Half of the rows are the oracle's own under other numbers: what is known of a pair is known by its ids alone."""
    own = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    data = write_lines(tmp_path / "others.jsonl", [*word_rows(12, seed=7), *own[20:30]])
    run_score(world, dataset=data, output_dir=str(tmp_path / "scores"))
    apart = {"oracle_model": str(world / "oracle/oracle"), "reference_model": str(world / "oracle/reference")}
    run_score(world, dataset=data, output_dir=str(tmp_path / "apart"), oracle=None, **apart)
    known, anew = (list(open_scores(tmp_path / name).rows()) for name in ("scores", "apart"))
    assert [row.pair.pair_id for row in known] == list(range(22))
    for one, other in zip(known, anew, strict=True):
        np.testing.assert_array_equal(one.pair.chosen_ids, other.pair.chosen_ids)
        np.testing.assert_allclose(one.scores.chosen, other.scores.chosen, atol=1e-5)
        np.testing.assert_allclose(one.scores.rejected, other.scores.rejected, atol=1e-5)
    assert max(np.abs(row.scores.chosen).max() for row in known[:12]) > 0.01
    run_policy(tmp_path, chat_folder, scores_dir=str(tmp_path / "scores"))
    assert json.loads((tmp_path / "policy/manifest.json").read_text())["counts"]["kept"] == 22
