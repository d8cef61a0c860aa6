"""The rows of a JSON Lines file, or of a JSON file that is one list of objects. Both stream."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, Final, TextIO

from stages.data import text_files
from stages.data.text_files import UTF8_HINT, Placed, kind, lines, opened
from stages.errors import SepoError

HINT: Final = "each line is one JSON object; a .json file may also be a list of objects"
_TWICE_HINT: Final = "keep one of the two; readers differ in which of them they take"
_NO_BLANK: Final = re.compile(r"[^ \t\n\r]")


class _TwiceError(Exception):
    """An object has a key twice; the message is the key."""


def json_lines(path: Path, name: str) -> Iterator[Placed]:
    for where, line in lines(path, name):
        if line.strip():
            try:
                row = _DECODER.decode(line.rstrip())
            except JSONDecodeError as error:
                raise _broken(where, error.msg, error.colno) from error
            except (RecursionError, _TwiceError) as error:
                raise _fault(where, error) from error
            yield where, _object(row, where)


def json_rows(path: Path, name: str) -> Iterator[Placed]:
    """A list of objects, or JSON Lines under another name."""
    with opened(path, name) as file:
        text = _Text(io.TextIOWrapper(file, "utf-8-sig", newline=""), name)
        if text.next() == "[":
            yield from _list_rows(text, name)
            return
    yield from json_lines(path, name)


def _list_rows(text: "_Text", name: str) -> Iterator[Placed]:
    text.at += 1
    number = 0
    while text.next() != "]":
        if number:
            text.skip_comma()
        where = f"{name} row {number}"
        yield where, _object(text.item(where), where)
        number += 1
    text.at += 1
    if text.next():
        raise text.broken("Extra data", text.at)


class _Text:
    """A text of which only a little more than the next item of a list is held."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file, self._name, self._held = file, name, ""
        self._line = self._column = 1
        """of the first character held"""
        self.at = 0
        """where we are in what is held"""

    def next(self) -> str:
        """The next character that is no blank, or "" at the end of the file; goes there."""
        while True:
            found = _NO_BLANK.search(self._held, self.at)
            self.at = found.start() if found else len(self._held)
            if found or not self._hold_more():
                return found[0] if found else ""

    def skip_comma(self) -> None:
        if self.next() != ",":
            raise self.broken("Expecting ',' delimiter", self.at)
        self.at += 1
        self.next()

    def item(self, where: str) -> Any:
        """The value that comes next."""
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self._held, self.at)
                return value
            except JSONDecodeError as error:
                # It may only be cut.
                if len(self._held) - self.at > text_files.LONGEST:
                    raise SepoError(f"{where}: more than {text_files.LONGEST:,} characters", hint=HINT) from error
                if not self._hold_more():
                    raise self.broken(error.msg, error.pos) from error
            except (RecursionError, _TwiceError) as error:
                raise _fault(where, error) from error

    def broken(self, problem: str, at: int) -> SepoError:
        line, column = self._place(at)
        return _broken(f"{self._name}:{line}", problem, column)

    def _hold_more(self) -> bool:
        """Hold twice as much of what comes, so that a long item is not parsed time and again; whether any came."""
        try:
            more = self._file.read(max(len(self._held) - self.at, 1 << 16))
        except UnicodeDecodeError as error:
            line, _ = self._place(len(self._held))
            raise SepoError(f"{self._name}: not UTF-8 in or after line {line}", hint=UTF8_HINT) from error
        if more:
            self._line, self._column = self._place(self.at)
            self._held, self.at = self._held[self.at :] + more, 0
        return bool(more)

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1, of a character that is held."""
        newline = self._held.rfind("\n", 0, at)
        column = at - newline if newline >= 0 else self._column + at
        return self._line + self._held.count("\n", 0, at), column


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        raise _TwiceError(Counter(key for key, _ in items).most_common(1)[0][0])
    return found


def _whole(digits: str) -> int | float:
    """A number of thousands of digits, which Python refuses, is as infinite as 1e400: nobody may read its column."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


_DECODER: Final = JSONDecoder(object_pairs_hook=_once, parse_int=_whole)


def _broken(where: str, problem: str, column: int) -> SepoError:
    return SepoError(f"{where}: broken JSON: {problem} (column {column})", hint=HINT)


def _fault(where: str, error: RecursionError | _TwiceError) -> SepoError:
    if isinstance(error, RecursionError):
        return SepoError(f"{where}: broken JSON: nested too deeply", hint=HINT)
    return SepoError(f"{where}: an object has the key {json.dumps(str(error)[:40])} twice", hint=_TWICE_HINT)


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SepoError(f"{where}: {kind(row)}, not an object", hint=HINT)
    return row
