"""What a chat template writes around the turns, and where in it an answer begins.

A template is only ever read as text. What it does is learnt once from probes (a question; a question and an answer;
another question behind these), and every conversation is checked against that, because a template may look at what it
is given::

    render(prompt)            ...<|im_start|>assistant\\n
    render(prompt + answer)   ...<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\nthe answer<|im_end|>\\n
                              '---- prompt -----------------------------''--- response --' (and what follows the turn)

The ways in which a template goes on from its own generation prompt, and what becomes of them:

- It writes the answer, maybe behind a blank, which stays with it: tokenizers merge it with the first word.
- It writes something of its own before *every* answer, such as an empty thinking block or a header that the generation
  prompt lacks: that goes to the prompt, for it says nothing about the answer. An answer that brings thoughts of its own
  is kept with them: there the responses of both answers begin where the generation prompt ends.
- Its generation prompt opens thoughts, and the final turn has an empty block in the same place: that block is the end
  of the prompt.
- Its generation prompt holds a closed, empty thinking block that the final turn lacks: the prompt is what the model
  will be asked with, and the answer follows it. Any other text that the final turn lacks (an *open* ``<think>``, which
  asks for thoughts that the data does not have) makes the pair unusable, and so do thoughts behind the closed block.
- It writes the system turn elsewhere when an answer follows: the prompt is what the model will be asked with.

The answer must be whole in what is written, but for blanks around it and beside the tags of its thoughts.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from stages.data.conversations import UnusableError
from stages.data.template_arguments import TOOLS
from stages.errors import SepoError
from stages.tokens.rendering import Renderer, RenderError
from stages.types import Message, Tokenizer

NOT_CONTINUED: Final = (
    "the chat template does not continue its own prompt: it may ask for thoughts that the answers lack, which "
    'chat_template_kwargs such as {"enable_thinking": false} can switch off'
)
REFUSED: Final = "the chat template refuses the conversation"
NO_SYSTEM: Final = "the chat template refuses a system turn"
NO_BEGINNING: Final = (
    "the chat template leaves out the beginning of the answer, such as thoughts before </think>: "
    "take these out of the data, or repair the template"
)
NO_END: Final = "the chat template cuts the end of the answer: repair the template"
REWRITTEN: Final = "the chat template writes another text than the answer: repair the template"

Arguments = Mapping[str, Any]
"""what a template is given beside the turns; see `stages.data.template_arguments`"""

_NONE: Final[Arguments] = {}
_ASKED: Final = "Sepo Question"
_ANSWER: Final = "Sepo Answer"
_FOLLOWING: Final = "Sepo Following"
_THOUGHT: Final = "Sepo Thought"
_QUESTION: Final[list[Message]] = [{"role": "user", "content": _ASKED}]
_PROBE_TOOL: Final = {
    "type": "function",
    "function": {"name": "sepo", "description": "sepo", "parameters": {"type": "object", "properties": {}}},
}
_FORMATS_KEPT: Final = 256
_MARKER: Final = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_THINK: Final = re.compile(r"</?think\w*>")
_THINK_AMONG_BLANKS: Final = re.compile(r"\s*(</?think\w*>)\s*")


class _AnswerFormat(NamedTuple):
    """What a template writes around an answer, learnt from the probes."""

    asked: str
    """the probe's question, and what asks for an answer to it"""
    before: str
    """the probe's question and what precedes the answer to it"""
    after: str
    between: str
    """what stands between an answer and a question that follows it"""
    thinks: str
    """the probe's question and what precedes the thoughts of its answer; "" where a template writes none"""

    @property
    def header(self) -> str:
        """What is written between the generation prompt and every answer; a blank alone is the answer's own."""
        header = self.before.removeprefix(self.asked) if self.before.startswith(self.asked) else ""
        return header.rstrip(" ") if header.strip() else ""

    @property
    def surplus(self) -> str:
        """The empty thinking block at the end of a generation prompt that is not written before an answer.

        It is closed: a marker opens it, another one ends it, and it is not where the template begins to think.
        """
        surplus = self.asked.removeprefix(self.before) if self.asked.startswith(self.before) else ""
        markers = _MARKER.findall(surplus)
        opens = self.thinks.rstrip() == self.asked.rstrip()
        return surplus if len(markers) > 1 and surplus.rstrip().endswith(markers[-1]) and not opens else ""

    @property
    def instead(self) -> tuple[str, str]:
        """How the generation prompt ends, and what is written before an answer instead, which closes a block."""
        asked, before = self.asked, self.before
        if asked.startswith(before) or before.startswith(asked):
            return "", ""
        shared = next(at for at, (left, right) in enumerate(zip(asked, before, strict=False)) if left != right)
        cut = [found.start() for text in (asked, before) for found in _MARKER.finditer(text) if found.end() > shared]
        shared = min([shared, *cut])
        ends = [
            not text.strip() or bool(_MARKER.findall(text.split()[-1])) for text in (asked[shared:], before[shared:])
        ]
        return (asked[shared:], before[shared:]) if all(ends) and before[shared:].strip() else ("", "")

    @property
    def frame(self) -> str:
        """What is written between a question and the answer to it."""
        return self.asked.rpartition(_ASKED)[2] + self.header


