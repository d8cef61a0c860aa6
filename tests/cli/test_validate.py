"""`sepo validate` as a program: what stands on stdout, and what it ends with."""

import json

import pytest

from tests.conftest import word_rows, write_lines

SAME = {"prompt": "what?", "chosen": "It is", "rejected": "It is"}


@pytest.fixture
def run(sepo, chat_folder, tmp_path):
    def run(rows, *options):
        dataset = write_lines(tmp_path / "pairs.jsonl", rows)
        return sepo("validate", "--model", chat_folder, "--dataset", dataset, "--max-length", 128, *options)

    return run


def test_a_good_data_set(run, tmp_path):
    code, out, err = run(word_rows(30))
    assert code == 0
    assert out.startswith(f"{tmp_path}/pairs.jsonl for ")
    for words in ("prompt and answers as text", "30 read = 30 kept + 0 dropped", "Row 0 as tokens", "| train-policy |"):
        assert words in out
    assert "error" not in err


def test_json_is_all_of_stdout(run):
    code, out, _ = run(word_rows(30), "--json")
    assert code == 0
    assert json.loads(out)["rows"]["kept"] == 30
    assert out.count("\n") == 1


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_nothing_usable_is_told_and_then_an_error(run, option):
    code, out, err = run([SAME, SAME], *option)
    assert code == 1
    error, hint = err.splitlines()[-2:]
    assert error.endswith("no pair is left: 2 rows = 0 kept + 2 dropped (2 chosen equals rejected)")
    assert error.startswith("error: ")
    assert hint.startswith("hint:  ")
    if option:
        assert json.loads(out)["rows"] == {
            "read": 2, "kept": 0, "truncated": 0,
            "dropped": {"chosen equals rejected": {"count": 2, "examples": ["row 0", "row 1"]}},
        }  # fmt: skip
    else:
        assert "| chosen equals rejected | 2 | 100.0% | row 0, row 1 |" in out
