"""Progress: the arithmetic on a clock of our own, lines in a log, bars on a terminal."""

import io

import pytest
from rich.console import Console

from sepo_cli.console import Bars, Lines, figures, make_reporter, print_summary
from stages.reporting import Quiet, Summary, Table


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def console(**options):
    return Console(file=io.StringIO(), highlight=False, width=60, **options)


def test_figures_are_done_rate_and_time_left(clock):
    with Lines(console(), clock).task("dpo", 1000, "steps") as work:
        assert figures(work.row) == "0/1,000 steps, 0:00:00 passed"
        # What a resumed run brings along does not count as speed.
        work.advance(900)
        clock.now += 10
        work.advance(10, {"loss": 0.6})
        work.advance(10)
        assert figures(work.row) == "920/1,000 steps, 2/s, 0:00:10 passed, 0:00:40 left, loss 0.6"


def test_an_unknown_total_has_no_time_left(clock):
    with Lines(console(), clock).task("read", 0, "rows") as work:
        work.advance(1000)
        clock.now += 2
        work.advance(5000)
        assert figures(work.row) == "6,000 rows, 2,500/s, 0:00:02 passed"


def test_a_log_gets_a_line_every_ten_seconds_and_the_last(clock):
    screen = console()
    with Lines(screen, clock).task("score [x]", 40, "pairs") as task:
        for _ in range(40):
            clock.now += 0.7
            task.advance()
    lines = screen.file.getvalue().splitlines()
    assert [line.split(" pairs,")[0] for line in lines] == ["score [x]: 15/40", "score [x]: 30/40", "score [x]: 40/40"]


def test_the_last_line_is_not_printed_twice(clock):
    screen = console()
    with Lines(screen, clock).task("score", 1, "pairs") as task:
        clock.now += 20
        task.advance()
    assert screen.file.getvalue() == "score: 1/1 pairs, 0:00:20 passed\n"


def test_an_error_still_shows_how_far_it_went(clock):
    screen = console()

    def fails():
        with Lines(screen, clock).task("score", 2, "pairs") as task:
            task.advance()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert screen.file.getvalue().startswith("score: 1/2 pairs")


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_texts_are_neither_wrapped_nor_read_as_markup(kind):
    screen = console(force_terminal=kind is Bars, color_system=None)
    text = "runs/[bold]x[/bold] :smile: " + "y" * 100
    kind(screen).say(text)
    kind(screen).warn(text)
    assert screen.file.getvalue() == f"{text}\nwarning: {text}\n"


def test_a_terminal_gets_a_bar_that_ends_full():
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    reporter = Bars(screen)
    with reporter.task("read [x]", 0, "rows") as outer, reporter.task("dpo", 2, "steps") as inner:
        outer.advance(7)
        inner.advance(2, {"loss": 0.5})
        reporter.say("between")
    shown = screen.file.getvalue()
    assert "2/2 steps" in shown
    assert "loss                     0.5  ▁" in shown
    assert "read [x]" in shown
    assert "between" in shown
    assert screen._live_stack == []


def test_warnings_are_yellow_on_a_terminal_that_wants_colours(monkeypatch):
    def warned():
        screen = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
        Bars(screen).warn("look")
        return screen.file.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;33mwarning:\x1b[0m look" in warned()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "33m" not in warned()


@pytest.mark.parametrize(
    ("name", "rank", "silent"), [("RANK", "0", False), ("RANK", "3", True), ("LOCAL_RANK", "1", True)]
)
def test_only_the_first_process_speaks(monkeypatch, capsys, name, rank, silent):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(name, rank)
    assert isinstance(make_reporter(), Quiet if silent else Lines)
    print_summary(Summary("done", []))
    assert capsys.readouterr().out == ("" if silent else "done\n")


SUMMARY = Summary(
    "oracle in runs/[x]",
    [("pairs", "640"), ("held-out accuracy", "0.64 [0.60, 0.68]")],
    tables=(Table("Found", ["k", "share"], [["0.1", "[1.0]"]]),),
)


def test_a_summary_in_a_file_is_text_and_markdown(capsys):
    print_summary(SUMMARY)
    assert capsys.readouterr().out == (
        "oracle in runs/[x]\n  pairs              640\n  held-out accuracy  0.64 [0.60, 0.68]\n"
        "\nFound\n\n| k | share |\n| --- | --- |\n| 0.1 | [1.0] |\n"
    )


def test_a_summary_on_a_terminal_is_a_grid(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_summary(SUMMARY._replace(fresh=False))
    shown = capsys.readouterr().out
    for text in ("nothing to do: oracle in runs/[x]", "0.64 [0.60, 0.68]", "Found", "[1.0]"):
        assert text in shown


def test_json_is_one_object_and_nothing_else(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_summary(SUMMARY._replace(json={"a": "é [x]"}))
    assert capsys.readouterr().out == '{"a": "\\u00e9 [x]"}\n'
