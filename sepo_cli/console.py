"""What a user sees while a stage runs and when it ends: progress and messages on stderr, the summary on stdout.

Texts are never wrapped, never read as markup (a path may hold [brackets]), and what cannot be printed is escaped.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as Row
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

from sepo_cli.passages import passage_lines
from sepo_cli.progress import Clock, Work
from stages.errors import SepoError
from stages.reporting import Passage, Quiet, Reporter, Summary, Table, printable
from stages.store.files import json_text

SECONDS_BETWEEN_LINES: Final = 10.0
WIDTH_OF_A_FILE: Final = 120


def make_reporter() -> Reporter:
    """Bars on a terminal, lines in a log, and silence in all but the first process of `accelerate launch`."""
    if _rank() > 0:
        return Quiet()
    console = _stderr()
    return Bars(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


class Lines:
    """The reporter for logs and pipes: a line of progress every ten seconds, and the last one."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    def say(self, text: str) -> None:
        _print(self._console, _text(text))

    def warn(self, text: str) -> None:
        _print(self._console, _labelled("warning:", "yellow", text))

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Work]:
        work = _PrintedWork(self, title, total, unit, self._clock)
        try:
            yield work
        finally:
            work.print_last()


class _PrintedWork(Work):
    """Work that prints a line of itself now and then."""

    def __init__(self, reporter: Lines, title: str, total: int, unit: str, clock: Clock) -> None:
        super().__init__(title, total, unit, clock)
        self._reporter = reporter
        self._now = clock
        self._printed_at = clock()
        self._printed_done = -1

    def advance(self, amount: int = 1, note: str = "") -> None:
        super().advance(amount, note)
        if self._now() - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._print()

    def print_last(self) -> None:
        if self._printed_done != self.done:
            self._print()

    def _print(self) -> None:
        self._printed_at, self._printed_done = self._now(), self.done
        self._reporter.say(f"{self.title}: {self.figures()}")


class Bars:
    """The reporter for a terminal: a live bar for each task, and messages above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        _print(self._console, _text(text))

    def warn(self, text: str) -> None:
        _print(self._console, _labelled("warning:", "bold yellow", text))

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Work]:
        with self._display() as progress:
            work = _ShownWork(progress, title, total, unit)
            try:
                yield work
            finally:
                work.end()

    @contextmanager
    def _display(self) -> Iterator[Progress]:
        """A task within a task shares the display of the outer one: a console has one live display."""
        if self._progress is not None:
            yield self._progress
            return
        with Progress(*_columns(), console=self._console) as progress:
            self._progress = progress
            try:
                yield progress
            finally:
                self._progress = None


class _ShownWork(Work):
    """Work that has a row in a live display."""

    def __init__(self, progress: Progress, title: str, total: int, unit: str) -> None:
        super().__init__(title, total, unit)
        self._progress = progress
        self._row = progress.add_task(self.title, total=total or None, work=self)

    def advance(self, amount: int = 1, note: str = "") -> None:
        super().advance(amount, note)
        self._progress.update(self._row, completed=self.done)

    def end(self) -> None:
        super().end()
        if not self.total:
            # A bar without a known total would look busy for ever.
            self._progress.update(self._row, total=self.done or 1, completed=self.done or 1)


class _Figures(ProgressColumn):
    """Done, rate, times and note."""

    def render(self, task: Row) -> Text:
        work: Work = task.fields["work"]
        return Text(work.figures(), no_wrap=True, overflow="ellipsis")


def _columns() -> list[ProgressColumn]:
    narrow = Column(no_wrap=True, overflow="ellipsis", max_width=40)
    return [TextColumn("{task.description}", markup=False, table_column=narrow), BarColumn(bar_width=20), _Figures()]


def print_summary(summary: Summary) -> None:
    """The end of a stage, on stdout: grids on a terminal, plain aligned text and Markdown in a file, or only JSON."""
    if _rank() > 0 and not summary.every_process:
        return
    if summary.json is not None:
        print(json_text(summary.json, ascii_only=True), flush=True)
        return
    console = Console(highlight=False)
    title = summary.title if summary.fresh else f"nothing to do: {summary.title}"
    if console.is_terminal:
        _print(console, _text(title, "bold"))
        console.print(_grid(summary))
        for table in summary.tables:
            _print_table(console, table)
        return
    rows = [(printable(label), printable(value)) for label, value in summary.rows]
    width = max((len(label) for label, _ in rows), default=0)
    lines = [printable(title), *(f"  {label:<{width}}  {value}" for label, value in rows)]
    lines += ["\n" + _plain(table) for table in summary.tables]
    # Flushed here, where a reader that has gone away is noticed and forgiven.
    print("\n".join(lines), flush=True)


def print_error(error: SepoError) -> None:
    """``error: ...`` and, if there is one, ``hint:  ...``; each one line, whatever the width of the terminal."""
    console = _stderr()
    rank = f"[rank {_rank()}] " if _rank() > 0 else ""
    _print(console, _labelled(f"{rank}error:", "bold red", error.message))
    if error.hint:
        _print(console, _labelled(f"{rank}hint: ", "bold", error.hint))


def print_note(text: str) -> None:
    _print(_stderr(), _labelled("note:", "bold", text))


def print_interrupted() -> None:
    if _rank() == 0:
        _print(_stderr(), Text("interrupted; run the same command again to continue"))


def _grid(summary: Summary) -> Grid:
    grid = Grid(show_header=False, box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in summary.rows:
        grid.add_row(_text(label), _text(value))
    return grid


def _grid_with_columns(table: Table) -> Grid:
    grid = Grid(title=_text(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(table.columns):
        grid.add_column(_text(column), justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*map(_text, row))
    return grid


def _print_table(console: Console, table: Table | Passage) -> None:
    if isinstance(table, Table):
        console.print(_grid_with_columns(table))
        return
    _print(console, _text(table.title, "bold"))
    for line in passage_lines(table, console.width):
        _print(console, line)
    console.print()


def _plain(table: Table | Passage) -> str:
    if isinstance(table, Table):
        return table.markdown().rstrip("\n")
    return "\n".join([printable(table.title), "", *(line.plain for line in passage_lines(table, WIDTH_OF_A_FILE))])


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)


def _text(text: str, style: str = "") -> Text:
    """Other people's words, which control nothing here."""
    return Text(printable(text), style)


def _labelled(label: str, style: str, text: str) -> Text:
    return Text.assemble((label, style), " ", _text(text))


def _rank() -> int:
    """The number of this process as `accelerate launch` and torchrun give it; 0 without them."""
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    return int(rank) if rank.isdigit() else 0
