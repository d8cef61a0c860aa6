"""What answers are ranked by: an oracle's scores, a verifier, or a file of rewards."""

import importlib
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final, Protocol

import numpy as np

from stages.data.read import read_rows
from stages.errors import SepoError, borrowed
from stages.generation.best_and_worst import Reward
from stages.models.scorer import Scorer
from stages.reporting import Quiet, printable
from stages.store.answers import Answer
from stages.tokens.encode import Encoder
from stages.types import Dropped, Pair, TokenPair

Verifier = Callable[[dict[str, Any], str], float | None]
"""of the prompt's row and the answer's text; None where it cannot tell"""
NO_REWARD: Final = "without a reward"
NO_QUESTION: Final = "of a question that was not asked"
NO_SAMPLE: Final = "of a sample that is not there"
_REWARDS_HINT: Final = 'a row is like {"question_id": "7", "sample": 0, "reward": 1.5}; --column names another column'


class Ranking(Protocol):
    """Whatever tells how good answers are."""

    def rewards(self, answers: list[Answer]) -> list[Reward]:
        """One for each answer: finite, higher is better; or why it has none. Those to one prompt come together."""


class OracleRanking:
    """The sum of an answer's token scores, oracle minus reference log-prob, nats; or their mean."""

    def __init__(self, scorer: Scorer, encoder: Encoder, max_length: int, *, per_token: bool) -> None:
        """Args: max_length: most tokens of prompt and answer; a longer answer has no reward."""
        self._scorer, self._encoder = scorer, encoder
        self._max_length, self._per_token = max_length, per_token

    def rewards(self, answers: list[Answer]) -> list[Reward]:
        """Encoded as `sepo score` encodes them in a pair."""
        texts = [Pair(index, answer.messages, answer.text, rejected="") for index, answer in enumerate(answers)]
        encoded = self._encoder.encode_all(texts)
        found = [self._unfit(item) for item in encoded]
        fit = [item for item, reason in zip(encoded, found, strict=True) if isinstance(item, TokenPair) and not reason]
        # Two answers to one prompt are a pair to the scorer, and share its computation.
        joined = [
            (first, second)
            for _, group in groupby(fit, key=lambda item: item.prompt_ids.tobytes())
            for first, second in _by_two([*group])
        ]
        pairs = [first._replace(rejected_ids=second.chosen_ids) for first, second in joined]
        rewards: list[Reward] = [reason or 0.0 for reason in found]
        for scored, both in zip(self._scorer.score(pairs, Quiet()) if pairs else [], joined, strict=True):
            for item, scores in zip(both, scored.scores, strict=True):
                reward = float(np.sum(scores, dtype=np.float64))
                rewards[item.pair_id] = _finite(reward / len(scores) if self._per_token else reward)
        return rewards

    def _unfit(self, item: TokenPair | Dropped) -> str:
        if isinstance(item, Dropped):
            return item.reason
        length = len(item.prompt_ids) + len(item.chosen_ids)
        return f"longer than {self._max_length:,} tokens" if length > self._max_length else ""


class VerifierRanking:
    """What a function makes of the prompt's row and the answer's text."""

    def __init__(self, name: str, verifier: Verifier) -> None:
        self._name, self._verifier = name, verifier

    def rewards(self, answers: list[Answer]) -> list[Reward]:
        return [self._reward(answer) for answer in answers]

    def _reward(self, answer: Answer) -> Reward:
        which = f"question {printable(answer.question_id)}, sample {answer.sample}"
        hint = "the function has to take every row of the prompts"
        with borrowed(f"--verifier {self._name} fails at {which}", hint), _no_exit():
            value = self._verifier(answer.row, answer.text)
        if value is None:
            return NO_REWARD
        with borrowed(f"--verifier {self._name} gives no number at {which}", "return a float, or None"):
            number = float(value)
        if not math.isfinite(number):
            raise SepoError(f"--verifier {self._name} gives {number} at {which}", hint="return a finite float, or None")
        return number


class GivenRanking:
    """Rewards that are known: of a question's id and a sample's number."""

    def __init__(self, known: Mapping[tuple[str, int], float]) -> None:
        self._known = known

    def rewards(self, answers: list[Answer]) -> list[Reward]:
        found = [self._known.get((answer.question_id, answer.sample)) for answer in answers]
        return [NO_REWARD if reward is None else reward for reward in found]


def strays(known: Iterable[tuple[str, int]], answered: Iterable[tuple[str, int]]) -> Counter[str]:
    """Why known rewards are of no answer. Args: known, answered: question_id and sample."""
    there = {*answered}
    questions = {question for question, _ in there}
    return Counter(NO_SAMPLE if key[0] in questions else NO_QUESTION for key in known if key not in there)


def load_verifier(name: str, known: Collection[str]) -> Verifier:
    """The function that ``module:function`` means. Args: known: names of others, for the hint."""
    module, colon, function = name.partition(":")
    if not colon:
        raise SepoError(f"there is no verifier {name}", hint=f"give {', '.join(known)}, or module:function of your own")
    # As `python -m` has it, and an installed program does not.
    sys.path.insert(0, os.getcwd())
    try:
        hint = "run sepo in the folder that holds its file"
        with borrowed(f"--verifier {name}: {module} cannot be imported", hint), _no_exit():
            found = getattr(importlib.import_module(module), function, None)
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise SepoError(f"--verifier {name}: {module} has no function {function}", hint="give module:function")
    return found  # type: ignore[no-any-return]


def read_rewards(file: str, column: str) -> dict[tuple[str, int], float]:
    """The rewards of a file by question_id, as text, and sample; a null is none."""
    known: dict[tuple[str, int], float] = {}
    for row in read_rows(file):
        missing = [name for name in ("question_id", "sample", column) if name not in row.columns]
        if missing:
            raise SepoError(f'{row.where}: no column "{missing[0]}"', hint=_REWARDS_HINT)
        if row.columns[column] is None:
            continue
        with borrowed(f'{row.where}: "sample" or "{column}" is no number', _REWARDS_HINT):
            sample, reward = float(row.columns["sample"]), float(row.columns[column])
        if not sample.is_integer():
            raise SepoError(f'{row.where}: "sample" is {sample}, no whole number', hint=_REWARDS_HINT)
        key = (str(row.columns["question_id"]), int(sample))
        if not math.isfinite(reward):
            raise SepoError(f'{row.where}: "{column}" is {reward}', hint="give finite rewards; null for none")
        if key in known:
            raise SepoError(
                f"{row.where}: a second reward of question {key[0]}, sample {key[1]}",
                hint="give one row for each answer, of one model",
            )
        known[key] = reward
    return known


@contextmanager
def _no_exit() -> Iterator[None]:
    """Code of others that ends the program would end it as if all were done."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"it ends the program, with {error.code!r}") from error


def _by_two(items: list[TokenPair]) -> list[tuple[TokenPair, TokenPair]]:
    """Neighbours; the last one, where there is no other, with itself."""
    return [(first, second) for first, second in zip(items[::2], [*items[1::2], items[-1]], strict=False)]


def _finite(reward: float) -> float:
    if not math.isfinite(reward):
        raise SepoError(
            "the oracle gives a score that is not finite", hint="its training has diverged, or its weights are damaged"
        )
    return reward
