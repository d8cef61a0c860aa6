"""What a conversation is made of: turns, in a list or in HH-RLHF text, and its split into prompt and answer.

Text is kept exactly as it is, blanks at either end included. The one exception is a text (never a turn of a list)
that starts with a mark of HH-RLHF, as in ``"\\n\\nHuman: question\\n\\nAssistant: answer"``: the marks go, and with
each of them *one* blank after it, also where that blank stands in an answer whose prompt ends in ``"Assistant:"``.
"""

import re
from typing import Any, Final

from stages.data.read import Row
from stages.data.text_files import kind
from stages.errors import SepoError
from stages.types import Message

LONGEST_TEXT: Final = 1 << 22
"""Characters of a prompt and one answer: a million tokens. Tokenising takes hundreds of bytes for each of them."""
EMPTY_PROMPT: Final = "empty prompt"
EMPTY_RESPONSE: Final = "empty response"
SAME: Final = "chosen equals rejected"
OTHER_PROMPT: Final = "prompts differ"
MORE_DIFFERS: Final = "more than one turn differs"
NO_ANSWER: Final = "no assistant turn at the end"
UNKNOWN_ROLE: Final = "role other than system, user and assistant"

_TURN_HINT: Final = 'a turn is {"role": "user", "content": "..."}'
_SHAREGPT_HINT: Final = 'a turn is {"from": "human", "value": "..."}'
_MARK: Final = re.compile(r"\n\n(Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES: Final = {"human": "user", "gpt": "assistant"}
# Their content need not be a text.
_TOOL_ROLES: Final = ("tool", "function", "ipython")
# What a turn may hold beside its role and content. Whatever is here changes what a model would be shown, or taught, in
# a way that nothing here can keep; keys that are in none of these lists are about the turn and not part of it.
_CALLS: Final = {"tool_calls", "function_call"}
_UNKEPT: Final = (
    {"reasoning_content", "reasoning_details", "reasoning", "thinking", "thoughts", "thought"}
    | {"refusal", "prefix", "partial", "prefill"}
    | {"image", "images", "image_url", "audio", "audios", "video", "videos", "files", "attachments", "documents"}
    | {"tool_call_id", "tool_responses", "tool_plan", "tools", "channel", "recipient", "mask", "masked", "train_detail"}
)
_TRAINED: Final = ("weight", "train", "training", "trainable", "loss", "loss_mask", "step_loss_mask")
"""0 or false: the answer is not to be trained on"""
_LEFT_OUT: Final = "left out"
"""key of a turn that is no answer to train on, and why"""
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class UnusableError(Exception):
    """The row is well formed but of no use; the message is the reason to count it under."""


def is_dialogue(text: Any) -> bool:
    """Whether it is a text that starts with a mark of HH-RLHF."""
    return isinstance(text, str) and _MARK.match(text) is not None


def conversation(row: Row, column: str, hint: str) -> list[Message]:
    """The whole conversation whose last turn is the answer in `column`."""
    answer = _value(row, column, hint)
    prompt = _value(row, "prompt", hint) if "prompt" in row.columns else None
    turns = turns_of(prompt, "prompt", row.where, hint) if isinstance(prompt, list) else None
    if isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}]
    if not isinstance(answer, str):
        return _joined(turns, turns_of(answer, column, row.where, hint))
    blank = ""
    if isinstance(prompt, str) and is_dialogue(prompt):
        turns, blank = _dialogue(prompt), " "
        if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
            # The mark that asks for an answer.
            turns.pop()
    if is_dialogue(answer):
        return _joined(turns, _dialogue(answer))
    if turns is None:
        raise SepoError(f'{row.where}: no "prompt"', hint=hint)
    return [*turns, {"role": "assistant", "content": answer.removeprefix(blank)}]


def with_system(row: Row, turns: list[Message]) -> list[Message]:
    """`turns` behind the text of the row's ``system`` column, if there is one and it is not there already."""
    system = row.columns.get("system")
    if system is None or system == "":
        return turns
    if not isinstance(system, str):
        raise SepoError(f'{row.where}: "system" is {kind(system)}, not text', hint="give a text, or drop the column")
    if turns and turns[0]["role"] == "system":
        if turns[0]["content"] != system:
            raise UnusableError("system column and system turn differ")
        return turns
    return [{"role": "system", "content": system}, *turns]


def split(turns: list[Message]) -> tuple[list[Message], str]:
    """A conversation as its prompt and its answer."""
    check_order(turns)
    if _LEFT_OUT in turns[-1]:
        raise UnusableError(turns[-1][_LEFT_OUT])
    check_texts([turn["content"] for turn in turns])
    prompt = [{name: text for name, text in turn.items() if name != _LEFT_OUT} for turn in turns[:-1]]
    answer = turns[-1]["content"]
    if not prompt[-1]["content"].strip():
        raise UnusableError(EMPTY_PROMPT)
    if not answer.strip():
        raise UnusableError(EMPTY_RESPONSE)
    return prompt, answer


