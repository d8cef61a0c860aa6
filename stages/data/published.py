"""The layouts of other tools for preference data, each under the columns that give it away.

Each function turns a row into two whole conversations, the chosen one and the rejected one. Where several answers
are ranked, a tie has no better answer and is counted as such.
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from stages.data.conversations import NO_ANSWER, UnusableError, turns_of
from stages.data.read import Row
from stages.data.text_files import kind
from stages.errors import SepoError
from stages.types import Message

Sides = tuple[list[Message], list[Message]]
"""the chosen and the rejected conversation"""

_HINT: Final = (
    "compare with the published columns; other columns are named by --columns prompt=...,chosen=...,rejected=..."
)


class DataLayout(NamedTuple):
    """A layout that is recognised because all of its columns are there, whatever they hold."""

    name: str
    needs: frozenset[str]
    read: Callable[[Row], Sides]
    takes: frozenset[str] = frozenset()
    """further columns that it reads where they are there"""


def _alpaca(row: Row) -> Sides:
    """``instruction``, ``chosen``, ``rejected``: texts; perhaps ``input``, which follows the instruction on a new line,
    ``history``: [question, answer] pairs, and ``system``."""
    more = "" if row.columns.get("input") is None else _text(row, "input")
    question = "\n".join(filter(None, (_text(row, "instruction"), more)))
    prompt = [*_history(row), _user(question)]
    return [*prompt, _assistant(_text(row, "chosen"))], [*prompt, _assistant(_text(row, "rejected"))]


def _history(row: Row) -> list[Message]:
    rounds = row.columns.get("history") or []
    if not isinstance(rounds, list):
        raise _fault(row, f'"history" is {kind(rounds)}, not a list of [question, answer]')
    turns: list[Message] = []
    for number, spoken in enumerate(rounds, start=1):
        match spoken:
            case [str(question), str(answer)]:
                turns += [_user(question), _assistant(answer)]
            case _:
                raise _fault(row, f'"history" item {number} is not [question, answer]')
    return turns


def _sharegpt(row: Row) -> Sides:
    """``conversations``: turns of from and value; ``chosen``, ``rejected``: one such turn each; perhaps ``system``."""
    held = {"conversations": row.columns["conversations"]} | {
        side: [row.columns[side]] for side in ("chosen", "rejected")
    }
    prompt, chosen, rejected = (turns_of(turns, name, row.where, _HINT, sharegpt=True) for name, turns in held.items())
    return prompt + chosen, prompt + rejected


def _swift_response(row: Row) -> Sides:
    """``messages``: a whole conversation, its last turn the chosen answer; ``rejected_response``: the other answer."""
    chosen = _turns(row, "messages")
    rejected = _text(row, "rejected_response")
    if not chosen or chosen[-1]["role"] != "assistant":
        raise UnusableError(NO_ANSWER)
    return chosen, [*chosen[:-1], _assistant(rejected)]


def _swift_messages(row: Row) -> Sides:
    """``messages``, ``rejected_messages``: whole conversations."""
    return _turns(row, "messages"), _turns(row, "rejected_messages")


def _nemo(row: Row) -> Sides:
    """``context``: turns; ``completions``: a list of {rank, completion: turns}, the lowest rank is the best.

    The best completion is held against the worst; of several equal ones the first is taken."""
    context = _turns(row, "context")
    completions = row.columns["completions"]
    if not isinstance(completions, list):
        raise _fault(row, f'"completions" is {kind(completions)}, not a list')
    ranked: list[tuple[float, list[Message]]] = []
    for number, item in enumerate(completions, start=1):
        place = f"completions item {number}"
        if not isinstance(item, dict) or not {"rank", "completion"} <= item.keys():
            raise _fault(row, f'"{place}" is not an object with rank and completion')
        turns = turns_of(item["completion"], place, row.where, _HINT)
        rank = as_number(item["rank"])
        if rank is None or math.isnan(rank):
            problem = kind(item["rank"]) if rank is None else "NaN"
            raise _fault(row, f'"{place} rank" is {problem}, not a number')
        ranked.append((rank, turns))
    if len(ranked) < 2:
        raise UnusableError("fewer than two answers")
    best, worst = min(ranked, key=lambda item: item[0]), max(ranked, key=lambda item: item[0])
    if best[0] == worst[0]:
        raise UnusableError("tie")
    return context + best[1], context + worst[1]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _turns(row: Row, column: str) -> list[Message]:
    return turns_of(row.columns[column], column, row.where, _HINT)


def _text(row: Row, column: str) -> str:
    value = row.columns.get(column)
    if not isinstance(value, str):
        raise _fault(row, f'"{column}" is {kind(value)}, not text')
    return value


def as_number(value: Any) -> float | None:
    """A number, which in a CSV file is a text; None for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None


def _fault(row: Row, problem: str) -> SepoError:
    return SepoError(f"{row.where}: {problem}", hint=_HINT)


PUBLISHED: Final = tuple(
    DataLayout(f"{name}: {columns}", frozenset(columns.split(", ")), read, frozenset(takes))
    for name, columns, read, *takes in (
        ("LLaMA-Factory sharegpt", "conversations, chosen, rejected", _sharegpt),
        ("LLaMA-Factory alpaca", "instruction, chosen, rejected", _alpaca, "input", "history"),
        ("ms-swift", "messages, rejected_response", _swift_response),
        ("ms-swift", "messages, rejected_messages", _swift_messages),
        ("NeMo", "context, completions", _nemo),
    )
)
