"""What the chat template is given beside the turns, in two optional columns that TRL knows too.

``tools`` is a list of JSON schemas of functions, ``chat_template_kwargs`` an object such as
``{"enable_thinking": false}``; each may be JSON written as text. Null and what is empty mean that there is none.

In a list or object that is no text, a key whose value is null is left out: Parquet and Arrow give every object of a
column the keys of all the others.

The option ``--chat-template-kwargs`` gives the same object for all rows; what a row says itself goes before it.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from stages.data.conversations import UnusableError, check_texts
from stages.data.read import Row
from stages.data.text_files import kind
from stages.errors import SepoError

TOOLS: Final = "tools"
KWARGS: Final = "chat_template_kwargs"
COLUMNS: Final = (TOOLS, KWARGS)

_DEEPEST: Final = 100
_TOOLS_HINT: Final = 'tools is a list of JSON schemas, [{"type": "function", "function": {...}}], or drop the column'
_KWARGS_HINT: Final = 'chat_template_kwargs is an object such as {"enable_thinking": false}, or drop the column'
# What transformers takes as its own argument, or hands to the template by itself.
_TAKEN: Final = (
    {"conversation", "conversations", "messages", "tools", "chat_template", "tokenize", "tokenizer_kwargs", "self"}
    | {"add_generation_prompt", "continue_final_message", "sanitize_control_tokens", "return_assistant_tokens_mask"}
    | {"padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
)


def template_arguments(row: Row) -> dict[str, Any]:
    """The arguments that a row has for `apply_chat_template`, ``tools`` among them; most rows have none.

    What is no such argument is a `SepoError`, what this row alone cannot use an `UnusableError`.
    """
    arguments = _value(row, KWARGS, _KWARGS_HINT) if row.columns.get(KWARGS) else {}
    if not isinstance(arguments, dict):
        raise SepoError(f'{row.where}: "{KWARGS}" is {kind(arguments)}, not an object', hint=_KWARGS_HINT)
    taken = sorted(_TAKEN & arguments.keys())
    if taken:
        raise SepoError(f'{row.where}: "{KWARGS}" may not set {", ".join(taken)}', hint="leave it out of the object")
    tools = _value(row, TOOLS, _TOOLS_HINT) if row.columns.get(TOOLS) else []
    if not isinstance(tools, list):
        raise SepoError(f'{row.where}: "{TOOLS}" is {kind(tools)}, not a list of objects', hint=_TOOLS_HINT)
    for number, tool in enumerate(tools, start=1):
        if not isinstance(tool, dict):
            raise SepoError(f'{row.where}: "{TOOLS}" item {number} is {kind(tool)}, not an object', hint=_TOOLS_HINT)
    found = arguments | ({TOOLS: tools} if tools else {})
    if found:
        check_texts(list(texts_of(found)))
    return found


def given_arguments(text: str | None) -> dict[str, Any]:
    """What ``--chat-template-kwargs`` gives the template for all rows."""
    option = "--" + KWARGS.replace("_", "-")
    try:
        return template_arguments(Row(0, option, {KWARGS: text}))
    except UnusableError as reason:
        raise SepoError(f"{option}: {reason}", hint=_KWARGS_HINT) from reason


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def _value(row: Row, column: str, hint: str) -> Any:
    """A list or object, also where it is written as text; of a blank or null text, what is empty."""
    value = row.columns[column]
    if not isinstance(value, str):
        _refuse_deep(value, column)
        return _without_nulls(value)
    if not value.strip() or value.strip() == "null":
        return [] if column == TOOLS else {}
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise SepoError(f'{row.where}: "{column}" is text, but not JSON', hint=hint) from error
    _refuse_deep(found, column)
    return found


def _refuse_deep(value: Any, column: str, levels: int = _DEEPEST) -> None:
    """Whoever walks it, here or in a template, would run out of stack."""
    if not levels:
        raise UnusableError(f'"{column}" is nested more than {_DEEPEST} deep')
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_deep(item, column, levels - 1)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