def check_texts(texts: list[str]) -> None:
    """Raises `UnusableError` where no tokenizer could be given one of the texts, or all of them together."""
    if sum(map(len, texts)) > LONGEST_TEXT:
        raise UnusableError(f"more than {LONGEST_TEXT:,} characters")
    if any(map(_LONE_SURROGATE.search, texts)):
        raise UnusableError("broken Unicode")
    # Some tokenizers end a text there, some leave it out.
    if any("\0" in text for text in texts):
        raise UnusableError("NUL character")


def check_order(turns: list[Message]) -> None:
    roles = [turn["role"] for turn in turns]
    if not {"system", "user", "assistant"}.issuperset(roles):
        raise UnusableError(UNKNOWN_ROLE)
    if roles[-1:] != ["assistant"]:
        raise UnusableError(NO_ANSWER)
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken == ["assistant"]:
        raise UnusableError(EMPTY_PROMPT)
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise UnusableError("roles out of order")


def turns_of(value: Any, column: str, where: str, hint: str, *, sharegpt: bool = False) -> list[Message]:
    """A list of turns with nothing but their roles and contents, whose names in ShareGPT are from and value.

    A turn that has more than them to say (a tool is called, or answers; a picture) makes the row unusable, whatever
    its content.
    """
    keys, turn_hint = (("from", "value"), _SHAREGPT_HINT) if sharegpt else (("role", "content"), _TURN_HINT)
    if not isinstance(value, list):
        raise SepoError(f'{where}: "{column}" is {kind(value)}, not a list of turns', hint=hint)
    for number, turn in enumerate(value, start=1):
        _check_turn(turn, keys, f'{where}: "{column}" turn {number}', turn_hint)
    role, content = keys
    names = _SHAREGPT_ROLES if sharegpt else {}
    return [{"role": names.get(turn[role], turn[role]), "content": turn[content], **_left_out(turn)} for turn in value]


def unread_keys(value: Any) -> list[str]:
    """The keys of a column's turns that nothing reads; none where it holds no turns."""
    turns = [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []
    known = {"role", "content", "from", "value", *_CALLS, *_UNKEPT, *_TRAINED}
    return list(dict.fromkeys(str(key) for turn in turns for key in turn if key not in known))


def _check_turn(turn: Any, keys: tuple[str, str], place: str, hint: str) -> None:
    if not isinstance(turn, dict):
        raise SepoError(f"{place} is {kind(turn)}, not an object", hint=hint)
    # Parquet gives every turn the keys of all the others: what is null, false or empty is not there.
    held = [key for key, value in turn.items() if value]
    if not _CALLS.isdisjoint(held):
        raise UnusableError("a turn calls a tool")
    unkept = next((key for key in held if key in _UNKEPT), None)
    if unkept is not None:
        raise UnusableError(f'a turn has "{unkept}", which cannot be kept')
    for key in keys:
        if key not in turn:
            raise SepoError(f'{place} has no "{key}"', hint=hint)
        if turn.get("role") in _TOOL_ROLES:
            raise UnusableError(UNKNOWN_ROLE)
        if not isinstance(turn[key], str):
            raise SepoError(f'{place}: "{key}" is {kind(turn[key])}, not text', hint=hint)


def _left_out(turn: dict[str, Any]) -> Message:
    for key in _TRAINED:
        if turn.get(key) not in (None, 1):
            how = "leaves the answer out" if turn[key] == 0 else "of the answer is neither 0 nor 1"
            return {_LEFT_OUT: f'"{key}" {how}'}
    return {}


def _joined(prompt: list[Message] | None, turns: list[Message]) -> list[Message]:
    """`turns` after the prompt; if they begin with more than an answer, they are the whole, and must hold it.

    The prompt may stand anywhere in them: after a system turn, or as the last question of several. Blanks at the ends
    do not matter here, for this text is only compared; the conversation's own is used.
    """
    if prompt is None:
        return turns
    if not turns or turns[0]["role"] == "assistant":
        return prompt + turns
    bare, wanted = ([(turn["role"], turn["content"].strip()) for turn in each] for each in (turns[:-1], prompt))
    if not any(bare[start : start + len(wanted)] == wanted for start in range(len(bare) - len(wanted) + 1)):
        raise UnusableError(OTHER_PROMPT)
    return turns


def _dialogue(text: str) -> list[Message]:
    """The turns of HH-RLHF text, which starts with a mark."""
    _, *parts = _MARK.split(text)
    return [
        {"role": _ROLES[speaker], "content": content.removeprefix(" ")}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _value(row: Row, column: str, hint: str) -> Any:
    if column not in row.columns:
        raise SepoError(f'{row.where}: no "{column}"', hint=hint)
    value = row.columns[column]
    if not isinstance(value, str | list):
        raise SepoError(f'{row.where}: "{column}" is {kind(value)}, not text or a list of turns', hint=hint)
    return value
