"""The harness sees what it is there to see."""

import time

import pytest
import typer

from sepo_cli import main as program
from tests.faults.harness import Outcome, assert_can_go_on, assert_one_line, outcome, unharmed


def test_a_mistake_is_one_line(tmp_path):
    message = assert_one_line(outcome("validate", "--model", tmp_path / "none", "--dataset", "none.jsonl"))
    assert str(tmp_path / "none") in message


@pytest.mark.parametrize(
    "found",
    [
        Outcome(0, "", "error: no\nhint:  do that\n"),
        Outcome(1, "", "Traceback (most recent call last)\nerror: no\nhint:  do that\n"),
        Outcome(1, "", "error: no\n"),
        Outcome(1, "", "error: no\nhint:  \n"),
        Outcome(1, "", "error: no\nand more\nhint:  do that\n"),
        Outcome(1, "", "error: no\nerror: no\nhint:  do that\n"),
        Outcome(134, "", "error: no\nhint:  do that\n"),
    ],
)
def test_anything_else_is_no_line(found):
    with pytest.raises((AssertionError, IndexError)):
        assert_one_line(found)


@pytest.mark.parametrize(
    ("fault", "said"), [(lambda: 1 / 0, "ZeroDivisionError"), (lambda: time.sleep(9), "TooSlowError")]
)
def test_a_bug_and_a_run_without_end_are_tracebacks(monkeypatch, fault, said):
    app = typer.Typer()
    app.command()(fault)
    monkeypatch.setattr(program, "app", app)
    found = outcome(seconds=0.1)
    assert "Traceback" in found.err
    assert said in found.err


def test_what_was_harmed_is_seen(tmp_path):
    (tmp_path / "data").write_text("years")
    with pytest.raises(AssertionError), unharmed(tmp_path):
        (tmp_path / "data").write_text("gone")
    with pytest.raises(AssertionError):
        assert_can_go_on(tmp_path)
    assert_can_go_on(tmp_path / "none")
