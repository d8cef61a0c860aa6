"""One shard of questions, answered: every sample of every question, turn after turn."""

import hashlib
import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from stages.errors import SepoError
from stages.generation.engine import Generated, GenerationEngine, Request
from stages.generation.journal import AnswerKey, Journal
from stages.generation.questions import Question
from stages.reporting import Task
from stages.store.answers import Answer
from stages.types import Message

UNANSWERED: Final = "the turn before has no answer"
_SEEDS: Final = 1 << 31
"""what every engine takes, and servers too"""


class RequestSettings(NamedTuple):
    """How all questions are asked."""

    temperature: float | None
    """of every question; None: its own, or else the usual one"""
    usual_temperature: float
    top_p: float
    max_new_tokens: int
    samples: int
    seed: int

    def request(self, question: Question, messages: list[Message], key: AnswerKey) -> Request:
        """What an engine is asked."""
        own = self.usual_temperature if question.temperature is None else question.temperature
        temperature = own if self.temperature is None else self.temperature
        seed = answer_seed(self.seed, question.question_id, key.sample, key.turn)
        return Request(messages, temperature, self.top_p, self.max_new_tokens, seed)


def answer_seed(seed: int, question_id: str, sample: int, turn: int) -> int:
    """The seed of one answer: it depends neither on the model nor on which other questions are asked."""
    name = json.dumps([seed, question_id, sample, turn]).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) % _SEEDS


def answer_shard(
    questions: Sequence[Question], engine: GenerationEngine, settings: RequestSettings, journal: Journal, task: Task
) -> list[Answer]:
    """All answers to some questions, by question, sample and turn.

    Args:
        journal: open; what it knows is not asked again, and what comes is written down there.
        task: advances by one with each answer.
    """
    conversations = {
        AnswerKey(question.number, sample, 0): (question, [*question.messages])
        for question in questions
        for sample in range(settings.samples)
    }
    answers: list[Answer] = []
    for turn in range(1 + max(len(question.later_turns) for question in questions)):
        asked = {key._replace(turn=turn): found for key, found in conversations.items() if _has(found[0], turn)}
        generated = _answered(asked, engine, settings, journal, task)
        for key, (question, messages) in asked.items():
            answers.append(_answer(question, key, [*messages], generated[key]))
            if _has(question, turn + 1):
                messages.append({"role": "assistant", "content": generated[key].text})
                messages.append({"role": "user", "content": question.later_turns[turn]})
    return sorted(answers, key=lambda answer: (answer.question, answer.sample, answer.turn))


def _has(question: Question, turn: int) -> bool:
    return turn <= len(question.later_turns)


def _answered(
    asked: dict[AnswerKey, tuple[Question, list[Message]]],
    engine: GenerationEngine,
    settings: RequestSettings,
    journal: Journal,
    task: Task,
) -> dict[AnswerKey, Generated]:
    """The answers of one turn."""
    requests = {
        key: settings.request(question, messages, key)
        for key, (question, messages) in asked.items()
        if not key.turn or _earlier(journal, key)
    }
    missing = _missing(requests, engine, journal)
    task.advance(len(asked) - len(missing))
    for index, answer in engine.answers([requests[key] for key in missing]) if missing else ():
        journal.add(missing[index], answer)
        task.advance()
    lost = [key for key in missing if key not in journal.answers]
    if lost:
        raise SepoError(
            f"the engine gave no answer to {len(lost):,} of {len(missing):,} requests (first: row {lost[0].question})",
            hint="run the same again: what was answered is kept",
        )
    unasked = Generated("", False, problem=UNANSWERED)
    return {key: journal.answers[key] if key in requests else unasked for key in asked}


def _missing(requests: dict[AnswerKey, Request], engine: GenerationEngine, journal: Journal) -> list[AnswerKey]:
    """What is to be asked: what the journal does not know, with all that was computed together with it.

    A batch decides the last bits of its answers, and a bit may decide a token: a batch is asked again as it was.
    """
    keys = list(requests)
    unknown = {key for key in keys if key not in journal.answers}
    if not unknown or len(unknown) == len(keys):
        return [key for key in keys if key in unknown]
    groups = [{keys[index] for index in group} for group in engine.together(list(requests.values()))]
    again = {key for group in groups for key in group if not unknown.isdisjoint(group)}
    if again != unknown:
        journal.keep([key for key in journal.answers if key not in again])
    return [key for key in keys if key in again]


def _earlier(journal: Journal, key: AnswerKey) -> bool:
    """Whether the turn before has an answer."""
    before = journal.answers.get(key._replace(turn=key.turn - 1))
    return before is not None and not before.problem


def _answer(question: Question, key: AnswerKey, messages: list[Message], generated: Generated) -> Answer:
    said = generated._asdict()
    return Answer(question.number, question.question_id, key.sample, key.turn, messages, row=question.row, **said)
