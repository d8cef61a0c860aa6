"""What a stage tells its user while it runs, and what it returns; how that looks is the command line's business."""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, NamedTuple, Protocol

from stages.errors import SepoError

_PASSWORD: Final = re.compile(r"(?<=://)[^\s@\"]*:[^\s@\"]*@")
_MARKDOWN: Final = re.compile(r"[\\`*<|]|(?<=])\(")


def without_keys(text: str) -> str:
    """A text whose URIs say who reads them to nobody: ``s3://key:secret@bucket`` as ``s3://bucket``.

    Everything that is printed or written passes through here.
    """
    return _PASSWORD.sub("", text)


def printable(text: str) -> str:
    """A text of one line in which nothing controls a terminal: what cannot be printed is escaped as Python would.

    Names, columns and texts are other people's; every border to a terminal or a page passes through here.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in without_keys(text))


def markdown(text: str) -> str:
    """A text as Markdown shows it: no markup, no link, no end of a table's cell."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def counted(count: int, one: str) -> str:
    """``1 shard`` or ``2,000 shards``."""
    return f"{count:,} {one if count == 1 else f'{one}s'}"


def flat(value: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """What nested objects hold, with the path to it: ``dropped, empty response``."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from flat(each, f"{before}, {name}" if before else str(name))
    else:
        yield before, value


class Task(Protocol):
    """A piece of long work in progress."""

    def advance(self, amount: int = 1, figures: Mapping[str, float] | None = None) -> None:
        """`amount` more units are done; `figures` are the live ones by name, such as ``loss``."""


class Reporter(Protocol):
    """The ear of a stage. `Quiet` is the one for library use and tests; `sepo_cli` brings one on rich."""

    def say(self, text: str) -> None:
        """A fact worth a line: a derived number, a count, a phase that begins."""

    def warn(self, text: str) -> None:
        """Something that the user should read before trusting the result."""

    def alarm(self, text: str) -> None:
        """The same from whichever of several processes, where others only the first one is heard of."""

    def task(self, title: str, total: int, unit: str) -> AbstractContextManager[Task]:
        """Long work of `total` units (0: unknown), as a context that yields a `Task`; it shows rate and time left."""


class Table(NamedTuple):
    """A result with columns: every row has one text for each column."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    texts: bool = False
    """whether its cells are texts to be looked at closely, not figures"""

    def markdown(self) -> str:
        """The table as GitHub shows it, with its title above."""
        rows = [[markdown(cell) for cell in row] for row in self.rows]
        lines = [[*map(markdown, self.columns)], ["---"] * len(self.columns), *rows]
        return f"{markdown(self.title)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


class Piece(NamedTuple):
    """A piece of a text, such as a token, as it is to be shown."""

    text: str
    level: int = 0
    """step on a diverging scale of colours, from -10 to 10"""
    marked: bool = False


class HeatMap(NamedTuple):
    """Texts whose pieces have colours, beside each other where there is room."""

    title: str
    texts: tuple[tuple[str, list[Piece]], ...]
    """each with its heading"""
    legend: list[Piece]


class Summary(NamedTuple):
    """The end of a stage: a title and (label, value) rows for a table; not `fresh` where nothing was to be done."""

    title: str
    rows: list[tuple[str, str]]
    fresh: bool = True
    tables: tuple[Table | HeatMap, ...] = ()
    failure: SepoError | None = None
    """what is wrong in spite of a summary, to be raised once it was shown"""
    json: dict[str, Any] | None = None
    """for programs: one JSON value instead of all that"""
    every_process: bool = False
    """of several processes each one has an end of its own to show, not only the first"""


class Quiet:
    """Says nothing, and remembers the warnings in `warnings`."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def alarm(self, text: str) -> None:
        self.warn(text)

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator["Quiet"]:
        yield self

    def advance(self, amount: int = 1, figures: Mapping[str, float] | None = None) -> None: ...
