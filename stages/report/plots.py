"""Plots for a page and for a paper: drawn once by matplotlib, as SVG in the page's own colours, and as SVG and PDF.

A plot is as wide as a column of a paper, and its letters are of the size that is read there.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from stages.report.curves import plain_label
from stages.reporting import printable

WIDTH: Final = 3.3
"""inches: a column of a paper"""
HEIGHT: Final = 2.1
LINE: Final = 0.15
"""inches, of a legend"""
COLOURS: Final = {
    "ink": "#1d2127",
    "muted": "#626b76",
    "line": "#dfe3e8",
    "high": "#2166ac",
    "low": "#b8501a",
    "run-0": "#0072b3",
    "run-1": "#d55e01",
    "run-2": "#009e74",
    "run-3": "#b3669a",
    "run-4": "#8c6d00",
    "run-5": "#4fa3d8",
    "run-6": "#5b4bb5",
    "run-7": "#6b6f73",
}
"""by the names that they have in the page's style sheet, where each has a twin on dark paper; colour-blind safe, those
of runs after Okabe and Ito"""
RUNS: Final = 8
"""colours of runs; from then on they come again, dashed"""
DASHES: Final = ("-", "--", ":", "-.")
LONGEST: Final = 28
"""letters of a label in a legend"""

Series = tuple[Sequence[Any], Sequence[Any]]


class Plot(NamedTuple):
    """A plot with what it says in words."""

    name: str
    """of its files, and of its place in a page"""
    title: str
    words: str
    """the alternative for who does not see it: its numbers"""
    figure: Any
    """of matplotlib"""
    svg: str

    @property
    def pdf(self) -> bytes:
        """As PDF, in which letters stay letters; drawn when it is asked for, since that takes long."""
        return _saved(self.name, self.figure, "pdf", {"CreationDate": None, "Title": self.title})


def plot(name: str, title: str, x: str, y: str, words: str, draw: Callable[[Any], None], bars: int = 0) -> Plot:
    """Draw one plot.

    Args:
        x: title of the axis, with its unit.
        draw: what puts the data into the axes.
        bars: how many horizontal ones there are, which need height, and room for their names.
    """
    # No pyplot: it would look for a display.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_settings(name)):
        figure = Figure()
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        labels = axes.get_legend_handles_labels()[1]
        columns = 2 if max(map(len, labels), default=0) <= 16 else 1
        legend = LINE * -(-len(labels) // columns) if len(labels) > 1 else 0.0
        # Nothing is laid out by itself: most of the time went into that.
        height = max(HEIGHT, 0.5 + 0.16 * bars) + legend
        figure.set_size_inches(WIDTH, height)
        left, bottom = 0.95 if bars else 0.55, 0.4 + legend
        figure.subplots_adjust(left / WIDTH, bottom / height, 1 - 0.12 / WIDTH, 1 - 0.08 / height)
        if legend:
            figure.legend(loc="lower left", ncols=columns, frameon=False, borderaxespad=0, bbox_to_anchor=(0.02, 0))
    return Plot(name, title, words, figure, _saved(name, figure, "svg", _NO_ONE).decode())


def for_page(drawn: Plot) -> str:
    """The SVG of a plot as a part of a page: it takes the page's colours and font, and says its words aloud."""
    from markupsafe import escape

    _, _, body = drawn.svg[drawn.svg.index("<svg") :].partition(">")
    for name, colour in COLOURS.items():
        body = body.replace(f": {colour}", f": var(--{name})")
    # The page has a style of its own, and only names that are meant somewhere need to be there, once in a page.
    meant = {*re.findall(r'(?:url\(|href=")#(\w+)', body)}
    body = re.sub(r"<style.*?</style>|font-family: [^;]*; |", "", body, flags=re.DOTALL)
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in meant else "", body)
    body = re.sub(r' transform="rotate\(-0[^"]*"', "", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    size = re.search(r'viewBox="([^"]*)"', drawn.svg)
    said = escape(printable(f"{drawn.title}. {drawn.words}"))
    return f'<svg viewBox="{size[1] if size else ""}" role="img" aria-label="{said}">{body}'


def run_style(number: int) -> dict[str, Any]:
    """The line of a run by its number."""
    return {"color": COLOURS[f"run-{number % RUNS}"], "linestyle": DASHES[number // RUNS % len(DASHES)]}


def label(text: str) -> str:
    """A name as a legend shows it."""
    return plain_label(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")


def _settings(name: str) -> dict[str, Any]:
    ink, muted, line = (COLOURS[each] for each in ("ink", "muted", "line"))
    return {
        "font.family": "sans-serif",
        "font.size": 7.5,
        "axes.labelsize": 7.5,
        "axes.linewidth": 0.6,
        "axes.edgecolor": muted,
        "axes.labelcolor": ink,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "figure.facecolor": "none",
        "grid.color": line,
        "grid.linewidth": 0.5,
        "legend.fontsize": 7,
        "legend.handlelength": 1.6,
        "legend.columnspacing": 1.2,
        "legend.labelspacing": 0.3,
        "legend.borderpad": 0.1,
        "lines.linewidth": 1.1,
        "lines.markersize": 3,
        "text.color": ink,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        # Letters stay letters, and the names inside one plot are no other's.
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "pdf.fonttype": 42,
    }


_NO_ONE: Final[dict[str, str | None]] = {"Date": None, "Creator": None, "Format": None, "Type": None}
"""of when and by what: the same data are the same bytes"""


def _saved(name: str, figure: Any, kind: str, metadata: dict[str, str | None]) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context(_settings(name)), warnings.catch_warnings():
        # A box stands for a letter that the font has not.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()
