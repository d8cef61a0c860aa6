"""`--strict` holds a finished run to what it asks of a new one: no row was dropped."""

import pytest

from tests.conftest import word_rows, write_lines
from tests.faults.harness import assert_one_line, outcome, unharmed

SAME = {"prompt": "what?", "chosen": "It is", "rejected": "It is"}


@pytest.mark.parametrize("command", ["score", "train-oracle", "evaluate"])
def test_a_finished_run_that_dropped_rows_is_refused(world, tmp_path, command):
    write_lines(tmp_path / "pairs.jsonl", [*word_rows(8), SAME])
    one, other = world / "oracle/reference", world / "oracle/oracle"
    given = {
        "score": ("--oracle-model", other, "--reference-model", one, "--output-dir", tmp_path / "out"),
        "train-oracle": ("--model", one, "--sft-epochs", 0, "--eval-fraction", 0, "--output-dir", tmp_path / "out"),
        "evaluate": ("--model", one, "--samples", 0, "--output", tmp_path / "out.json"),
    }[command]
    run = (command, *given, "--dataset", tmp_path / "pairs.jsonl")
    assert outcome(*run).code == 0
    assert "nothing to do" in outcome(*run).out
    with unharmed(tmp_path):
        assert "1 of 9 rows" in assert_one_line(outcome(*run, "--strict"))
