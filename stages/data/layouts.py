"""Rows to pairs. The layout is recognised row by row from its columns; there is no flag for it.

Preference data, for `read_pairs`:

====================================  ==============================================================================
columns                               what is read
====================================  ==============================================================================
prompt, chosen, rejected: text        the prompt is one user turn
prompt, and answers as turns          the turns answer the prompt, or are whole conversations that hold it (a system
                                      turn may come first), such as ``HuggingFaceH4/ultrafeedback_binarized``
chosen, rejected: turns               whole conversations; the prompt is their common beginning
chosen, rejected: dialogues as text   the same, written like HH-RLHF (below)
prompt: a dialogue as text, and       the dialogue's turns are the prompt
answers as text
====================================  ==============================================================================

Whatever the layout, the last assistant turn is the answer, what precedes it must be the same for both, and turns go
system (at most once, first), user, assistant, user, assistant ...

Text is kept exactly as it is, blanks at either end included. The one exception is a text (never a turn of a list)
that starts with a mark of HH-RLHF, as in ``"\\n\\nHuman: question\\n\\nAssistant: answer"``: the marks go, and with
each of them *one* blank after it, also where that blank stands in an answer whose prompt ends in ``"Assistant:"``.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from stages.currency import Dropped, Message, Pair
from stages.data.read import Row, kind, read_rows
from stages.errors import SepoError

EMPTY_PROMPT: Final = "empty prompt"
EMPTY_RESPONSE: Final = "empty response"
SAME: Final = "chosen equals rejected"
OTHER_PROMPT: Final = "prompts differ"
MORE_DIFFERS: Final = "more than one turn differs"
NO_ANSWER: Final = "no assistant turn at the end"
DISORDER: Final = "roles out of order"
UNKNOWN_ROLE: Final = "role other than system, user and assistant"
BROKEN_TEXT: Final = "broken Unicode"

_PAIR_HINT: Final = "each row needs prompt, chosen and rejected, or chosen and rejected as whole dialogues"
_CONVERSATION_HINT: Final = "each row needs messages, or prompt and completion, or the columns of preference data"
_TURN_HINT: Final = 'a turn is {"role": "user", "content": "..."}'
_MARK: Final = re.compile(r"\n\n(Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class _UnusableError(Exception):
    """The row is well formed but of no use; the message is the reason to count it under."""


def read_pairs(dataset: str) -> Iterator[Pair | Dropped]:
    """Every row of a preference data set (a file or a hub name, see `read_rows`), usable or not, in its order.

    Raises:
        SepoError: the data set cannot be read, or a row has no known layout.
    """
    for row in read_rows(dataset):
        try:
            yield _pair(row)
        except _UnusableError as reason:
            yield Dropped(row.number, str(reason))


def read_conversations(dataset: str) -> Iterator[Pair | Dropped]:
    """Prompts and answers for supervised fine-tuning, as pairs whose `rejected` is empty.

    A row holds, in this order of precedence, ``chosen`` (preference data, whose other side is not looked at),
    ``messages``, or ``prompt`` and ``completion``. Of ``messages`` *every* assistant turn becomes an answer to what
    precedes it, so a row can yield several items of one `pair_id`; of the others only the last turn is the answer.

    Raises:
        SepoError: the data set cannot be read, or a row has no known layout.
    """
    for row in read_rows(dataset):
        yield from _answers(row)


def describe_layout(columns: Mapping[str, Any]) -> str:
    """The layout of a row in words, such as ``whole conversations, prompt is their common beginning``."""
    chosen, prompt = columns.get("chosen"), columns.get("prompt")
    match chosen:
        case str() if _MARK.match(chosen):
            return "dialogues as text (HH-RLHF), prompt is their common beginning"
        case str() if isinstance(prompt, str) and _MARK.match(prompt):
            return "prompt as a dialogue (HH-RLHF), answers as text"
        case str() if prompt is not None:
            return "prompt and answers as text"
        case list() if prompt is None:
            return "whole conversations, prompt is their common beginning"
        case [{"role": "assistant"}, *_]:
            return "prompt, answers as turns"
        case list():
            return "prompt, answers in whole conversations"
    if "messages" in columns:
        return "conversations, every assistant turn is an answer"
    return "prompt and completion" if "completion" in columns else "no known layout"


def _pair(row: Row) -> Pair:
    conversations = [_conversation(row, column, _PAIR_HINT) for column in ("chosen", "rejected")]
    (prompt, chosen), (other_prompt, rejected) = map(_split, conversations)
    if prompt != other_prompt:
        shared = itertools.takewhile(lambda turns: turns[0] == turns[1], zip(prompt, other_prompt, strict=False))
        share_a_question = any(turn["role"] == "user" for turn, _ in shared)
        raise _UnusableError(MORE_DIFFERS if share_a_question else OTHER_PROMPT)
    if chosen == rejected:
        raise _UnusableError(SAME)
    return Pair(row.number, prompt, chosen, rejected)


def _answers(row: Row) -> Iterator[Pair | Dropped]:
    column = next((name for name in ("chosen", "messages", "completion") if name in row.columns), "messages")
    try:
        if column == "messages":
            turns = _turns(_value(row, column, _CONVERSATION_HINT), column, row.where, _CONVERSATION_HINT)
            ends = [place for place, turn in enumerate(turns, start=1) if turn["role"] == "assistant"]
        else:
            turns = _conversation(row, column, _CONVERSATION_HINT)
            ends = [len(turns)]
        _check_order(turns)
    except _UnusableError as reason:
        yield Dropped(row.number, str(reason))
        return
    for end in ends:
        yield _answer(row.number, turns[:end])


def _answer(pair_id: int, turns: list[Message]) -> Pair | Dropped:
    try:
        return Pair(pair_id, *_split(turns), rejected="")
    except _UnusableError as reason:
        return Dropped(pair_id, str(reason))


def _conversation(row: Row, column: str, hint: str) -> list[Message]:
    """The whole conversation whose last turn is the answer in `column`."""
    answer = _value(row, column, hint)
    prompt = _value(row, "prompt", hint) if "prompt" in row.columns else None
    if not isinstance(answer, str):
        return _joined(_prompt_turns(prompt, row.where, hint), _turns(answer, column, row.where, hint))
    turns, blank = _prompt_turns(prompt, row.where, hint), ""
    if isinstance(prompt, str) and _MARK.match(prompt):
        turns, blank = _question(_dialogue(prompt)), " "
    if _MARK.match(answer):
        return _joined(turns, _dialogue(answer))
    if turns is None:
        raise SepoError(f'{row.where}: no "prompt"', hint=hint)
    return [*turns, {"role": "assistant", "content": answer.removeprefix(blank)}]


def _joined(prompt: list[Message] | None, turns: list[Message]) -> list[Message]:
    """`turns` after the prompt; if they begin with more than an answer, they are the whole, and must hold it."""
    if prompt is None:
        return turns
    if not turns or turns[0]["role"] == "assistant":
        return prompt + turns
    if not _holds(turns[:-1], prompt):
        raise _UnusableError(OTHER_PROMPT)
    return turns


def _holds(turns: list[Message], prompt: list[Message]) -> bool:
    """Whether the prompt stands somewhere in `turns`: after a system turn, or as the last question of several.

    Blanks at the ends do not matter here, for this text is only compared; the conversation's own is used.
    """
    bare = [(turn["role"], turn["content"].strip()) for turn in turns]
    wanted = [(turn["role"], turn["content"].strip()) for turn in prompt]
    return any(bare[start : start + len(wanted)] == wanted for start in range(len(bare) - len(wanted) + 1))


def _split(turns: list[Message]) -> tuple[list[Message], str]:
    """A conversation as its prompt and its answer."""
    _check_order(turns)
    if any(_LONE_SURROGATE.search(turn["content"]) for turn in turns):
        raise _UnusableError(BROKEN_TEXT)
    prompt, answer = turns[:-1], turns[-1]["content"]
    if not prompt[-1]["content"].strip():
        raise _UnusableError(EMPTY_PROMPT)
    if not answer.strip():
        raise _UnusableError(EMPTY_RESPONSE)
    return prompt, answer


def _check_order(turns: list[Message]) -> None:
    roles = [turn["role"] for turn in turns]
    if not {"system", "user", "assistant"}.issuperset(roles):
        raise _UnusableError(UNKNOWN_ROLE)
    if roles[-1:] != ["assistant"]:
        raise _UnusableError(NO_ANSWER)
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken == ["assistant"]:
        raise _UnusableError(EMPTY_PROMPT)
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise _UnusableError(DISORDER)


def _dialogue(text: str) -> list[Message]:
    """The turns of HH-RLHF text, which starts with a mark."""
    _, *parts = _MARK.split(text)
    return [
        {"role": _ROLES[speaker], "content": content.removeprefix(" ")}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _question(turns: list[Message]) -> list[Message]:
    """Without the last turn, if it is the mark that asks for an answer."""
    asks = turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip()
    return turns[:-1] if asks else turns


def _prompt_turns(prompt: Any, where: str, hint: str) -> list[Message] | None:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return None if prompt is None else _turns(prompt, "prompt", where, hint)


def _value(row: Row, column: str, hint: str) -> Any:
    if column not in row.columns:
        raise SepoError(f'{row.where}: no "{column}"', hint=hint)
    value = row.columns[column]
    if not isinstance(value, str | list):
        raise SepoError(f'{row.where}: "{column}" is {kind(value)}, not text or a list of turns', hint=hint)
    return value


def _turns(value: Any, column: str, where: str, hint: str) -> list[Message]:
    """A list of turns with nothing but their roles and contents."""
    if not isinstance(value, list):
        raise SepoError(f'{where}: "{column}" is {kind(value)}, not a list of turns', hint=hint)
    for number, turn in enumerate(value, start=1):
        place = f'{where}: "{column}" turn {number}'
        if not isinstance(turn, dict):
            raise SepoError(f"{place} is {kind(turn)}, not an object", hint=_TURN_HINT)
        for key in ("role", "content"):
            if key not in turn:
                raise SepoError(f'{place} has no "{key}"', hint=_TURN_HINT)
            if not isinstance(turn[key], str):
                raise SepoError(f'{place}: "{key}" is {kind(turn[key])}, not text', hint=_TURN_HINT)
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]
