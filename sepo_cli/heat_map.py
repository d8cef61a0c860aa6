"""Texts whose pieces have colours, for terminals; without colours what is marked stands in brackets."""

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final

from rich.cells import cell_len, chop_cells
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table as Grid
from rich.text import Text

from stages.reporting import HeatMap, Piece, printable

BESIDE: Final = 120
"""columns of a terminal from which two texts stand beside each other"""
BRACKETS: Final = "⟦", "⟧"
_NEUTRAL, _LOW, _HIGH = (150, 150, 150), (255, 140, 0), (70, 150, 255)
"""of one brightness, on which black can be read; orange and blue are two colours to every eye"""
_BLACK: Final = Color.from_rgb(0, 0, 0)
"""the terminal's own black is grey where it is bold"""
_STEPS: Final = 10
_LEFT_TO_RIGHT: Final = "\u200e"
_BREAK: Final = "⏎"


@cache
def style_of(level: int, marked: bool) -> Style:
    """Near the middle none; beyond, a background that is the stronger the farther the score, and what is marked
    underlined."""
    plain = Style(underline=marked, bold=marked)
    if level == 0:
        return plain
    end, share = _LOW if level < 0 else _HIGH, abs(level) / _STEPS
    background = (round(one + (other - one) * share) for one, other in zip(_NEUTRAL, end, strict=True))
    return plain + Style(color=_BLACK, bgcolor=Color.from_rgb(*background))


def print_heat_map(console: Console, heat: HeatMap) -> None:
    """On a terminal as wide as that is; elsewhere each text is one line."""
    coloured = console.color_system is not None and not console.no_color
    width = console.width if console.is_terminal else None
    console.print(Text("\n" + printable(heat.title), "bold"), soft_wrap=True)
    texts = [(printable(heading), spans) for heading, spans in heat.texts]
    beside = width is not None and width >= BESIDE
    for heading, spans in texts[: -2 if beside else None]:
        console.print(Text(heading, "cyan"), soft_wrap=True)
        _print_lines(console, _lines(spans, width, coloured))
    if beside:
        _print_beside(console, texts[-2:], coloured)
    _print_lines(console, _lines(heat.legend, width, coloured))


def _print_beside(console: Console, texts: list[tuple[str, list[Piece]]], coloured: bool) -> None:
    half = (console.width - 2) // 2
    grid = Grid.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for _ in texts:
        grid.add_column(width=half, no_wrap=True)
    grid.add_row(*(Text(heading, "cyan") for heading, _ in texts))
    grid.add_row(*(Text("\n").join(_lines(spans, half, coloured)) for _, spans in texts))
    console.print(grid)


def _print_lines(console: Console, lines: Iterable[Text]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def _lines(spans: list[Piece], width: int | None, coloured: bool) -> Iterator[Text]:
    """Lines of at most so many cells; a piece goes to the next line whole if it fits there, and a newline ends one."""
    line, used = Text(), 0
    for span in spans:
        text = printable(span.text)
        if span.marked and not coloured:
            text = text.join(BRACKETS)
        style = style_of(span.level, span.marked)
        for piece in chop_cells(text, width) if width and cell_len(text) > width else [text]:
            if width and used + cell_len(piece) > width:
                yield line
                line, used = Text(), 0
            line.append(in_order(piece), style)
            used += cell_len(piece)
            if width and piece.rstrip(BRACKETS[1]).endswith(_BREAK):
                yield line
                line, used = Text(), 0
    if line:
        yield line


def in_order(text: str) -> str:
    """A terminal that turns right-to-left letters around turns them within these alone."""
    turned = any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in text)
    return f"{_LEFT_TO_RIGHT}{text}{_LEFT_TO_RIGHT}" if turned else text
