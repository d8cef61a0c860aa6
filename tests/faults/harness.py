"""Runs `sepo` in this process on what is malformed, and says what may come of it: the right thing, or one line and a hint."""

import functools
import hashlib
import io
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from sepo_cli.main import main
from stages.store.lock import NAME as LOCK
from stages.store.manifest import UNFINISHED

SECONDS = 60
"""after which a run counts as one without end"""
get_command = functools.cache(typer.main.get_command)
"""builds the options of all commands, which takes longer than most runs here"""
BOOKKEEPING = {UNFINISHED, LOCK}
"""what a run may leave in its folder before it has made anything: the same command goes on"""


class Outcome(NamedTuple):
    """What a user saw."""

    code: int
    out: str
    err: str


class TooSlowError(BaseException):
    """A run without end. No handler of ordinary errors may swallow it."""


def outcome(*arguments: object, seconds: float = SECONDS, environment: dict[str, str] | None = None) -> Outcome:
    """Run `sepo` with these arguments; a bug's traceback is in `err`, as a user would see it."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with (
        pytest.MonkeyPatch.context() as patched,
        redirect_stdout(streams[0]),
        redirect_stderr(streams[1]),
        _limited(seconds),
    ):
        patched.setattr(sys, "argv", ["sepo", *map(str, arguments)])
        patched.setattr(typer.main, "get_command", get_command)
        for name, value in (environment or {}).items():
            patched.setenv(name, value)
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except (Exception, TooSlowError):
            traceback.print_exc()
            code = 1
    out, err = (_text(stream) for stream in streams)
    return Outcome(code, out, err)


def assert_one_line(found: Outcome) -> str:
    """One `error:` line and a `hint:`, exit code 1 or 2; returns the message."""
    assert "Traceback" not in found.err, found.err
    assert found.code in (1, 2), found
    lines = found.err.splitlines()
    if found.code == 2 and any(line.startswith("Usage:") for line in lines):
        return found.err
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, found.err
    assert lines[-2] == errors[0], found.err
    assert lines[-1].startswith("hint:  "), found.err
    assert len(lines[-1]) > len("hint:  ") + 3, found.err
    return errors[0].removeprefix("error: ")


def assert_right_or_one_line(found: Outcome) -> None:
    """What is malformed may also be of no account."""
    assert "Traceback" not in found.err, found.err
    if found.code != 0:
        assert_one_line(found)


def assert_can_go_on(output: Path) -> None:
    """A run that failed before it made anything left nothing in the way of the next one."""
    left = {path.name for path in output.iterdir()} if output.is_dir() else set()
    assert left <= BOOKKEEPING, left


@contextmanager
def unharmed(*paths: Path) -> Iterator[None]:
    """Files and folders that have to be the same bytes afterwards."""
    before = [_content(path) for path in paths]
    yield
    assert [_content(path) for path in paths] == before


def _content(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise TooSlowError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
