"""What is asked: the rows of a benchmark's file, or of any file with prompts."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b, sha256
from typing import Any, Final, NamedTuple

import numpy as np

from stages.data.conversations import UnusableError, check_texts, conversation, split, turns_of, with_system
from stages.data.read import Row, read_rows
from stages.data.text_files import kind
from stages.errors import SepoError
from stages.reporting import printable
from stages.types import Message

COLUMNS: Final = ("prompt", "instruction", "turns", "messages")
"""columns that hold what is asked; the first that a row has is taken"""
IDS: Final = ("id", "prompt_id", "question_id", "uid", "key")
"""columns that hold a row's own id; the first that a row has is taken"""
_UNREAD: Final = ("tools", "chat_template_kwargs", "input")
"""columns without which a row would ask something else"""
_HINT: Final = (
    'a row has a "prompt" (a text, or a list of turns), an "instruction", a list of "turns" that the user says one'
    ' after the other, or "messages"'
)
_NO_ANSWER: Final = "x"
"""stands for the answer where a conversation needs one to be read"""


class Question(NamedTuple):
    """One row of a file of prompts."""

    number: int
    """row number in its file, from 0"""
    question_id: str
    """the benchmark's own id, as text; without one the row number"""
    messages: list[Message]
    """the conversation whose answer is wanted first; it ends with the user's turn"""
    later_turns: tuple[str, ...]
    """what the user says after each answer but the last (MT-Bench has one)"""
    temperature: float | None
    """of this question, where its benchmark says so (MT-Bench by category)"""
    row: dict[str, Any]
    """the row as it was read: what verifiers and official files need of it"""


class QuestionCounts(NamedTuple):
    """What a file of prompts asks for, of one sample."""

    questions: int
    answers: list[int]
    """of each shard"""
    needs_template: int | None
    """row number of the first question of more than one turn"""
    greedy: int
    """questions whose own temperature is 0"""
    first: Question
    digest: str
    """sha256 of those of what each asks, in their order"""


def read_questions(dataset: str) -> Iterator[Question]:
    """The questions of a data set without a benchmark; a row that cannot be asked is a `SepoError`."""
    for row in read_rows(dataset):
        try:
            messages, later = _turns(row)
        except UnusableError as reason:
            raise SepoError(f"{row.where}: {reason}", hint="repair the row, or take it out") from reason
        yield Question(row.number, _question_id(row), messages, later, None, row.columns)


def count_questions(questions: Callable[[], Iterable[Question]], shard_size: int) -> QuestionCounts:
    """Look at all questions; two of one id, or a broken text, are a `SepoError`. Of each, eight bytes stay in memory.

    Args:
        questions: gives them anew with every call.
        shard_size: questions of a shard.
    """
    answers: list[int] = []
    hashes, several, greedy, first, digest = array("Q"), None, 0, None, sha256()
    for count, question in enumerate(questions(), start=1):
        _check_texts(question)
        first = first or question
        asked = "\0".join([question.messages[-1]["content"], *question.later_turns])
        digest.update(sha256(asked.encode()).digest())
        hashes.append(_hash(question.question_id))
        greedy += question.temperature == 0
        if count > shard_size * len(answers):
            answers.append(0)
        answers[-1] += 1 + len(question.later_turns)
        if several is None and (question.later_turns or len(question.messages) > 1):
            several = question.number
    _refuse_twins(questions, hashes)
    # A data set without a row is refused where it is read.
    assert first is not None
    return QuestionCounts(len(hashes), answers, several, greedy, first, digest.hexdigest())


def _check_texts(question: Question) -> None:
    try:
        check_texts([question.question_id, *(turn["content"] for turn in question.messages), *question.later_turns])
    except UnusableError as reason:
        raise SepoError(
            f"row {question.number:,} (from 0) of the prompts: {reason}", hint="repair the row, or take it out"
        ) from reason


def _refuse_twins(questions: Callable[[], Iterable[Question]], hashes: "array[int]") -> None:
    """Answers are told apart by the ids of their questions, and drawn by seeds that are made of them."""
    ordered = np.sort(np.frombuffer(hashes, np.uint64))
    twins = {*ordered[:-1][ordered[1:] == ordered[:-1]].tolist()}
    if not twins:
        return
    first: dict[str, int] = {}
    for question in questions():
        name = question.question_id
        if _hash(name) in twins and first.setdefault(name, question.number) != question.number:
            raise SepoError(
                f"rows {first[name]:,} and {question.number:,} (from 0) have the same id {printable(name)[:80]!r}",
                hint="give each row an id of its own, or leave that column out: then the row number is its id",
            )


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


def _turns(row: Row) -> tuple[list[Message], tuple[str, ...]]:
    """The conversation that a row begins with, and what its user says later."""
    column = next((name for name in COLUMNS if row.columns.get(name) is not None), None)
    if column is None:
        names = ", ".join(printable(str(name))[:40] for name in [*row.columns][:20])
        raise SepoError(f"{row.where}: nothing to ask; its columns are {names or 'none'}", hint=_HINT)
    unread = next((name for name in _UNREAD if row.columns.get(name)), None)
    if unread is not None:
        raise SepoError(
            f'{row.where}: "{unread}" is not asked with, and the answers would be to something else',
            hint="make it a part of the prompt, or take the column out",
        )
    value = row.columns[column]
    if column == "turns":
        first, *later = _texts(row, value)
        value, column = first, "prompt"
        return _asked(row, value), tuple(later)
    if column == "instruction" and not isinstance(value, str):
        raise SepoError(f'{row.where}: "instruction" is {kind(value)}, not text', hint=_HINT)
    if column == "messages":
        value = turns_of(value, column, row.where, _HINT)
        # What a data set has for an answer is what is asked for.
        value = value[:-1] if value and value[-1]["role"] == "assistant" else value
    return _asked(row, value), ()


def _asked(row: Row, prompt: Any) -> list[Message]:
    """A prompt as preference data holds it, text or turns, as a conversation that ends where an answer is expected."""
    if isinstance(prompt, list) and not prompt:
        raise SepoError(f"{row.where}: the prompt has no turn", hint=_HINT)
    bare: Mapping[str, Any] = {"prompt": prompt, "completion": _NO_ANSWER}
    turns = conversation(row._replace(columns=dict(bare)), "completion", _HINT)
    return split(with_system(row, turns))[0]


def _texts(row: Row, value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind(value)
        raise SepoError(f'{row.where}: "turns" is {found}, not what a user says one after the other', hint=_HINT)
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, str) or not turn.strip():
            found = "empty" if isinstance(turn, str) else f"{kind(turn)}, not text"
            raise SepoError(f"{row.where}: turn {number} of {len(value)} is {found}", hint=_HINT)
    return value


def _question_id(row: Row) -> str:
    column = next((name for name in IDS if row.columns.get(name) is not None), None)
    if column is None:
        return str(row.number)
    value = row.columns[column]
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        found = "empty" if value == "" else kind(value)
        raise SepoError(f'{row.where}: "{column}" is {found}, and no id', hint="an id is a text or a whole number")
    return str(value)
