"""What is asked: the rows of a benchmark's file, or of any file with prompts."""

from typing import Any, NamedTuple

from stages.types import Message


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
