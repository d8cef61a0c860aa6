"""The one exception that means "the user can fix this", and the border at which what others raise becomes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LONGEST: Final = 400


class SepoError(Exception):
    """A user's mistake: one line that holds the value, the constraint and the remedy.

    Raised anywhere in `stages`, rendered once in `sepo_cli`. Anything else that escapes a stage is a bug and keeps its
    traceback.

    Args:
        message: one line without a trailing full stop, such as ``chosen_ratio must be in (0, 1], got 1.5``.
        hint: one line saying what to do next; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@contextmanager
def borrowed(problem: str, hint: str) -> Iterator[None]:
    """A border to another library: whatever it raises in the block is said in one line, as the world's fault.

    A list of what it may raise is never whole: what reads a malformed file trips over it in any way. So the block holds
    the library's call and nothing of ours: a bug of ours in it would lose its traceback.

    Args:
        problem: what cannot be done, as in ``cannot load runs/model``.
    """
    try:
        yield
    except SepoError:
        raise
    except BaseException as error:
        # A library written in Rust panics past all handlers of ordinary errors.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise SepoError(f"{problem}: {one_line(error)}", hint=hint) from error


def one_line(error: BaseException) -> str:
    """What another library's error says, in one short line without a trailing full stop; its name where it says less.

    It is the first line, and the next one too where the first ends with a colon.
    """
    lines = [line.strip() for line in (getattr(error, "strerror", None) or str(error)).splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError):
        return shortened(" ".join([type(error).__name__, *lines[:1]]))
    said = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
    return shortened(said)


def shortened(text: str) -> str:
    """A text that fits into a message."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
