"""Several answers to a prompt as one preference pair: which are of use, and which two of them."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, NamedTuple

from stages.reporting import counted
from stages.store.answers import Answer
from stages.types import Message

PROBLEM: Final = "no answer was generated"
LATER_TURN: Final = "of a later turn"
EMPTY: Final = "empty"
CUT: Final = "cut before its end"
REPEATED: Final = "an earlier sample has the same text"
TOO_FEW: Final = "fewer than two usable answers"
TIE: Final = "all rewards are equal"
TOO_CLOSE: Final = "gap below min_gap"

Reward = float | str
"""an answer's reward, or why it has none"""
Graded = tuple[Answer, float]


class Chosen(NamedTuple):
    """A preference pair, and what its answers were worth."""

    chosen: Answer
    rejected: Answer
    chosen_reward: float
    rejected_reward: float

    def as_row(self, known: list[Graded]) -> dict[str, Any]:
        """As a row of a data set. Args: known: all answers that it was chosen from."""
        return {
            "prompt": self.chosen.messages,
            "chosen": _turn(self.chosen),
            "rejected": _turn(self.rejected),
            "question_id": self.chosen.question_id,
            "chosen_reward": self.chosen_reward,
            "rejected_reward": self.rejected_reward,
            "chosen_sample": self.chosen.sample,
            "rejected_sample": self.rejected.sample,
            "rewards": [{"sample": answer.sample, "reward": reward} for answer, reward in known],
        }


@dataclass
class PairCounts:
    """What became of prompts and answers."""

    prompts: int = 0
    answers: int = 0
    kept: int = 0
    """prompts that gave a pair"""
    left_out: Counter[str] = field(default_factory=Counter)
    """answers, by reason"""
    dropped: Counter[str] = field(default_factory=Counter)
    """prompts, by reason"""
    rewards: int = 0
    """that were given in a file"""
    strays: Counter[str] = field(default_factory=Counter)
    """given rewards that are of no answer, by reason"""

    def as_json(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "answers": self.answers,
            "answers_left_out": dict(sorted(self.left_out.items())),
            "rewards": self.rewards,
            "rewards_left_out": dict(sorted(self.strays.items())),
        }

    def __str__(self) -> str:
        """``40 prompts = 31 pairs + 9 without (9 all rewards are equal); 12 of 160 answers left out (12 empty)``."""
        text = f"{counted(self.prompts, 'prompt')} = {counted(self.kept, 'pair')} + {self.dropped.total():,} without"
        text += _reasons(self.dropped)
        return f"{text}; {self.left_out.total():,} of {self.answers:,} answers left out{_reasons(self.left_out)}"


def by_prompt(answers: Iterable[Answer]) -> Iterator[list[Answer]]:
    """All answers to each prompt, which come one behind the other."""
    for _, group in itertools.groupby(answers, key=lambda answer: answer.question):
        yield list(group)


def usable(answers: list[Answer], counts: PairCounts, *, keep_cut: bool) -> list[Answer]:
    """The answers to one prompt that may stand in a pair; the others are counted."""
    texts: set[str] = set()
    found = []
    for answer in answers:
        reason = _fault(answer, keep_cut=keep_cut) or (REPEATED if answer.text in texts else "")
        if reason:
            counts.left_out[reason] += 1
        else:
            texts.add(answer.text)
            found.append(answer)
    return found


def _fault(answer: Answer, *, keep_cut: bool) -> str:
    if answer.turn:
        # It answers a conversation that no other sample had.
        return LATER_TURN
    if answer.problem:
        return PROBLEM
    if not answer.text.strip():
        return EMPTY
    return "" if answer.ended or keep_cut else CUT


def best_and_worst(known: list[Graded], min_gap: float) -> Chosen | str:
    """The answer with the highest reward and that with the lowest, each the earliest of several; or why there is none.

    Args:
        known: answers to one prompt, with finite rewards.
        min_gap: least difference; a tie makes no pair, whatever this is.
    """
    if len(known) < 2:
        return TOO_FEW
    best, worst = max(known, key=itemgetter(1)), min(known, key=itemgetter(1))
    # What differs by rounding alone is equal: 0.3 - 0.2 is 0.1, and 0.1 + 0.2 is 0.3.
    if math.isclose(best[1], worst[1]):
        return TIE
    gap = best[1] - worst[1]
    if gap < min_gap and not math.isclose(gap, min_gap):
        return TOO_CLOSE
    return Chosen(best[0], worst[0], best[1], worst[1])


def _turn(answer: Answer) -> list[Message]:
    """A list of turns, and no text, which might begin with what a layout gives a meaning."""
    return [{"role": "assistant", "content": answer.text}]


def _reasons(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{count:,} {reason}' for reason, count in counts.most_common())})" if counts else ""
