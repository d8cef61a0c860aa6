"""The live curves: their memory and their drawing, and what stands on a terminal while training goes on."""

import io
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from sepo_cli.console import Bars
from sepo_cli.panel import COLUMNS, Curve, Panel, figure, sparkline


def test_a_curve_keeps_means_of_equally_many_values():
    curve = Curve()
    for value in range(8 * COLUMNS):
        curve.add(float(value))
    # Twice full so far, and full again: means of 8 values each.
    assert curve.means == [8 * index + 3.5 for index in range(COLUMNS)]
    curve.add(math.nan)
    for _ in range(10**4):
        curve.add(1.0)
    assert len(curve.means) < 2 * COLUMNS
    assert not any(map(math.isnan, curve.means))


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([2.0], "▁"),
        ([0.0, 7.0, 3.0], "▁█▄"),
        # Two for each column: the later one of them, so that the last value is the last column.
        ([float(index // 2 % 2) for index in range(2 * COLUMNS)], "▁█" * (COLUMNS // 2)),
    ],
)
def test_a_sparkline_goes_from_the_least_to_the_greatest(values, drawn):
    assert sparkline(values) == drawn


def test_figures_have_four_digits():
    assert [figure(value) for value in (0.693147, -12.3456, 12345.6, 0.0)] == ["0.6931", "-12.35", "12,346", "0"]


def test_a_terminal_shows_the_last_values_their_course_and_the_last_warning():
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    reporter = Bars(screen)
    reporter.warn("before")
    with reporter.task("dpo", 3, "steps") as task:
        task.advance(1, {"loss": 0.7, "held-out accuracy": 0.5})
        task.advance(1, {"loss": 0.3})
        reporter.warn("it collapses [bold]")
        task.advance(1, {})
    last = screen.file.getvalue().split("3/3 steps")[-1].splitlines()
    assert [line.rstrip() for line in last[1:4]] == [
        "loss                     0.3  █▁",
        "held-out accuracy        0.5  ▁",
        "warning: it collapses [bold]",
    ]


@pytest.mark.parametrize(
    ("width", "line"), [(20, "loss            0.5"), (40, "loss                     0.5  ▁█▁█▁█▁█▁▅")]
)
def test_a_narrow_terminal_shows_the_figure_and_its_whole_course(width, line):
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with Bars(screen).task("dpo", 3, "steps") as task:
        for step in range(COLUMNS):
            task.advance(1, {"loss": float(step // 4 % 2)})
        task.advance(1, {"loss": 0.5})
    assert [row.rstrip() for row in screen.file.getvalue().splitlines() if row.startswith("loss")][-1] == line


def test_the_thread_that_draws_sees_no_figure_without_its_course():
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with Panel(console=screen, auto_refresh=False) as panel, ThreadPoolExecutor() as drawing:

        class Figures(dict):
            def items(self):
                seen.append(drawing.submit(lambda: [*panel.get_renderables()]))
                yield from super().items()

        seen = []
        panel.plot(Figures({f"figure {number}": 0.0 for number in range(1000)}))
        assert len(seen[0].result()[-1].plain.splitlines()) == 1000


def test_without_figures_there_is_the_bar_alone():
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with Bars(screen).task("read", 1, "rows") as task:
        task.advance()
    assert "▁" not in screen.file.getvalue()
