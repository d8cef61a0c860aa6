"""What a chat template writes around the turns, and where in it an answer begins.

A template is only ever read as text. What it does is learnt once from two probes (a question; a question and an
answer), and every conversation is checked against that, because a template may look at what it is given::

    render(prompt)            ...<|im_start|>assistant\\n
    render(prompt + answer)   ...<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\nthe answer<|im_end|>\\n
                              '---- prompt -----------------------------''--- response --' (and what follows the turn)

The three ways in which a template goes on from its own generation prompt, and what becomes of them:

- It writes the answer, maybe behind a blank: the answer's text is what follows the prompt. The blank stays with the
  answer, for tokenizers merge it with the first word.
- It writes something of its own before *every* answer, such as an empty thinking block or a header that the generation
  prompt lacks: that goes to the prompt. It says nothing about the answer, would be the same in chosen and rejected,
  and would take a share of the selected tokens. An answer that brings thoughts of its own is kept with them: there the
  response begins where the generation prompt ends, for both answers of the pair.
- Its generation prompt holds a closed, empty thinking block that the final turn lacks: the prompt is what the model
  will be asked with, and the answer follows it. Any other text that the final turn lacks (an *open* ``<think>``, which
  asks for thoughts that the data does not have) makes the pair unusable, and so do thoughts behind the closed block.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from jinja2.exceptions import TemplateError

from stages.currency import Message
from stages.data.template_arguments import TOOLS
from stages.errors import SepoError

NOT_CONTINUED: Final = "the chat template does not continue its own prompt"
REFUSED: Final = "the chat template refuses the conversation"
NO_SYSTEM: Final = "the chat template refuses a system turn"

TODAY: Final = datetime(2024, 7, 26)
"""The day that templates which ask for the date are told: the one Llama 3 falls back to where no clock is at hand."""

Arguments = Mapping[str, Any]
"""what a template is given beside the turns; see `stages.data.template_arguments`"""

_NONE: Final[Arguments] = {}
_PROBE: Final = "sepoprobe"
_QUESTION: Final[list[Message]] = [{"role": "user", "content": _PROBE}]
_PROBE_TOOL: Final = {
    "type": "function",
    "function": {"name": _PROBE, "description": _PROBE, "parameters": {"type": "object", "properties": {}}},
}
_FAILURES: Final = (TemplateError, TypeError, ValueError, AttributeError, LookupError)
_MANNERS_KEPT: Final = 256
_EMPTY_BLOCK: Final = re.compile(r"\s*<(\w+)>\s*</\1>\s*")
_THINK: Final = re.compile(r"</?think\w*>")
_DIRECTIVES: Final = ("%-d", "%-m", *(f"%{letter}" for letter in "aAbBcCdDeFHIjmMpRSTuUVwWxXyYzZ"))


class UnusableError(Exception):
    """The row is well formed but of no use; the message is the reason to count it under."""


class _Manner(NamedTuple):
    """What a template writes around an answer, learnt from the probes."""

    asked: str
    """the probe's question, and what asks for an answer to it"""
    before: str
    """the probe's question and what precedes the answer to it"""
    after: str

    @property
    def header(self) -> str:
        """What is written between the generation prompt and every answer; a blank alone is the answer's own."""
        header = self.before.removeprefix(self.asked) if self.before.startswith(self.asked) else ""
        return header.rstrip(" ") if header.strip() else ""

    @property
    def surplus(self) -> str:
        """The empty thinking block at the end of a generation prompt that is not written before an answer."""
        surplus = self.asked.removeprefix(self.before) if self.asked.startswith(self.before) else ""
        return surplus if _EMPTY_BLOCK.fullmatch(surplus) else ""


