"""The layouts of published data sets and of other tools, each under the columns that give it away.

Each function turns a row into two whole conversations, the chosen one and the rejected one. Where several answers
are ranked or voted on, a tie has no better answer and is counted as such.
"""

import json
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from stages.data.conversations import NO_ANSWER, ONE_ANSWER, TIE, UNEVEN, UnusableError, conversation_list, turns_of
from stages.data.read import Row, kind
from stages.errors import SepoError
from stages.types import Message

Sides = tuple[list[Message], list[Message]]
"""the chosen and the rejected conversation"""

_HINT: Final = (
    "compare with the published columns; other columns are named by --columns prompt=...,chosen=...,rejected=..."
)


class Layout(NamedTuple):
    """A layout that is recognised because all of its columns are there, whatever they hold."""

    name: str
    needs: frozenset[str]
    read: Callable[[Row], Sides]
    takes: frozenset[str] = frozenset()
    """further columns that it reads where they are there"""


def _shp(row: Row) -> Sides:
    """``history``, ``human_ref_A``, ``human_ref_B``; ``labels`` is 1 where A is preferred, else 0."""
    prompt = [_user(_text(row, "history"))]
    first, second = (_answered(prompt, _text(row, f"human_ref_{letter}")) for letter in "AB")
    return _better(first, second, first_won=_flag(row, "labels"))


def _arena(row: Row) -> Sides:
    """``conversation_a``, ``conversation_b``: turns; ``winner``: model_a, model_b, tie, tie (bothbad) or both_bad."""
    first, second = (conversation_list(row, f"conversation_{letter}", _HINT) for letter in "ab")
    winner = _text(row, "winner")
    if winner in {"tie", "tie (bothbad)", "both_bad"}:
        raise UnusableError(TIE)
    if winner not in {"model_a", "model_b"}:
        raise _fault(row, f'"winner" is {winner[:40]!r}, not model_a, model_b or a tie')
    return _better(first, second, first_won=winner == "model_a")


def _kaggle_arena(row: Row) -> Sides:
    """``prompt``, ``response_a``, ``response_b``: JSON lists of texts, one for each turn, an unanswered one null;
    ``winner_model_a``, ``winner_model_b``, ``winner_tie``: one of them is 1, the others are 0."""
    questions = [text or "" for text in _texts(row, "prompt")]
    sides = []
    for column in ("response_a", "response_b"):
        answers = [text or "" for text in _texts(row, column)]
        if len(answers) != len(questions):
            raise UnusableError(UNEVEN)
        pairs = zip(questions, answers, strict=True)
        sides.append([turn for question, answer in pairs for turn in (_user(question), _assistant(answer))])
    first, second, tie = (_flag(row, f"winner_{name}") for name in ("model_a", "model_b", "tie"))
    if first + second + tie != 1:
        raise _fault(row, f"{first + second + tie} of winner_model_a, winner_model_b and winner_tie are 1, not one")
    if tie:
        raise UnusableError(TIE)
    return _better(*sides, first_won=first)


def _summaries(row: Row) -> Sides:
    """``info``: subreddit, title and post, or article; ``summaries``: two of {text}; ``choice``: the better one's
    place, 0 or 1. The prompt is worded as in the paper's code, with ``TL;DR:`` at its end."""
    prompt = [_user(_to_summarise(row))]
    summaries = row.columns["summaries"]
    if not isinstance(summaries, list):
        raise _fault(row, f'"summaries" is {kind(summaries)}, not a list of two summaries')
    if len(summaries) != 2:
        raise _fault(row, f'"summaries" is a list of {len(summaries)}, not of two summaries')
    first, second = (_answered(prompt, _part(row, "summaries item", summary, "text")) for summary in summaries)
    return _better(first, second, first_won=not _flag(row, "choice"))


