"""What judges and verifiers say of a model's answers, prompt by prompt, whoever wrote it and in whatever form."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from stages.data.text_files import kind
from stages.errors import SepoError
from stages.method.statistics import Interval, Ratio

AGAIN: Final = "judged more than once: the last one counts"
HINT: Final = "give the file as the official tool wrote it"

Parts = dict[str, tuple[float, float]]
"""numerator and denominator of each figure, of one prompt"""


class Subject(NamedTuple):
    """Whose answers were judged, in what, and by whom."""

    benchmark: str
    part: str
    """a category that is judged on its own, or ``"""
    judge: str
    against: str
    """the model whose answers they were compared with; ``""`` where each was judged alone"""
    model: str


class Judged(NamedTuple):
    """What is known of one model's answers."""

    subject: Subject
    source: str
    """the file or folder"""
    prompts: list[str]
    """(N,) keys of the prompts, none twice; the same prompt has the same in every file of a benchmark"""
    figures: dict[str, Ratio]
    """(N,) each: sums over the judgments of a prompt"""
    stated: dict[str, Interval]
    """what the tool says of all prompts together, where it says nothing of each"""
    counts: dict[str, int]
    """judgments that are left out, or odd, by reason"""
    answers: dict[str, str]
    """what was judged, as `prompt_key` of it, by prompt; empty where the file does not tell"""


class Judgments:
    """Judgments of one model's answers, as they are read."""

    def __init__(self, subject: Subject, source: str) -> None:
        self._subject, self._source = subject, source
        self._parts: dict[str, Parts] = {}
        self._counts: Counter[str] = Counter()
        self._answers: dict[str, str] = {}

    def put(self, prompt: str, parts: Parts, answer: str | None = None) -> None:
        """All that is known of a prompt; what was known of it before is counted and forgotten."""
        self._counts[AGAIN] += prompt in self._parts
        self._parts[prompt] = parts
        if answer is not None:
            self._answers[prompt] = prompt_key(answer)

    def add(self, prompt: str, parts: Parts) -> None:
        """One of several answers to a prompt."""
        before = self._parts.setdefault(prompt, {})
        for name, (above, below) in parts.items():
            sums = before.get(name, (0.0, 0.0))
            before[name] = (sums[0] + above, sums[1] + below)

    def count(self, reason: str, times: int = 1) -> None:
        """Something that is not as it should be."""
        self._counts[reason] += times

    def judged(self) -> Judged:
        """All of them; a figure that some prompts lack is of the others."""
        names = dict.fromkeys(name for parts in self._parts.values() for name in parts)
        columns = {
            name: np.array([parts.get(name, (0.0, 0.0)) for parts in self._parts.values()], np.float64).T
            for name in names
        }
        figures = {name: Ratio(*both) for name, both in columns.items()}
        counts = {reason: count for reason, count in self._counts.items() if count}
        return Judged(self._subject, self._source, [*self._parts], figures, {}, counts, self._answers)


def prompt_key(text: str) -> str:
    """A prompt that has no number of its own, as a short text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def text_in(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text of a row."""
    value = row.get(name)
    if not isinstance(value, str):
        raise SepoError(f"{where}: {name} is {kind(value)}, not text", hint=HINT)
    return value


def key_in(row: Mapping[str, Any], name: str, where: str) -> str:
    """An id of a row, which may be a number, as text."""
    value = row.get(name)
    if type(value) is int:
        return str(value)
    return text_in(row, name, where)


def number_in(row: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a row, also one that is written as text; None where there is none."""
    value = row.get(name)
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def stated(value: float | None, error: float | None) -> Interval | None:
    """A figure with its normal interval, as far as a tool gives its standard error."""
    if value is None:
        return None
    half = math.inf if error is None else 1.959964 * error
    return Interval(value, value - half, value + half)
