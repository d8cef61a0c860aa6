"""The engine in this process: a model of transformers, asked in the words that training uses."""

from collections.abc import Iterator, Sequence
from typing import Any

from stages.data.conversations import UnusableError
from stages.generation.engine import Generated, Request
from stages.logprobs.decode import Decoded, DecodeRequest, Told, decode, decoded_together
from stages.logprobs.decode_trial import find_decoding
from stages.logprobs.paths import find_paths
from stages.models.ends import named_ends
from stages.models.habits import NO_HABITS, Habits
from stages.reporting import Quiet, Reporter
from stages.tokens.encode import NO_ROOM, Encoder
from stages.types import CausalLM, Ids


class TransformersEngine:
    """Answers requests, batched by length under a token budget.

    The same sequence of requests gives the same bytes on the same machine. Of what the model's configurations say
    about generation the ends count that they name, and what else is asked for: no penalty of their own.
    """

    def __init__(
        self,
        model: CausalLM,
        encoder: Encoder,
        *,
        max_tokens: int,
        habits: Habits = NO_HABITS,
        reporter: Reporter | None = None,
        told: Told | None = None,
    ) -> None:
        """Make ready to answer.

        Args:
            max_tokens: of one batch, prompts and longest answers together.
            habits: of all answers; their temperature and top-p come with each request.
            told: see `decode`.
        """
        reporter = reporter or Quiet()
        self._decoding = find_decoding(find_paths(model, reporter), reporter)
        self._encoder = encoder
        self._max_tokens = max_tokens
        self._how: Any = {"max_tokens": max_tokens, "processors": habits.processors(), "told": told}
        self._positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._ends = named_ends(model).union(() if encoder.end_of_turn is None else (encoder.end_of_turn,))

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generated]]:
        """Each request's index and its answer; at first those that have none, by their problem."""
        asked, problems = self._encoded(requests)
        for index, reason in problems.items():
            yield index, Generated("", False, problem=reason)
        order = list(asked)
        each = list(asked.values())
        for place, decoded in decode(self._decoding, each, ends=self._ends, **self._how):
            index = order[place]
            yield index, self._generated(asked[index].prompt_ids, decoded)

    def together(self, requests: Sequence[Request]) -> list[list[int]]:
        """The indices of the requests of each batch: see `GenerationEngine`."""
        asked, problems = self._encoded(requests)
        order = list(asked)
        batches = decoded_together(self._decoding, list(asked.values()), self._max_tokens)
        return [[index] for index in problems] + [[order[place] for place in batch] for batch in batches]

    def _encoded(self, requests: Sequence[Request]) -> tuple[dict[int, DecodeRequest], dict[int, str]]:
        """By their index, the requests in ids, and why others cannot be asked."""
        asked, problems = {}, {}
        for index, request in enumerate(requests):
            try:
                asked[index] = self._decode_request(request)
            except UnusableError as reason:
                problems[index] = str(reason)
        return asked, problems

    def _decode_request(self, request: Request) -> DecodeRequest:
        prompt_ids = self._encoder.prompt_ids(request.messages)
        room = request.max_new_tokens
        if self._positions is not None:
            room = min(room, self._positions - len(prompt_ids))
        if room < 1:
            raise UnusableError(f"{NO_ROOM} in {self._positions:,} tokens")
        return DecodeRequest(prompt_ids, request.temperature, request.top_p, room, request.seed)

    def _generated(self, prompt_ids: Ids, decoded: Decoded) -> Generated:
        said = decoded.answer_ids[:-1] if decoded.ended else decoded.answer_ids
        text = self._encoder.answer_text(said, ended=decoded.ended)
        return Generated(text, decoded.ended, prompt_ids, decoded.answer_ids, decoded.logps)