class ChatTemplate:
    """A tokenizer's chat template as a function of text, with what it writes around an answer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        try:
            self._template = _pin_date(tokenizer.get_chat_template())
            # A tokenizer may have a template of its own for conversations with tools.
            self._template_for_tools = _pin_date(tokenizer.get_chat_template(tools=[_PROBE_TOOL]))
            manner = self._learn({})
        except _FAILURES as error:
            raise SepoError(
                f"the chat template fails on a user turn and an answer: {error}",
                hint="repair the model's chat template",
            ) from error
        if not manner.before or _PROBE not in manner.before:
            raise SepoError("the chat template leaves out what was said", hint="repair the model's chat template")
        self._manners = {_key({}): manner}
        self.after = manner.after
        self.own_text = _THINK.sub("", manner.asked + manner.before + manner.after)
        """everything the template writes around a question and an answer, apart from thinking, which data may hold"""
        self._takes_system = self._accepts([{"role": "system", "content": _PROBE}, *_QUESTION])

    @property
    def shows_tools(self) -> bool:
        """Whether the template makes any use of ``tools``."""
        try:
            return self._render(_QUESTION, {TOOLS: [_PROBE_TOOL]}) != self._render(_QUESTION, {})
        except _FAILURES:
            return True

    def split(self, prompt: list[Message], answers: list[str], arguments: Arguments = _NONE) -> tuple[str, list[str]]:
        """The text of the prompt, and of every answer what follows it (with its end of turn and what comes after).

        Args:
            arguments: what else the template is given, such as ``tools``.

        Raises:
            UnusableError: the template refuses the conversation, or does not continue its own prompt.
        """
        if prompt[0]["role"] == "system" and not self._takes_system:
            raise UnusableError(NO_SYSTEM)
        try:
            asked = self._render(prompt, arguments)
            wholes = [self._render(prompt, arguments, answer) for answer in answers]
        except TemplateError as error:
            raise UnusableError(REFUSED) from error
        except _FAILURES as error:
            # A template trips over an argument that it did not expect; without any, it is broken.
            if not arguments:
                raise
            raise UnusableError(REFUSED) from error
        for prompt_text, before in self._borders(asked, wholes, self._manner(arguments)):
            if all(whole.startswith(before) for whole in wholes):
                return prompt_text, [whole[len(before) :] for whole in wholes]
        raise UnusableError(NOT_CONTINUED)

    def _borders(self, asked: str, wholes: list[str], manner: _Manner) -> list[tuple[str, str]]:
        """What the prompt may be, each with what then has to stand before an answer; the first that fits holds."""
        header, surplus = manner.header, manner.surplus
        borders = [(asked + header, asked + header), (asked, asked)]
        if surplus and asked.endswith(surplus):
            before = asked.removesuffix(surplus)
            thinks = before + surplus[: surplus.index(">") + 1]
            # Thoughts cannot follow the block that says there are none.
            if not any(whole.startswith(thinks) for whole in wholes):
                borders.append((asked, before))
        return borders

    def _manner(self, arguments: Arguments) -> _Manner:
        """What the template does when given these arguments: ``enable_thinking``, say, changes what it writes."""
        key = _key(arguments)
        if key not in self._manners:
            if len(self._manners) >= _MANNERS_KEPT:
                self._manners = dict(list(self._manners.items())[:1])
            try:
                self._manners[key] = self._learn(arguments)
            except _FAILURES:
                self._manners[key] = self._manners[_key({})]
        return self._manners[key]

    def _learn(self, arguments: Arguments) -> _Manner:
        before, found, after = self._render(_QUESTION, arguments, _PROBE).rpartition(_PROBE)
        return _Manner(self._render(_QUESTION, arguments), before if found else "", after)

    def _render(self, prompt: list[Message], arguments: Arguments, answer: str | None = None) -> str:
        messages = prompt if answer is None else [*prompt, {"role": "assistant", "content": answer}]
        template = self._template_for_tools if TOOLS in arguments else self._template
        return str(
            self._tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=answer is None, **arguments
            )
        )

    def _accepts(self, prompt: list[Message]) -> bool:
        try:
            return bool(self._render(prompt, {}))
        except TemplateError:
            return False


def _key(arguments: Arguments) -> str:
    """What of the arguments can change the writing around an answer; the tools themselves are part of the prompt."""
    return json.dumps({**arguments, TOOLS: TOOLS in arguments}, sort_keys=True, default=str)


def _pin_date(template: str) -> str:
    """The template with a clock that stands still: ids must not depend on the day a stage runs.

    The clock is a macro in front of the template, because transformers lets no function in from outside. Its newline is
    eaten by Jinja (`trim_blocks`), and keeps the template's first line the beginning of a line.
    """
    if "strftime_now" not in template:
        return template
    clock = "".join(f"|replace({name!r}, {TODAY.strftime(name)!r})" for name in _DIRECTIVES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{clock} }}}}{{% endmacro %}}\n{template}"