def _to_summarise(row: Row) -> str:
    info = row.columns["info"]
    if isinstance(info, dict) and info.get("post") is None and info.get("article") is not None:
        return f"Article:\n{_part(row, 'info', info, 'article')}\n\nTL;DR:"
    post, title, subreddit = (_part(row, "info", info, key) for key in ("post", "title", "subreddit"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def _webgpt(row: Row) -> Sides:
    """``question``: an object with full_text; ``answer_0``, ``answer_1``; ``score_0``, ``score_1``: more is better."""
    prompt = [_user(_part(row, "question", row.columns["question"], "full_text"))]
    first, second = (_answered(prompt, _text(row, f"answer_{number}")) for number in (0, 1))
    scores = [_number(row, f"score_{number}", row.columns[f"score_{number}"]) for number in (0, 1)]
    if scores[0] == scores[1]:
        raise UnusableError(TIE)
    return _better(first, second, first_won=scores[0] > scores[1])


def _alpaca(row: Row) -> Sides:
    """``instruction``, ``chosen``, ``rejected``: texts; perhaps ``input``, which follows the instruction on a new line,
    ``history``: [question, answer] pairs, and ``system``."""
    question = "\n".join(text for text in (_text(row, "instruction"), _text(row, "input", optional=True)) if text)
    prompt = [*_history(row), _user(question)]
    return _answered(prompt, _text(row, "chosen")), _answered(prompt, _text(row, "rejected"))


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
    column = "conversations"
    prompt = turns_of(row.columns[column], column, row.where, _HINT, sharegpt=True)
    chosen, rejected = (
        prompt + turns_of([row.columns[side]], side, row.where, _HINT, sharegpt=True) for side in ("chosen", "rejected")
    )
    return chosen, rejected


def _swift_response(row: Row) -> Sides:
    """``messages``: a whole conversation, its last turn the chosen answer; ``rejected_response``: the other answer."""
    chosen = conversation_list(row, "messages", _HINT)
    rejected = _text(row, "rejected_response")
    if not chosen or chosen[-1]["role"] != "assistant":
        raise UnusableError(NO_ANSWER)
    return chosen, _answered(chosen[:-1], rejected)


def _swift_messages(row: Row) -> Sides:
    """``messages``, ``rejected_messages``: whole conversations."""
    return conversation_list(row, "messages", _HINT), conversation_list(row, "rejected_messages", _HINT)


def _nemo(row: Row) -> Sides:
    """``context``: turns; ``completions``: a list of {rank, completion: turns}, the lowest rank is the best.

    The best completion is held against the worst; of several equal ones the first is taken."""
    context = conversation_list(row, "context", _HINT)
    completions = row.columns["completions"]
    if not isinstance(completions, list):
        raise _fault(row, f'"completions" is {kind(completions)}, not a list')
    ranked: list[tuple[float, list[Message]]] = []
    for number, item in enumerate(completions, start=1):
        place = f"completions item {number}"
        if not isinstance(item, dict) or not {"rank", "completion"} <= item.keys():
            raise _fault(row, f'"{place}" is not an object with rank and completion')
        turns = turns_of(item["completion"], place, row.where, _HINT)
        ranked.append((_number(row, f"{place} rank", item["rank"]), turns))
    if len(ranked) < 2:
        raise UnusableError(ONE_ANSWER)
    best, worst = min(ranked, key=lambda item: item[0]), max(ranked, key=lambda item: item[0])
    if best[0] == worst[0]:
        raise UnusableError(TIE)
    return context + best[1], context + worst[1]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _answered(prompt: list[Message], answer: str) -> list[Message]:
    return [*prompt, _assistant(answer)]


def _better(first: list[Message], second: list[Message], *, first_won: bool) -> Sides:
    return (first, second) if first_won else (second, first)


def _text(row: Row, column: str, *, optional: bool = False) -> str:
    value = row.columns.get(column)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise _fault(row, f'"{column}" is {kind(value)}, not text')
    return value


def _part(row: Row, column: str, value: Any, key: str) -> str:
    """The text under a key of an object in a column."""
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        found = kind(value.get(key)) if isinstance(value, dict) and key in value else None
        problem = f'"{column}.{key}" is {found}, not text' if found else f'"{column}" is not an object with "{key}"'
        raise _fault(row, problem)
    return str(value[key])


def _texts(row: Row, column: str) -> list[str | None]:
    """The list of texts, or of nulls, that a column holds as JSON, or as it is."""
    value = row.columns[column]
    try:
        # A lone surrogate may be escaped in it; the row is dropped for that later.
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise _fault(row, f'"{column}" is not JSON') from error
    if not isinstance(found, list) or not all(text is None or isinstance(text, str) for text in found):
        raise _fault(row, f'"{column}" is not a list of texts')
    return found


def _flag(row: Row, column: str) -> bool:
    number = _number(row, column, row.columns[column])
    if number not in {0, 1}:
        raise _fault(row, f'"{column}" is {number:g}, not 0 or 1')
    return number == 1


def _number(row: Row, column: str, value: Any) -> float:
    """A number, which in a CSV file is a text."""
    try:
        number = float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or math.isnan(number):
        raise _fault(row, f'"{column}" is {kind(value) if number is None else "NaN"}, not a number')
    return number


def _fault(row: Row, problem: str) -> SepoError:
    return SepoError(f"{row.where}: {problem}", hint=_HINT)


def _published(name: str, columns: str, read: Callable[[Row], Sides], *takes: str) -> Layout:
    return Layout(f"{name}: {columns}", frozenset(columns.split(", ")), read, frozenset(takes))


PUBLISHED: Final = (
    _published("Stanford SHP", "history, human_ref_A, human_ref_B, labels", _shp),
    _published("lmsys arena", "conversation_a, conversation_b, winner", _arena),
    _published(
        "lmsys arena (Kaggle)",
        "prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie",
        _kaggle_arena,
    ),
    _published("OpenAI summarize_from_feedback", "info, summaries, choice", _summaries),
    _published("OpenAI webgpt_comparisons", "question, answer_0, answer_1, score_0, score_1", _webgpt),
    _published("LLaMA-Factory sharegpt", "conversations, chosen, rejected", _sharegpt),
    _published("LLaMA-Factory alpaca", "instruction, chosen, rejected", _alpaca, "input", "history"),
    _published("ms-swift", "messages, rejected_response", _swift_response),
    _published("ms-swift", "messages, rejected_messages", _swift_messages),
    _published("NeMo", "context, completions", _nemo),
)
