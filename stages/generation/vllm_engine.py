"""The engine of vLLM, in this process: written against vLLM 0.33."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from vllm import LLM, SamplingParams, TokensPrompt

from stages.data.conversations import UnusableError
from stages.errors import borrowed
from stages.generation.engine import Generated, Request
from stages.models.habits import NO_HABITS, Habits
from stages.tokens.encode import NO_ROOM, Encoder
from stages.types import Ids

_LARGEST_FIT: Final = -1
"""Of a context: the model's own, or as much of it as the memory holds."""


class VllmEngine:
    """Answers requests with vLLM, asked in the ids that training uses.

    Of what the model's folder says about generation the ends of an answer count, beside the template's own, and the
    habits that are asked for.
    The weights are in the precision that vLLM takes for them: never float32 by itself.
    """

    def __init__(self, folder: Path, encoder: Encoder, *, trust_remote_code: bool, habits: Habits = NO_HABITS) -> None:
        """Load the model; vLLM takes most of the GPU's memory for itself."""
        self._habits = habits
        with borrowed(f"vLLM cannot load {folder}", "see what vLLM says above; --engine transformers loads it too"):
            self._llm = LLM(
                str(folder), trust_remote_code=trust_remote_code, generation_config="vllm", max_model_len=_LARGEST_FIT
            )
        self._encoder = encoder
        self._positions: int = self._llm.model_config.max_model_len

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generated]]:
        """Each request's index and its answer, when all are ready: vLLM batches them as it likes."""
        asked: dict[int, Ids] = {}
        for index, request in enumerate(requests):
            try:
                asked[index] = self._prompt_ids(request)
            except UnusableError as reason:
                yield index, Generated("", ended=False, problem=str(reason))
        prompts = [TokensPrompt(prompt_token_ids=ids.tolist()) for ids in asked.values()]
        how = [self._sampling(requests[index]) for index in asked]
        with borrowed("vLLM failed", "see what vLLM says above; the same command goes on"):
            found = self._llm.generate(prompts, how, use_tqdm=False) if prompts else []
        for (index, prompt_ids), output in zip(asked.items(), found, strict=True):
            yield index, self._generated(prompt_ids, output.outputs[0])

    def together(self, requests: Sequence[Request]) -> list[list[int]]:
        """See `GenerationEngine`."""
        return [[*range(len(requests))]]

    def _prompt_ids(self, request: Request) -> Ids:
        prompt_ids = self._encoder.prompt_ids(request.messages)
        if len(prompt_ids) >= self._positions:
            raise UnusableError(f"{NO_ROOM} in {self._positions:,} tokens")
        return prompt_ids

    def _sampling(self, request: Request) -> Any:
        end = self._encoder.end_of_turn
        own = {"temperature": request.temperature, "top_p": request.top_p}
        return SamplingParams(
            **self._habits.given() | own,
            max_tokens=request.max_new_tokens,
            seed=request.seed,
            stop_token_ids=[] if end is None else [end],
            # Of no other token than the one that was drawn.
            logprobs=0,
            detokenize=False,
        )

    def _generated(self, prompt_ids: Ids, completion: Any) -> Generated:
        if completion.finish_reason not in ("stop", "length"):
            return Generated("", ended=False, problem=f"vLLM gave it up: {completion.finish_reason}")
        ended, answer_ids = completion.finish_reason == "stop", np.array(completion.token_ids, np.int32)
        each = zip(completion.token_ids, completion.logprobs, strict=True)
        logps = np.array([known[id_].logprob for id_, known in each], np.float32)
        text = self._encoder.answer_text(answer_ids[:-1] if ended else answer_ids, ended=ended)
        return Generated(text, ended, prompt_ids, answer_ids, logps)