class ChatTemplate:
    """A tokenizer's chat template as a function of text, with what it writes around an answer."""

    def __init__(self, tokenizer: Tokenizer, given: Arguments = _NONE) -> None:
        """Args: given: arguments for every conversation that brings no other ones."""
        self._render = Renderer(tokenizer, _PROBE_TOOL, given)
        self.ignored = self._render.ignored
        """the arguments given for all conversations that the template never names"""
        hint = "repair the model's chat template"
        try:
            form = self._learn({})
        except RenderError as error:
            raise SepoError(f"the chat template fails on a user turn and an answer: {error}", hint=hint) from error
        if _ASKED not in form.before or _ANSWER in form.before:
            raise SepoError("the chat template leaves out, changes or repeats what was said", hint=hint)
        self._formats = {_key({}): form}
        self.after = form.after
        self.between = form.between
        self.own_text = _THINK.sub("", "".join(form[:4]).replace(_ASKED, ""))
        """everything the template writes around questions and answers, apart from thinking, which data may hold"""
        self._takes_system = self._tried([{"role": "system", "content": _ASKED}, *_QUESTION], {}) != ""

    @property
    def shows_tools(self) -> bool:
        """Whether the template makes any use of ``tools``."""
        return self._tried(_QUESTION, {TOOLS: [_PROBE_TOOL]}) != self._tried(_QUESTION, {})

    def split(self, prompt: list[Message], answers: list[str], arguments: Arguments = _NONE) -> tuple[str, list[str]]:
        """The text of the prompt, and of every answer what follows it (with its end of turn and what comes after).

        A pair that the template refuses, or would change, is an `UnusableError`.
        """
        if prompt[0]["role"] == "system" and not self._takes_system:
            raise UnusableError(NO_SYSTEM)
        try:
            prompt_text, texts = self._split(prompt, answers, arguments)
        except RenderError as error:
            raise UnusableError(REFUSED) from error
        for answer, text in zip(answers, texts, strict=True):
            _refuse_another_text(answer, text, self._format(arguments))
        return prompt_text, texts

    def prompt(self, prompt: list[Message], arguments: Arguments = _NONE) -> str:
        """The text that asks for an answer: what `split` says precedes an ordinary one.

        Where the template does not go on from what it asks with (it may ask for thoughts), what it asks with. A
        conversation that it refuses is an `UnusableError`.
        """
        try:
            return self.split(prompt, [_ANSWER], arguments)[0]
        except UnusableError as reason:
            if str(reason) in {NO_SYSTEM, REFUSED}:
                raise
        try:
            return self._render(prompt, arguments)
        except RenderError as error:
            raise UnusableError(REFUSED) from error

    @property
    def asks_by_line(self) -> bool:
        """Whether answers begin on a line of their own."""
        return self._formats[_key({})].before.endswith("\n")

    @property
    def written_before(self) -> str:
        """The blank that the template puts between its generation prompt and an answer, which is not the answer's."""
        form = self._formats[_key({})]
        before = form.before.removeprefix(form.asked) if form.before.startswith(form.asked) else ""
        return before[len(form.header) :]

    def _split(self, prompt: list[Message], answers: list[str], arguments: Arguments) -> tuple[str, list[str]]:
        asked = self._render(prompt, arguments)
        wholes = [self._render(prompt, arguments, answer) for answer in answers]
        for prompt_text, before in _prompt_ends(asked, wholes, self._format(arguments)):
            if all(whole.startswith(before) for whole in wholes):
                return prompt_text, [whole[len(before) :] for whole in wholes]
        if prompt[0]["role"] != "system":
            raise UnusableError(NOT_CONTINUED)
        # What is written behind the question does not depend on a system turn, wherever that stands.
        without, texts = self._split(prompt[1:], answers, arguments)
        asked_without = self._render(prompt[1:], arguments)
        if without.startswith(asked_without) and all(map(str.endswith, wholes, texts)):
            return asked + without.removeprefix(asked_without), texts
        raise UnusableError(NOT_CONTINUED)

    def _format(self, arguments: Arguments) -> _AnswerFormat:
        """What the template does when given these arguments: ``enable_thinking``, say, changes what it writes."""
        key = _key(arguments)
        if key not in self._formats:
            if len(self._formats) >= _FORMATS_KEPT:
                self._formats = {_key({}): self._formats[_key({})]}
            try:
                self._formats[key] = self._learn(arguments)
            except RenderError:
                self._formats[key] = self._formats[_key({})]
        return self._formats[key]

    def _learn(self, arguments: Arguments) -> _AnswerFormat:
        before, found, after = self._render(_QUESTION, arguments, _ANSWER).rpartition(_ANSWER)
        asked = self._render(_QUESTION, arguments)
        following = [*_QUESTION, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _FOLLOWING}]
        between = self._tried(following, arguments).rpartition(_ANSWER)[2].partition(_FOLLOWING)[0]
        thoughts = {"reasoning_content": _THOUGHT, "thinking": _THOUGHT}
        thinks = self._tried(_QUESTION, arguments, _ANSWER, thoughts).partition(_THOUGHT)[0]
        return _AnswerFormat(asked, before if found else "", after, between, thinks)

    def _tried(self, *conversation: Any) -> str:
        """What the template makes of a conversation, "" where it refuses it."""
        try:
            return self._render(*conversation)
        except RenderError:
            return ""


