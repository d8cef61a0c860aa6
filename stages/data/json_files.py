"""The rows of a JSON Lines file, or of a JSON file that is one list of objects. Both stream."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, Final

from stages.data.text_files import LONGEST, Placed, decoded, kind, lines, pieces
from stages.errors import SepoError

HINT: Final = "each line is one JSON object; a .json file may also be a list of objects"
_TWICE_HINT: Final = "keep one of the two; readers differ in which of them they take"
_BLANKS: Final = re.compile(r"[ \t\n\r]*")


class _TwiceError(Exception):
    """An object has a key twice; the message is the key."""


def json_lines(path: Path, name: str) -> Iterator[Placed]:
    for number, line in enumerate(lines(path, name), start=1):
        if line.strip():
            where = f"{name}:{number}"
            # Without the last newline, an end that comes too early is told of the line it is on.
            text = decoded(line, where).rstrip()
            try:
                row, end = _parsed(text, len(text) - len(text.lstrip()))
                if end < len(text):
                    raise JSONDecodeError("Extra data", text, end)
            except JSONDecodeError as error:
                place = f"{name}:{number + error.lineno - 1}"
                raise SepoError(f"{place}: broken JSON: {error.msg} (column {error.colno})", hint=HINT) from error
            except (RecursionError, _TwiceError) as error:
                raise _fault(where, error) from error
            yield where, _object(row, where)


def json_rows(path: Path, name: str) -> Iterator[Placed]:
    """A list of objects, or JSON Lines under another name."""
    first = next((piece for piece in pieces(path, name) if piece.strip()), "")
    return _list_rows(path, name) if first.lstrip().startswith("[") else json_lines(path, name)


def _list_rows(path: Path, name: str) -> Iterator[Placed]:
    text = _Text(pieces(path, name), name)
    text.skip("[")
    number = 0
    while not text.ends_list(first=number == 0):
        where = f"{name} row {number}"
        yield where, _object(text.item(where), where)
        number += 1
    text.refuse_more()


class _Text:
    """What is left of a list's text, of which only a little more than the next item is held."""

    def __init__(self, parts: Iterator[str], name: str) -> None:
        self._parts = parts
        self._name = name
        self._text = ""
        self._at = 0
        self._line = 1
        self._column = 1
        """of the first character held"""

    def skip(self, sign: str) -> None:
        """Go behind a sign that has to come next."""
        end = self._at
        if self._next() != sign:
            # Where nothing follows, the fault is told of the line that it is on.
            raise self._broken(f"Expecting '{sign}' delimiter", self._at if self._next() else end)
        self._at += 1

    def ends_list(self, *, first: bool) -> bool:
        """Whether the list ends here; otherwise goes to the next item, behind a comma unless it is the first."""
        if self._next() == "]":
            self._at += 1
            return True
        if not first:
            self.skip(",")
            self._next()
        return False

    def item(self, where: str) -> Any:
        """The value that comes next."""
        wanted = 0
        while True:
            try:
                value, self._at = _parsed(self._text, self._at)
                return value
            except JSONDecodeError as error:
                # It may only be cut. What is read grows with what is held: a long item is not parsed time and again.
                held = len(self._text) - self._at
                if held > LONGEST:
                    raise SepoError(f"{where}: more than {LONGEST:,} characters", hint=HINT) from error
                wanted = max(2 * held, 1 << 16)
                if not self._hold(wanted):
                    raise self._broken(error.msg, error.pos) from error
            except (RecursionError, _TwiceError) as error:
                raise _fault(where, error) from error

    def refuse_more(self) -> None:
        if self._next():
            raise self._broken("Extra data", self._at)

    def _next(self) -> str:
        """The next character that is no blank, or "" at the end of the file; goes there."""
        while True:
            found = _BLANKS.match(self._text, self._at)
            end = found.end() if found else self._at
            if end < len(self._text):
                self._at = end
                return self._text[end]
            if not self._hold(len(self._text) - self._at + 1):
                return ""

    def _hold(self, wanted: int) -> bool:
        """Hold as many characters behind where we are, or all that there are; whether any came."""
        parts, held = [self._text[self._at :]], len(self._text) - self._at
        while held < wanted and (part := next(self._parts, "")):
            parts.append(part)
            held += len(part)
        if len(parts) == 1:
            return False
        self._line, self._column = self._place(self._at)
        self._text, self._at = "".join(parts), 0
        return True

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1, of a character that is held."""
        newline = self._text.rfind("\n", 0, at)
        column = at - newline if newline >= 0 else self._column + at
        return self._line + self._text.count("\n", 0, at), column

    def _broken(self, problem: str, at: int) -> SepoError:
        line, column = self._place(at)
        return SepoError(f"{self._name}:{line}: broken JSON: {problem} (column {column})", hint=HINT)


def _parsed(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at a character, and where it ends.

    A number of thousands of digits, which Python refuses, is as infinite as 1e400: its column may be of no account.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except JSONDecodeError:
        raise
    except ValueError:
        return _ANY_NUMBER.raw_decode(text, at)


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        raise _TwiceError(Counter(key for key, _ in items).most_common(1)[0][0])
    return found


def _whole(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)


_DECODER: Final = JSONDecoder(object_pairs_hook=_once)
_ANY_NUMBER: Final = JSONDecoder(object_pairs_hook=_once, parse_int=_whole)


def _fault(where: str, error: RecursionError | _TwiceError) -> SepoError:
    if isinstance(error, RecursionError):
        return SepoError(f"{where}: broken JSON: nested too deeply", hint=HINT)
    return SepoError(f"{where}: an object has the key {json.dumps(str(error)[:40])} twice", hint=_TWICE_HINT)


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SepoError(f"{where}: {kind(row)}, not an object", hint=HINT)
    return row
