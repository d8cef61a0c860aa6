"""Passages as lines that fit a width: labels on the left, their text beside them, broken between its pieces."""

from collections.abc import Iterator

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from stages.reporting import Passage, Piece, printable

_INDENT = "  "


def passage_lines(passage: Passage, width: int) -> list[Text]:
    """The lines of a passage, without its title; styles show on a terminal and are lost in a file."""
    margin = max(cell_len(printable(line.label)) for line in passage.lines) + 2 * len(_INDENT)
    lines = []
    for line in passage.lines:
        label = printable(f"{_INDENT}{line.label}")
        for text in _broken(line.pieces, passage.border, max(width - margin, 10)) or [Text()]:
            lines.append(Text.assemble((set_cell_size(label, margin), "cyan"), text))
            label = ""
    for text in lines:
        text.rstrip()
    return lines


def _broken(pieces: list[Piece], border: str, room: int) -> list[Text]:
    lines: list[Text] = []
    line = Text()
    for piece in pieces:
        for part in _parts(printable(piece.text), room - cell_len(border)):
            # A blank at the end of a line takes no room.
            if line and line.cell_len + cell_len(part.rstrip()) + cell_len(border) > room:
                lines.append(line)
                line = Text()
            line.append(part, "bold magenta" if piece.special else "")
        line.append(border, "bright_black")
    return [*lines, line] if line else lines


def _parts(text: str, room: int) -> Iterator[str]:
    """A text that is too long for a line in parts that are not."""
    while cell_len(text.rstrip()) > room:
        end = next(end for end in range(len(text), 0, -1) if end == 1 or cell_len(text[:end]) <= room)
        yield text[:end]
        text = text[end:]
    yield text
