"""The journal of a shard that is not whole yet: a line for each answer as it comes.

A kill loses the line that was being written, and no other. The first line says whose journal it is.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from stages.errors import SepoError, one_line
from stages.generation.engine import Generated
from stages.store.files import write_bytes, writing


class AnswerKey(NamedTuple):
    """Which answer of a model one is."""

    question: int
    """row number"""
    sample: int
    turn: int


class Journal:
    """The answers of an unfinished shard, on disk. A context: it is open while answers come.

    Args:
        fingerprint: of the run; what another one wrote counts for nothing.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._head = {"fingerprint": fingerprint, "journal": path.name}
        self._file: BinaryIO | None = None
        self.answers = self._read()
        """what is known"""
        self.tokens = 0
        """of the answers that were added"""

    def __enter__(self) -> Self:
        self.keep(self.answers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def keep(self, keys: Iterable[AnswerKey]) -> None:
        """Forget all answers but these, and go on behind them."""
        self._close()
        self.answers = {key: self.answers[key] for key in keys}
        lines = [_line(self._head), *(_line(_as_json(key, answer)) for key, answer in self.answers.items())]
        write_bytes(self._path, b"".join(lines))
        with writing(self._path):
            self._file = self._path.open("ab")

    def add(self, key: AnswerKey, answer: Generated) -> None:
        """Write down an answer."""
        assert self._file is not None
        with writing(self._path):
            self._file.write(_line(_as_json(key, answer)))
            self._file.flush()
        self.answers[key] = answer
        self.tokens += 0 if answer.answer_ids is None else len(answer.answer_ids)

    def remove(self) -> None:
        """The shard is whole."""
        self._close()
        with writing(self._path):
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            with writing(self._path):
                self._file.close()
            self._file = None

    def _read(self) -> dict[AnswerKey, Generated]:
        """What a run that was stopped left, up to the first line that is not whole."""
        found: dict[AnswerKey, Generated] = {}
        try:
            head, *lines = self._path.read_bytes().split(b"\n")[:-1] or [b""]
        except FileNotFoundError:
            return found
        except OSError as error:
            raise SepoError(
                f"cannot read {self._path}: {one_line(error)}",
                hint="repair it, or delete it: its answers are asked again",
            ) from error
        if head + b"\n" != _line(self._head):
            return found
        with suppress(ValueError, TypeError, KeyError, OverflowError, AttributeError):
            for line in lines:
                key, answer = _from_json(json.loads(line))
                found[key] = answer
        return found


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _as_json(key: AnswerKey, answer: Generated) -> dict[str, Any]:
    lists = {name: value.tolist() for name, value in answer._asdict().items() if isinstance(value, np.ndarray)}
    return {"key": key, **answer._asdict(), **lists}


def _from_json(found: dict[str, Any]) -> tuple[AnswerKey, Generated]:
    key, kinds = AnswerKey(*found.pop("key")), {"prompt_ids": np.int32, "answer_ids": np.int32, "logps": np.float32}
    arrays = {name: np.array(found[name], kind) for name, kind in kinds.items() if found[name] is not None}
    return key, Generated(**{**found, **arrays})
