"""What became of a model's answers, by reason, and how fast they came."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stages.reporting import Task, counted
from stages.store.answers import Answer
from stages.store.files import writing

_SAID: Final = {
    "cut": "are cut at --max-new-tokens",
    "out_of_positions": "are cut before --max-new-tokens, where the model has no more positions",
    "empty": "are empty",
}
"""of answers by their kind"""
_TIMING: Final = "timing.jsonl"
_SECONDS_BETWEEN_FIGURES: Final = 5.0
"""the display forgets all but a thousand figures, and with them how long the work takes"""


@dataclass
class AnswerTally:
    """How many answers are of which kind."""

    max_new_tokens: int
    """at which an answer is cut"""
    answers: int = 0
    tokens: int | None = 0
    """of all answers, their ends of turn included; None where the engine tells no ids"""
    counts: Counter[str] = field(default_factory=Counter)
    """by the keys of `_SAID`, and ``problem``: no answer"""
    problems: Counter[str] = field(default_factory=Counter)
    """why there is no answer"""
    first: dict[str, str] = field(default_factory=dict)
    """the id of the first question of each of these counts"""

    def add(self, answer: Answer) -> None:
        self.answers += 1
        known = self.tokens is not None and answer.answer_ids is not None
        if known or not answer.problem:
            self.tokens = self.tokens + len(answer.answer_ids) if known else None  # type: ignore[operator, arg-type]
        # Of a server that tells no ids nobody knows.
        short = answer.answer_ids is not None and len(answer.answer_ids) < self.max_new_tokens
        kinds = {
            "problem": bool(answer.problem),
            "out_of_positions": not answer.ended and short,
            "cut": not answer.ended,
            "empty": not answer.text.strip(),
        }
        kind = next((kind for kind, holds in kinds.items() if holds), None)
        if kind is not None:
            self.counts[kind] += 1
            self.first.setdefault(kind, answer.question_id)
        if answer.problem:
            self.problems[answer.problem] += 1

    def as_json(self) -> dict[str, Any]:
        kinds = {kind: self.counts[kind] for kind in (*_SAID, "problem")}
        return {"answers": self.answers, "tokens": self.tokens, **kinds, "problems": dict(self.problems)}

    def warnings(self, name: str) -> list[str]:
        """What should be looked at before the answers are judged."""
        found = [
            f"{name}: {self.counts[kind]:,} of {self.answers:,} answers {words} (first: question {self.first[kind]})"
            for kind, words in _SAID.items()
            if self.counts[kind]
        ]
        return found + [
            f"{name}: {count:,} of {self.answers:,} answers are missing: {reason}"
            for reason, count in self.problems.most_common()
        ]

    def in_words(self, rate: float | None) -> str:
        """``541 answers (12 cut, 3 empty), 84 tokens each, 212 tokens/s``."""
        kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in self.counts.items())
        text = counted(self.answers, "answer") + (f" ({kinds})" if kinds else "")
        if self.tokens is not None:
            text += f", {self.tokens / max(1, self.answers):,.0f} tokens each"
        return text + (f", {rate:,.0f} tokens/s" if rate else "")


def tallied(answers: Iterable[Answer], max_new_tokens: int) -> AnswerTally:
    """The counts of a model's answers."""
    tally = AnswerTally(max_new_tokens)
    for answer in answers:
        tally.add(answer)
    return tally


class LiveRate:
    """The live figures of answers that are being written: their first batch may take many minutes to end one."""

    def __init__(self, task: Task) -> None:
        self._task, self._tokens, self._since = task, 0, time.monotonic()

    def __call__(self, tokens: int) -> None:
        """Each of so many answers has a token more."""
        self._tokens += tokens
        now = time.monotonic()
        if now - self._since >= _SECONDS_BETWEEN_FIGURES:
            rate = self._tokens / (now - self._since)
            self._task.advance(0, {"tokens/s": rate, "answers at once": tokens})
            self._tokens, self._since = 0, now


def write_timing(folder: Path, shard: int, tokens: int, seconds: float) -> None:
    """Note what a shard took, beside the shards, whose bytes must not depend on it."""
    line = json.dumps({"shard": shard, "tokens": tokens, "seconds": round(seconds, 3)})
    with writing(folder / _TIMING), (folder / _TIMING).open("a") as file:
        file.write(line + "\n")


def read_rate(folder: Path) -> float | None:
    """Tokens a second of one process, over all shards whose time was noted; None where nothing is known."""
    tokens, seconds = 0, 0.0
    with suppress(OSError):
        for line in (folder / _TIMING).read_bytes().split(b"\n"):
            with suppress(ValueError, KeyError, TypeError):
                # A line of a run that was killed may be torn.
                noted = json.loads(line)
                tokens, seconds = tokens + noted["tokens"], seconds + noted["seconds"]
    return round(tokens / seconds, 1) if tokens and seconds else None
