"""The live figures of a run in a terminal: below its bar, for each one its last value and its course so far."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from rich.console import RenderableType
from rich.progress import Progress
from rich.text import Text

from stages.reporting import printable

COLUMNS: Final = 40
_BARS: Final = "▁▂▃▄▅▆▇█"


class Curve:
    """The course of one figure in constant memory: means of equally many values, twice as many whenever it is full."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self._each = 1
        self._open: list[float] = []

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self._open.append(value)
        if len(self._open) == self._each:
            self.means.append(sum(self._open) / self._each)
            self._open.clear()
        if len(self.means) == 2 * COLUMNS:
            self.means = [(one + other) / 2 for one, other in zip(self.means[::2], self.means[1::2], strict=True)]
            self._each *= 2


class Panel(Progress):
    """rich's progress with the curves of its tasks, and the last warning, below the bars."""

    warning = ""

    def __init__(self, *columns: object, **options: object) -> None:
        self._curves: dict[str, Curve] = {}
        self._last: dict[str, float] = {}
        super().__init__(*columns, **options)  # type: ignore[arg-type]

    def plot(self, figures: Mapping[str, float]) -> None:
        # Not while the thread that draws looks at them.
        with self._lock:
            for name, value in figures.items():
                self._last[name] = value
                self._curves.setdefault(name, Curve()).add(value)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._last:
            yield self._courses()
        if self._last and self.warning:
            yield Text.assemble(
                ("warning: ", "bold yellow"), printable(self.warning), no_wrap=True, overflow="ellipsis"
            )

    def _courses(self) -> Text:
        # One text and no table: a table takes five times as long to lay out, several times a second.
        text = Text(no_wrap=True, overflow="crop", end="")
        # Where there is little room its course has fewer bars, or none, but ends with the last value.
        width = self.console.width
        with self._lock:
            for name, value in self._last.items():
                text.append(f"{printable(name):<18}"[: max(1, width - 11)], "cyan")
                text.append(f"{figure(value):>10}  {sparkline(self._curves[name].means, width - 30)}\n")
        return text


def sparkline(values: list[float], room: int = COLUMNS) -> str:
    """Values as a row of bars, the least the lowest and the greatest the highest; at most `COLUMNS` of them."""
    count = min(len(values), COLUMNS, room)
    if count <= 0:
        return ""
    shown = [values[(index + 1) * len(values) // count - 1] for index in range(count)]
    least, span = min(shown), max(shown) - min(shown)
    return "".join(_BARS[round((value - least) / span * 7) if span else 0] for value in shown)


def figure(value: float) -> str:
    """A live figure in four digits, large ones whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def figures_text(figures: Mapping[str, float]) -> Iterator[str]:
    """Such as ``loss 0.6931``, one for each figure."""
    return (f"{printable(name)} {figure(value)}" for name, value in figures.items())