def _prompt_ends(asked: str, wholes: list[str], form: _AnswerFormat) -> list[tuple[str, str]]:
    """What the prompt may be, each with what then has to stand before an answer; the first that fits holds."""
    header, surplus = form.header, form.surplus
    ends = [(asked + header, asked + header), (asked, asked)]
    if surplus and asked.endswith(surplus):
        before = asked.removesuffix(surplus)
        first = _MARKER.search(surplus)
        assert first
        # Thoughts cannot follow the block that says there are none.
        if not any(whole.startswith(before + surplus[: first.end()]) for whole in wholes):
            ends.append((asked, before))
    opened, closed = form.instead
    if closed and asked.endswith(opened):
        ends.append((asked.removesuffix(opened) + closed,) * 2)
    return ends


def _refuse_another_text(answer: str, text: str, form: _AnswerFormat) -> None:
    """Refuse a response whose text is not the answer, whole; its beginning may stand in the prompt."""
    body = text.removesuffix(form.after)
    if body.strip() == answer.strip():
        return
    frame, said, written = (_bare(each) for each in (form.frame, answer, form.frame + body))
    around = _bare(form.asked.rpartition(_ASKED)[2] + body)
    for whole in (around, written):
        if whole.endswith(said) and frame.startswith(whole.removesuffix(said).rstrip()):
            return
    left = _bare(body).removeprefix(_bare(form.header))
    if said.endswith(left):
        raise UnusableError(NO_BEGINNING)
    raise UnusableError(NO_END if said.startswith(left) else REWRITTEN)


def _bare(text: str) -> str:
    """Without what templates trim: blanks around a text, and around the tags of thoughts in it."""
    return _THINK_AMONG_BLANKS.sub(r"\1", text).strip()


def _key(arguments: Arguments) -> str:
    """What of the arguments can change the writing around an answer; the tools themselves are part of the prompt."""
    return json.dumps({**arguments, TOOLS: TOOLS in arguments}, sort_keys=True, default=str)
