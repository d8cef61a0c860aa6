"""Text to ids, once for every stage.

The prompt and the prompt with its answer are rendered by the chat template *as text*; the answer's text is what
follows the prompt's. Both are tokenised apart, without adding special tokens to what is already rendered::

    render(prompt)            <|user|>the question<|end|><|assistant|>
    render(prompt + answer)   <|user|>the question<|end|><|assistant|>the answer<|end|>\\n
                              '------------- prompt_ids ------------''- response_ids -' (cut after the end of turn)

A tokenizer without a chat template takes single-turn prompts as plain text: the prompt with the special tokens the
tokenizer puts before it, then the answer, then `eos_token`.
"""

import re
from typing import Any, Final

import numpy as np
from jinja2.exceptions import TemplateError

from stages.currency import Dropped, Ids, Message, Pair, TokenPair
from stages.errors import SepoError

CONTROL: Final = "text spells a control token"
NOT_CONTINUED: Final = "the chat template does not continue its own prompt"
REFUSED: Final = "the chat template refuses the conversation"
NEEDS_TEMPLATE: Final = "several turns, but the tokenizer has no chat template"
EMPTY_RESPONSE: Final = "empty response"
_PROBE: Final = "0"


class Encoder:
    """A tokenizer, its end of turn, and the rule that makes a `TokenPair` of a `Pair`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._control = _control_pattern(tokenizer)
        self._end_of_turn = _end_of_turn(tokenizer) if tokenizer.chat_template else None

    @property
    def end_of_turn(self) -> int | None:
        """The id that ends every response, or None if the tokenizer has nothing for it."""
        return self._tokenizer.eos_token_id if self._end_of_turn is None else self._end_of_turn

    def encode(self, pair: Pair) -> TokenPair | Dropped:
        """Ids of the prompt and of both responses (of the chosen one alone where `rejected` is empty).

        A response ends with the template's end-of-turn token, once; where a template ends turns with plain text, with
        `eos_token`.
        """
        if any(self._control.search(text) for text in _texts(pair)):
            return Dropped(pair.pair_id, CONTROL)
        encode = self._with_template if self._tokenizer.chat_template else self._plain
        answers = [answer for answer in (pair.chosen, pair.rejected) if answer]
        prompt, responses, reason = encode(pair.prompt, answers)
        if reason:
            return Dropped(pair.pair_id, reason)
        rejected = responses[1] if pair.rejected else []
        return TokenPair(pair.pair_id, _ids(prompt), _ids(responses[0]), _ids(rejected))

    def _with_template(self, prompt: list[Message], answers: list[str]) -> tuple[list[int], list[list[int]], str]:
        try:
            prompt_text = _render(self._tokenizer, prompt)
            whole_texts = [_render(self._tokenizer, prompt, answer) for answer in answers]
        except TemplateError:
            return [], [], REFUSED
        if not all(text.startswith(prompt_text) for text in whole_texts):
            return [], [], NOT_CONTINUED
        responses = [self._close(self._tokenise(text[len(prompt_text) :])) for text in whole_texts]
        if any(response[0] == self._end_of_turn for response in responses):
            return [], [], EMPTY_RESPONSE
        return self._tokenise(prompt_text), responses, ""

    def _plain(self, prompt: list[Message], answers: list[str]) -> tuple[list[int], list[list[int]], str]:
        if len(prompt) > 1:
            return [], [], NEEDS_TEMPLATE
        prompt_ids = list(self._tokenizer(prompt[0]["content"])["input_ids"])
        if prompt_ids[-1:] == [self._tokenizer.eos_token_id]:
            prompt_ids.pop()
        return prompt_ids, [self._close(self._tokenise(answer)) for answer in answers], ""

    def _close(self, response: list[int]) -> list[int]:
        """Cut what the template writes after its end of turn (often a newline, which no model is asked to write)."""
        if self._end_of_turn is not None and self._end_of_turn in response:
            last = len(response) - 1 - response[::-1].index(self._end_of_turn)
            return response[: last + 1]
        return response if self.end_of_turn is None else [*response, self.end_of_turn]

    def _tokenise(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _render(tokenizer: Any, prompt: list[Message], answer: str | None = None) -> str:
    messages = prompt if answer is None else [*prompt, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None))


def _end_of_turn(tokenizer: Any) -> int | None:
    """The first special token that the template writes after an answer, or None if it writes none."""
    prompt = [{"role": "user", "content": _PROBE}]
    try:
        text = _render(tokenizer, prompt, _PROBE)
    except TemplateError as error:
        raise SepoError(
            f"the chat template fails on a user turn and an answer: {error}", hint="repair the model's chat template"
        ) from error
    after = tokenizer(text[text.rindex(_PROBE) + len(_PROBE) :], add_special_tokens=False)["input_ids"]
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((id_ for id_ in after if id_ in special), None)


def _control_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches text that the tokenizer would read as a special token: a user must not be able to end a turn."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    # With no special token, a pattern that matches nothing.
    return re.compile("|".join(map(re.escape, special)) or r"(?!)")


def _texts(pair: Pair) -> list[str]:
    return [*(message["content"] for message in pair.prompt), pair.chosen, pair.rejected]


def _ids(values: list[int]) -> Ids:
    return np.asarray(values, dtype=np.int32)
