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

import re
from datetime import datetime
from typing import Any, Final

from jinja2.exceptions import TemplateError

from stages.currency import Message
from stages.errors import SepoError

NOT_CONTINUED: Final = "the chat template does not continue its own prompt"
REFUSED: Final = "the chat template refuses the conversation"
NO_SYSTEM: Final = "the chat template refuses a system turn"

TODAY: Final = datetime(2024, 7, 26)
"""The day that templates which ask for the date are told: the one Llama 3 falls back to where no clock is at hand."""

_PROBE: Final = "sepoprobe"
_EMPTY_BLOCK: Final = re.compile(r"\s*<(\w+)>\s*</\1>\s*")
_THINK: Final = re.compile(r"</?think\w*>")
_REPAIR: Final = "repair the model's chat template"
_DIRECTIVES: Final = ("%-d", "%-m", *(f"%{letter}" for letter in "aAbBcCdDeFHIjmMpRSTuUVwWxXyYzZ"))


class UnusableError(Exception):
    """The row is well formed but of no use; the message is the reason to count it under."""


class ChatTemplate:
    """A tokenizer's chat template as a function of text, with what it writes around an answer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        question = [{"role": "user", "content": _PROBE}]
        try:
            self._template = _pin_date(tokenizer.get_chat_template())
            asked = self._render(question)
            before, found, self.after = self._render(question, _PROBE).rpartition(_PROBE)
        except (TemplateError, TypeError, ValueError) as error:
            raise SepoError(
                f"the chat template fails on a user turn and an answer: {error}",
                hint="repair the model's chat template",
            ) from error
        if not found or _PROBE not in before:
            raise SepoError("the chat template leaves out what was said", hint="repair the model's chat template")
        self._header = _header(asked, before)
        self._surplus = _surplus(asked, before)
        self.own_text = _THINK.sub("", asked + before + self.after)
        """everything the template writes around a question and an answer, apart from thinking, which data may hold"""
        self._takes_system = self._accepts([{"role": "system", "content": _PROBE}, *question])

    def split(self, prompt: list[Message], answers: list[str]) -> tuple[str, list[str]]:
        """The text of the prompt, and of every answer what follows it (with its end of turn and what comes after).

        Raises:
            UnusableError: the template refuses the conversation, or does not continue its own prompt.
        """
        if prompt[0]["role"] == "system" and not self._takes_system:
            raise UnusableError(NO_SYSTEM)
        try:
            asked = self._render(prompt)
            wholes = [self._render(prompt, answer) for answer in answers]
        except TemplateError as error:
            raise UnusableError(REFUSED) from error
        for prompt_text, before in self._borders(asked, wholes):
            if all(whole.startswith(before) for whole in wholes):
                return prompt_text, [whole[len(before) :] for whole in wholes]
        raise UnusableError(NOT_CONTINUED)

    def _borders(self, asked: str, wholes: list[str]) -> list[tuple[str, str]]:
        """What the prompt may be, each with what then has to stand before an answer; the first that fits holds."""
        borders = [(asked + self._header, asked + self._header), (asked, asked)]
        if self._surplus and asked.endswith(self._surplus):
            before = asked.removesuffix(self._surplus)
            thinks = before + self._surplus[: self._surplus.index(">") + 1]
            # Thoughts cannot follow the block that says there are none.
            if not any(whole.startswith(thinks) for whole in wholes):
                borders.append((asked, before))
        return borders

    def _render(self, prompt: list[Message], answer: str | None = None) -> str:
        messages = prompt if answer is None else [*prompt, {"role": "assistant", "content": answer}]
        return str(
            self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=answer is None
            )
        )

    def _accepts(self, prompt: list[Message]) -> bool:
        try:
            return bool(self._render(prompt))
        except TemplateError:
            return False


def _header(asked: str, before: str) -> str:
    """What the template writes between its generation prompt and every answer; a blank alone is the answer's own."""
    header = before.removeprefix(asked) if before.startswith(asked) else ""
    return header.rstrip(" ") if header.strip() else ""


def _surplus(asked: str, before: str) -> str:
    """The empty thinking block at the end of a generation prompt that is not written before an answer."""
    surplus = asked.removeprefix(before) if asked.startswith(before) else ""
    return surplus if _EMPTY_BLOCK.fullmatch(surplus) else ""


def _pin_date(template: str) -> str:
    """The template with a clock that stands still: ids must not depend on the day a stage runs.

    The clock is a macro in front of the template, because transformers lets no function in from outside. Its newline is
    eaten by Jinja (`trim_blocks`), and keeps the template's first line the beginning of a line.
    """
    if "strftime_now" not in template:
        return template
    clock = "".join(f"|replace({name!r}, {TODAY.strftime(name)!r})" for name in _DIRECTIVES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{clock} }}}}{{% endmacro %}}\n{template}"
