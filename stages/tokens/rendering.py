"""A chat template as a function of turns: a text, or one kind of error, in bounded time and on no particular day."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from stages.data.template_arguments import TOOLS
from stages.errors import SepoError, one_line
from stages.types import Message, Tokenizer

TODAY: Final = datetime(2024, 7, 26)
"""The day that templates which ask for the date are told: the one Llama 3 falls back to where no clock is at hand."""
SECONDS: Final = 20.0
"""of computing, for one conversation; a millisecond is usual"""
_DIRECTIVES: Final = ("%-d", "%-m", *(f"%{letter}" for letter in "aAbBcCdDeFHIjmMpRSTuUVwWxXyYzZ"))


class RenderError(Exception):
    """The template refuses a conversation, or fails on it; the message says how."""


class _TooLongError(Exception):
    """The time for a conversation is over."""


class Renderer:
    """Renders conversations with the chat template of a tokenizer, or with its template for those with tools."""

    def __init__(self, tokenizer: Tokenizer, tool: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Args: tool: any; given: arguments for every conversation that brings no other ones."""
        self._tokenizer = tokenizer
        self._given = given
        try:
            self._template = _pin_date(tokenizer.get_chat_template())
            self._template_for_tools = _pin_date(tokenizer.get_chat_template(tools=[tool]))
        except ValueError as error:
            raise SepoError(f"the tokenizer has no chat template: {one_line(error)}") from error

    @property
    def ignored(self) -> list[str]:
        """The arguments given for all conversations that the template never names."""
        return [name for name in self._given if name not in self._template + self._template_for_tools]

    def __call__(
        self,
        prompt: list[Message],
        arguments: Mapping[str, Any],
        answer: str | None = None,
        thoughts: Mapping[str, str] | None = None,
    ) -> str:
        """The text of a prompt and what asks for an answer to it, or with an answer.

        Whatever the template, or a library below it, raises is a `RenderError`, and too long a time a `SepoError`.
        """
        turn = {"role": "assistant", "content": answer or "", **(thoughts or {})}
        messages = prompt if answer is None else [*prompt, turn]
        template = self._template_for_tools if TOOLS in arguments else self._template
        try:
            with _limited_time():
                return str(
                    self._tokenizer.apply_chat_template(
                        messages,
                        chat_template=template,
                        tokenize=False,
                        add_generation_prompt=answer is None,
                        **{**self._given, **arguments},
                    )
                )
        except _TooLongError as error:
            # Not a reason to drop a row: which rows are kept must not depend on the machine.
            raise SepoError(
                f"the chat template works on one conversation for more than {SECONDS:.0f} seconds",
                hint="repair the model's chat template",
            ) from error
        except Exception as error:
            raise RenderError(one_line(error)) from error


@contextmanager
def _limited_time() -> Iterator[None]:
    """Only in a main thread, the one that signals reach; workers tokenise in theirs too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _end(number: int, frame: object) -> None:
    raise _TooLongError


def _pin_date(template: str) -> str:
    """The template with a clock that stands still: ids must not depend on the day a stage runs.

    The clock is a macro in front of the template, because transformers lets no function in from outside. Its newline is
    eaten by Jinja (`trim_blocks`), and keeps the template's first line the beginning of a line.
    """
    if "strftime_now" not in template:
        return template
    clock = "".join(f"|replace({name!r}, {TODAY.strftime(name)!r})" for name in _DIRECTIVES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{clock} }}}}{{% endmacro %}}\n{template}"
