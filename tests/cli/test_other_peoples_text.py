"""Whatever a name, a column or a text holds, it is shown and controls neither the terminal nor the page."""

import io
import re

import pytest
from rich.console import Console

from sepo_cli import console
from sepo_cli.console import Bars, Lines, print_error, print_summary
from stages.errors import SepoError
from stages.reporting import Summary, Table, markdown, printable

NASTY = "\x1b[2J\x1b]0;owned\x07 \x9b31m a\rb\nc\x08 \u202eevil \u2028 [bold]x[/bold] [link=file:///etc]y[/link] \ud83d"
OWN = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
"""what rich itself writes: colours, and the movements of a live display"""
SUMMARY = Summary(
    NASTY,
    [(NASTY, NASTY)],
    tables=(Table(NASTY, [NASTY], [[NASTY]]), Table(NASTY, ["part", NASTY], [[NASTY, NASTY]], texts=True)),
)


def shown(text):
    """What was shown, as one line, after a look that it holds nothing but characters that can be printed."""
    assert "\x1b[2J" not in text
    rest = OWN.sub("", text).replace("\r", "")
    assert all(letter.isprintable() for letter in rest.replace("\n", "")), ascii(rest)
    return " ".join(rest.split())


@pytest.mark.parametrize("terminal", [True, False])
def test_messages_progress_summaries_and_errors(terminal, monkeypatch):
    out = io.StringIO()

    def fake(*args, **options):
        return Console(file=out, force_terminal=terminal, width=1000, color_system="truecolor", highlight=False)

    monkeypatch.setattr(console, "Console", fake)
    monkeypatch.setattr("sys.stdout", out)
    reporter = (Bars if terminal else Lines)(fake())
    reporter.say(NASTY)
    reporter.warn(NASTY)
    with reporter.task(NASTY, 2, "pairs") as task:
        task.advance(1, {NASTY: 1.0})
    print_error(SepoError(NASTY, hint=NASTY))
    print_summary(SUMMARY)
    text = shown(out.getvalue())
    assert text.replace("\\\\", "\\").count(r"\x1b]0;owned\x07") >= 11
    assert "[bold]x[/bold]" in text


def test_printable_keeps_what_can_be_seen():
    assert printable("naïve 日本語 🙂 [x] C:\\a") == "naïve 日本語 🙂 [x] C:\\a"
    assert printable("a\x1b\n\u202e\xa0\ud83d") == r"a\x1b\n\u202e\xa0\ud83d"
    assert printable(printable(NASTY)) == printable(NASTY)


def test_markdown_shows_a_text_and_obeys_none_of_it():
    assert markdown("0.697 [0.642, 0.746] of a_b") == "0.697 [0.642, 0.746] of a_b"
    assert markdown("a|b `c` <img> *d* [e](f)\n\\|") == r"a\|b \`c\` \<img> \*d\* [e]\(f)" + r"\\n\\\|"
    rows = Table("t", ["a|b", "c"], [["<script>", "x\n| y"]]).markdown().splitlines()
    assert rows[2:] == [r"| a\|b | c |", "| --- | --- |", r"| \<script> | x\\n\| y |"]
