"""Text to ids, once for every stage.

The prompt and the prompt with its answer are rendered by the chat template *as text*; the answer's text is what
follows the prompt's (`stages.tokens.chat` says where exactly). Both are tokenised apart, without adding special tokens
to what is already rendered::

    render(prompt)            <|user|>the question<|end|><|assistant|>
    render(prompt + answer)   <|user|>the question<|end|><|assistant|>the answer<|end|>\\n
                              '------------- prompt_ids ------------''- response_ids -' (cut after the end of turn)

A tokenizer without a chat template takes single-turn prompts as plain text: the prompt with the special tokens the
tokenizer puts before it, then the answer, then `eos_token`.

A response has the ids that it has behind its prompt: on its own, it would begin with the "▁" by which SentencePiece
marks the beginning of a text. So it is tokenised behind the end of its prompt, whose ids are then taken off. Where a
token would reach across the border (a template that ends in a blank, an answer that begins with a newline), the prompt
keeps the ids that the model will be asked with, and the response is tokenised behind a newline, or on its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from stages.data.conversations import EMPTY_PROMPT, EMPTY_RESPONSE, UnusableError
from stages.data.template_arguments import TOOLS, texts_of
from stages.errors import SepoError
from stages.store.files import hash_json
from stages.tokens.chat import ChatTemplate
from stages.tokens.control import ControlTokens
from stages.tokens.fingerprint import tokenizer_fingerprint
from stages.tokens.offsets import PairOffsets, ResponseOffsets, response_offsets
from stages.tokens.round_trip import RoundTrip
from stages.types import Dropped, Ids, Message, Pair, Tokenizer, TokenPair

CONTROL: Final = "text spells a control token"
NEEDS_TEMPLATE: Final = "several turns, but the tokenizer has no chat template"
TOOLS_NEED_TEMPLATE: Final = "tools, but the tokenizer has no chat template"
NO_PROMPT_IDS: Final = "the tokenizer has no token for the prompt"
SAME_IDS: Final = "chosen equals rejected as tokens"
SAME_WHEN_CUT: Final = "chosen equals rejected once cut"
NO_ROOM: Final = "prompt leaves no room for a response"
_NO_ARGUMENTS: Final[Mapping[str, Any]] = {}
Context = tuple[str, list[int]]
"""a text that another is tokenised behind, and its ids"""


class _Rendered(NamedTuple):
    """A pair as the texts that are tokenised."""

    pair_id: int
    prompt: str
    end: str
    """of the prompt, from its last control token on"""
    responses: list[str]


class Encoder:
    """A tokenizer, its end of turn, and the rule that makes a `TokenPair` of a `Pair`."""

    def __init__(self, tokenizer: Tokenizer, given: Mapping[str, Any] = _NO_ARGUMENTS) -> None:
        """Args: given: what the chat template is told for every row that says nothing else."""
        self._round_trip = RoundTrip(tokenizer)
        self._given = given
        self._tokenizer = tokenizer
        self._ready: dict[str, list[int]] = {}
        self._template = ChatTemplate(tokenizer, given) if tokenizer.chat_template else None
        self._after = self._template.after if self._template else ""
        self._control = ControlTokens(tokenizer, self._template.own_text if self._template else "")
        if any(map(self._control.spelled_in, texts_of(given))):
            raise SepoError("chat_template_kwargs: " + CONTROL, hint="give the template other arguments")
        after_ids = self._tokenise(self._after)
        self._end_of_turn = self._control.first(self._after, after_ids) or self._next_turn()
        self._ends = sum(id_ == self.end_of_turn for id_ in after_ids)
        self._newline = self._last_end = ("\n", self._tokenise("\n"))
        self._before = [] if self._template else _before_a_text(tokenizer)

    def _next_turn(self) -> int | None:
        """What ends a turn where the template writes nothing behind the last one: the first token of what follows."""
        between = self._template.between if self._template else ""
        found = self._control.first(between, self._tokenise(between))
        # A text begins with it, and none ends so.
        return None if found == self._tokenizer.bos_token_id else found

    @property
    def ignored_arguments(self) -> list[str]:
        """Arguments of the chat template that it does not know."""
        return self._template.ignored if self._template else list(self._given)

    def changed_texts(self) -> list[str]:
        """What the tokenizer changed in the texts encoded since this was last asked, as a sentence where it did."""
        changed, example = self._round_trip.changed, self._round_trip.example
        self._round_trip.changed, self._round_trip.example = 0, ""
        return [f"the tokenizer changes {changed:,} texts: {example} (first)"] if changed else []

    @property
    def end_of_turn(self) -> int | None:
        """The id that ends every response, or None if the tokenizer has nothing for it."""
        eos: int | None = self._tokenizer.eos_token_id
        return eos if self._end_of_turn is None else self._end_of_turn

    @property
    def fingerprint(self) -> str:
        """Two encoders of one fingerprint make the same ids of the same text."""
        alone = tokenizer_fingerprint(self._tokenizer)
        return hash_json([alone, self._given]) if self._given else alone

    @property
    def shows_tools(self) -> bool:
        """Whether a row's ``tools`` make a difference to its prompt."""
        return self._template is not None and self._template.shows_tools

    def encode(self, pair: Pair) -> TokenPair | Dropped:
        """Ids of the prompt and of both responses (of the chosen one alone where `rejected` is empty).

        A response ends with the template's end-of-turn token, once; where a template ends turns with plain text, with
        `eos_token`.
        """
        return self.encode_all([pair])[0]

    def encode_all(self, pairs: Sequence[Pair]) -> list[TokenPair | Dropped]:
        """The same of every pair, in less time: their texts are tokenised in one call."""
        rendered = [self._render(pair) for pair in pairs]
        texts = [
            text
            for item in rendered
            if isinstance(item, _Rendered)
            for text in (item.prompt, *(item.end + response for response in item.responses))
        ]
        self._prepare(texts)
        encoded = [item if isinstance(item, Dropped) else self._encode(item) for item in rendered]
        self._ready.clear()
        return encoded

    def prompt_ids(self, messages: list[Message]) -> Ids:
        """The ids of a prompt alone, (P,): those it has in a pair. One that cannot be used is an `UnusableError`."""
        if not messages or not messages[-1]["content"].strip():
            raise UnusableError(EMPTY_PROMPT)
        if any(self._control.spelled_in(turn["content"]) for turn in messages):
            raise UnusableError(CONTROL)
        if not self._template and len(messages) > 1:
            raise UnusableError(NEEDS_TEMPLATE)
        text = self._template.prompt(messages) if self._template else messages[0]["content"]
        ids = self._tokenise(text)
        self._ready.clear()
        if not self._before + ids:
            raise UnusableError(NO_PROMPT_IDS)
        damage = self._round_trip.damage(ids, text)
        if damage:
            raise UnusableError(damage)
        return np.array(self._before + ids, np.int32)

    def answer_text(self, ids: Ids, *, ended: bool) -> str:
        """What an answer says, without what the template writes around it.

        Args:
            ids: (A,), without what ended the answer.
            ended: whether the answer is whole.
        """
        said = ids.tolist()
        if not self._template:
            return self._say(said)
        # SentencePiece takes a blank from what is said first: right behind a marker, and wrong behind a newline.
        before = self._newline[1] if self._template.asks_by_line else []
        newline, text = self._say(before), self._say(before + said)
        text = text.removeprefix(newline) if text.startswith(newline) else self._say(said)
        text = text.removeprefix(self._template.written_before)
        return text.removesuffix(self._written_behind) if ended else text

    @property
    def _written_behind(self) -> str:
        """What the template writes between an answer and the token that ends it: all of it where that is no part."""
        end = str(self._tokenizer.convert_ids_to_tokens(self.end_of_turn)) if self._ends else ""
        return self._after.partition(end)[0] if end else self._after

    def _say(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def offsets(self, pair: Pair) -> PairOffsets | Dropped:
        """The ids of a pair as `encode` makes them, and where in the text of its responses each of their tokens ends.

        The tokenizer has to be one that knows (a "fast" one).
        """
        rendered = self._render(pair)
        if isinstance(rendered, Dropped):
            return rendered
        encoded = self._encode(rendered)
        self._ready.clear()
        if isinstance(encoded, Dropped):
            return encoded
        context = self._end_of_prompt(rendered, encoded.prompt_ids[len(self._before) :].tolist())
        sides = zip(rendered.responses, (encoded.chosen_ids, encoded.rejected_ids), strict=True)
        return PairOffsets(*encoded[:2], *(self._response_offsets(text, ids, context) for text, ids in sides))

    def _response_offsets(self, text: str, ids: Ids, context: Context) -> ResponseOffsets:
        before, known = self._context(text, context)
        found = self._tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = found["offset_mapping"][len(known) :][: len(ids)]
        offsets = [(max(0, start - len(before)), max(0, end - len(before))) for start, end in spans]
        # An end of turn that the text does not spell is one id more.
        offsets += [(len(text), len(text))] * (len(ids) - len(offsets))
        return response_offsets(ids, text, offsets, text.removesuffix(self._after), ended=self.end_of_turn is not None)

    def _render(self, pair: Pair) -> _Rendered | Dropped:
        answers = [answer for answer in (pair.chosen, pair.rejected) if answer]
        said = [*(turn["content"] for turn in pair.prompt), *answers, *texts_of(pair.template_arguments)]
        if any(map(self._control.spelled_in, said)):
            return Dropped(pair.pair_id, CONTROL)
        try:
            if self._template:
                prompt, texts = self._template.split(pair.prompt, answers, pair.template_arguments)
            elif len(pair.prompt) > 1:
                raise UnusableError(NEEDS_TEMPLATE)
            elif TOOLS in pair.template_arguments:
                raise UnusableError(TOOLS_NEED_TEMPLATE)
            else:
                prompt, texts = pair.prompt[0]["content"], answers
            if not all(text.removesuffix(self._after).strip() for text in texts):
                raise UnusableError(EMPTY_RESPONSE)
        except UnusableError as reason:
            return Dropped(pair.pair_id, str(reason))
        return _Rendered(pair.pair_id, prompt, prompt[self._control.last(prompt) :], texts)

    def _encode(self, rendered: _Rendered) -> TokenPair | Dropped:
        pair_id, prompt = rendered.pair_id, self._tokenise(rendered.prompt)
        if not self._before + prompt:
            return Dropped(pair_id, NO_PROMPT_IDS)
        damage = self._round_trip.damage(prompt, rendered.prompt)
        if damage:
            return Dropped(pair_id, damage)
        context = self._end_of_prompt(rendered, prompt)
        try:
            chosen, rejected = [*(self._response(text, context) for text in rendered.responses), []][:2]
        except UnusableError as reason:
            return Dropped(pair_id, str(reason))
        if chosen == rejected:
            return Dropped(pair_id, SAME_IDS)
        return TokenPair(pair_id, *(np.array(ids, np.int32) for ids in (self._before + prompt, chosen, rejected)))

    def _end_of_prompt(self, rendered: _Rendered, ids: list[int]) -> Context:
        """The prompt from its last control token on: a tokenizer does not look across one, and the rest is longer.

        Where that is not so, which shows in the ids, the whole prompt.
        """
        if rendered.end != self._last_end[0]:
            self._last_end = (rendered.end, self._tokenise(rendered.end))
        return self._last_end if ids[-len(self._last_end[1]) :] == self._last_end[1] else (rendered.prompt, ids)

    def _response(self, text: str, context: Context) -> list[int]:
        """The ids of a text where it stands, behind a context, if none of them reaches across the border."""
        before, known = self._context(text, context)
        response = self._close(self._tokenise(before + text)[len(known) :])
        said = response[:-1] if response[-1:] == [self.end_of_turn] else response
        damage = self._round_trip.damage(known + said, before + text, self._after)
        if damage:
            raise UnusableError(damage)
        return response

    def _context(self, text: str, context: Context) -> Context:
        """What a text is tokenised behind, and the ids of that, which are not the text's: the context or less."""
        for before, ids in (context, self._newline):
            whole = self._tokenise(before + text)
            if ids and whole[: len(ids)] == ids and not self._grown(before, text, ids):
                return before, ids
        return "", []

    def _grown(self, before: str, text: str, ids: list[int]) -> bool:
        """Whether the last of the ids is an unknown token that took in the beginning of the text: no id shows that."""
        if ids[-1] != self._tokenizer.unk_token_id:
            return False
        if not self._tokenizer.is_fast:
            return True
        offsets = self._tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return bool(offsets["offset_mapping"][len(ids) - 1][1] > len(before))

    def _close(self, response: list[int]) -> list[int]:
        """Cut what the template writes after its end of turn (often a newline, which no model is asked to write)."""
        end = self.end_of_turn
        if end is None:
            return response
        if response.count(end) > self._ends:
            raise UnusableError(CONTROL)
        return response[: response.index(end) + 1] if end in response else [*response, end]

    def _tokenise(self, text: str) -> list[int]:
        if text not in self._ready:
            self._prepare([text])
        return self._ready[text]

    def _prepare(self, texts: Iterable[str]) -> None:
        """Tokenise texts in one call, for `_tokenise` to look up."""
        each = list(dict.fromkeys(texts))
        if each:
            ids = self._tokenizer(each, add_special_tokens=False, verbose=False)["input_ids"]
            self._ready.update(zip(each, ids, strict=True))


def truncate(pair: TokenPair, max_length: int) -> TokenPair | Dropped:
    """The pair with the ends of its responses cut, so that the prompt with either has at most `max_length` tokens.

    The prompt stays whole. A response that was cut has no end of turn: it did not end there. Dropped are pairs whose
    prompt leaves no room for a token, and pairs that differ only in what was cut.
    """
    room = max_length - len(pair.prompt_ids)
    if room < 1:
        return Dropped(pair.pair_id, f"{NO_ROOM} in {max_length:,} tokens")
    cut = pair._replace(chosen_ids=pair.chosen_ids[:room], rejected_ids=pair.rejected_ids[:room])
    if np.array_equal(cut.chosen_ids, cut.rejected_ids):
        return Dropped(pair.pair_id, SAME_WHEN_CUT)
    return cut


def _before_a_text(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that a tokenizer puts before a text (those behind it would end the turn before the answer)."""
    whole, bare = list(tokenizer("0")["input_ids"]), list(tokenizer("0", add_special_tokens=False)["input_ids"])
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(bare)] == bare), [])
