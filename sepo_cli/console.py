"""What a user sees while a stage runs and when it ends: progress and messages on stderr, the summary on stdout.

Texts are never wrapped, never read as markup (a path may hold [brackets]), and what cannot be printed is escaped.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as Row
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

from sepo_cli.heat_map import in_order, print_heat_map
from sepo_cli.panel import Panel, figures_text
from stages.errors import SepoError
from stages.reporting import HeatMap, Quiet, Reporter, Summary, Table, printable
from stages.store.files import json_text

SECONDS_BETWEEN_LINES: Final = 10.0
HOUR: Final = 3600.0
WIDE: Final = 1000
"""columns, more than a table has"""
LONGEST_FIGURE: Final = 10
"""of what is not torn in a table; names of tokens may be longer"""
REFRESHES_A_SECOND: Final = 2
"""of a terminal: each one takes a moment from the work"""


def make_reporter(*, quiet: bool = False) -> Reporter:
    """Bars on a terminal, lines in a log, warnings alone, and alarms in all but the first process of several."""
    console = _stderr()
    if _rank() > 0:
        return Alarms(console)
    if quiet:
        return Warnings(console)
    return Bars(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


class Lines:
    """The reporter for logs and pipes: a line of progress every ten seconds, and the last one."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    def say(self, text: str) -> None:
        _print(self._console, _text(text))

    def warn(self, text: str) -> None:
        _print(self._console, _labelled("warning:", "bold yellow", text))

    def alarm(self, text: str) -> None:
        self.warn(text)

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator["_Work"]:
        # Never started: it shows nothing, and counts as it does on a terminal.
        progress = Progress(console=self._console, get_time=self._clock, speed_estimate_period=HOUR)
        printed_at, printed = self._clock(), -1.0

        def show(row: Row, *, last: bool = False) -> None:
            nonlocal printed_at, printed
            if (last and printed != row.completed) or self._clock() - printed_at >= SECONDS_BETWEEN_LINES:
                printed_at, printed = self._clock(), row.completed
                self.say(f"{row.description}: {figures(row)}")

        work = _Work(progress, title, total, unit, show)
        try:
            yield work
        finally:
            show(work.row, last=True)


class Bars(Lines):
    """The reporter for a terminal: a live bar for each task, and messages above it."""

    _progress: Panel | None = None

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator["_Work"]:
        with self._display() as progress:
            work = _Work(progress, title, total, unit)
            try:
                yield work
            finally:
                progress.stop_task(work.row.id)
                if work.row.total is None:
                    # A bar without a known total would look busy for ever.
                    progress.update(work.row.id, total=work.row.completed or 1, completed=work.row.completed or 1)

    @contextmanager
    def _display(self) -> Iterator[Panel]:
        """A task within a task shares the display of the outer one: a console has one live display."""
        if self._progress is not None:
            yield self._progress
            return
        narrow = Column(no_wrap=True, overflow="ellipsis", max_width=40)
        title = TextColumn("{task.description}", markup=False, table_column=narrow)
        columns = (title, BarColumn(bar_width=20), _Figures())
        timing = {"speed_estimate_period": HOUR, "refresh_per_second": REFRESHES_A_SECOND}
        with Panel(*columns, console=self._console, **timing) as progress:
            self._progress = progress
            try:
                yield progress
            finally:
                self._progress = None

    def warn(self, text: str) -> None:
        super().warn(text)
        if self._progress is not None:
            self._progress.warning = text


class Warnings(Lines):
    """The reporter of --quiet: what is said, progress too, is dropped."""

    def say(self, text: str) -> None: ...


class Alarms(Quiet):
    """The reporter of all processes but the first: what only they can know."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def alarm(self, text: str) -> None:
        _print(self._console, _labelled(f"[rank {_rank()}] warning:", "bold yellow", text))


class _Work:
    """A `stages.reporting.Task` as a row of rich's progress."""

    def __init__(
        self, progress: Progress, title: str, total: int, unit: str, show: Callable[[Row], None] = lambda row: None
    ) -> None:
        id_ = progress.add_task(printable(title), total=total or None, unit=unit, figures={})
        self.row = next(row for row in progress.tasks if row.id == id_)
        self._progress = progress
        self._show = show

    def advance(self, amount: int = 1, figures: Mapping[str, float] | None = None) -> None:
        if figures and isinstance(self._progress, Panel):
            self._progress.plot(figures)
        elif figures:
            self.row.fields["figures"] = figures
        self._progress.advance(self.row.id, amount)
        self._show(self.row)


def figures(row: Row) -> str:
    """Such as ``128/640 pairs, 12.3/s, 0:00:10 passed, 0:00:42 left, loss 0.65``.

    The rate is rich's, from the end of the first `advance`: what a resumed run brings along was done by another run.
    """
    unit = row.fields["unit"]
    parts = [f"{row.completed:,.0f}{'' if row.total is None else f'/{row.total:,.0f}'} {unit}"]
    if row.speed:
        parts.append(f"{row.speed:{',.0f' if row.speed >= 100 else '.3g'}}/s")
    parts.append(f"{timedelta(seconds=round(row.elapsed or 0))} passed")
    if row.time_remaining:
        parts.append(f"{timedelta(seconds=round(row.time_remaining))} left")
    return ", ".join([*parts, *figures_text(row.fields["figures"])])


class _Figures(ProgressColumn):
    """Done, rate and times."""

    def render(self, task: Row) -> Text:
        return Text(figures(task), no_wrap=True, overflow="ellipsis")


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
        if summary.rows:
            console.print(_grid(summary))
        for table in summary.tables:
            if isinstance(table, HeatMap):
                print_heat_map(console, table)
            else:
                print_table(console, table)
        return
    rows = [(printable(label), printable(value)) for label, value in summary.rows]
    width = max((len(label) for label, _ in rows), default=0)
    lines = [printable(title), *(f"  {label:<{width}}  {value}" for label, value in rows)]
    print("\n".join(lines))
    for table in summary.tables:
        print()
        if isinstance(table, HeatMap):
            print_heat_map(console, table)
        else:
            print(table.markdown(), end="")
    # Where a reader that has gone away is noticed and forgiven.
    sys.stdout.flush()


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


def print_table(console: Console, table: Table) -> None:
    """As a grid, or as in a file where the terminal is so narrow that figures would be torn."""
    grid = _grid_with_columns(table)
    least = Measurement.get(console, console.options.update(width=WIDE), grid).minimum
    if least > console.width:
        _print(console, Text(table.markdown()))
    else:
        console.print(grid)


def _grid_with_columns(table: Table) -> Grid:
    grid = Grid(title=_text(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(table.columns):
        figures = bool(number) and not table.texts
        widths = (cell_len(word) for row in table.rows for word in row[number].split() if figures)
        justify: Literal["left", "right"] = "right" if figures else "left"
        least = min(LONGEST_FIGURE, max(widths, default=1))
        grid.add_column(_text(column), justify=justify, overflow="fold", min_width=least)
    for row in table.rows:
        grid.add_row(*(_text(cell) if cell.isascii() else Text(in_order(printable(cell))) for cell in row))
    return grid


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
