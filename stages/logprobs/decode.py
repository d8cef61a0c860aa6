"""Sampling answers from a model, many at a time, each with a seed of its own.

    requests --> batches by length --> prefill --> a token a step and row, rows that end leave --> answers

A batch is filled by length, longest first, up to a budget of tokens that its rows could come to have. Its rows are
padded on the left; a row that ends leaves at once, and what is padding in all that are left goes with it. No row joins
a batch: the columns it would be padded with cost more memory traffic than a smaller batch wastes. What a model cannot
do of this, `stages.logprobs.decode_trial` finds out.

Which rows are computed together depends on the requests and the budget alone, so the same requests give the same
answers to the last bit. Alone or in other company a row is rounded otherwise; its random numbers are the same.

Shapes: ``R`` rows, ``T`` tokens (padding included), ``V`` vocabulary.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from stages.devices.memory import enough_memory
from stages.devices.placement import input_device
from stages.errors import SepoError
from stages.logprobs.draw import draw
from stages.logprobs.head import Head, find_head, own_head_in_float32
from stages.logprobs.kv_cache import forgets_beginnings, keep_rows, make_cache
from stages.logprobs.logps import Forward, keeps_logits
from stages.types import CausalLM, Floats, Ids

Told = Callable[[int], object]
"""hears how many answers have a token more"""


class DecodeRequest(NamedTuple):
    """One answer that is wanted."""

    prompt_ids: Ids
    """(P,), at least one"""
    temperature: float
    """0: always the likeliest token"""
    top_p: float
    max_new_tokens: int
    seed: int | tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longest answer."""
        return len(self.prompt_ids) + self.max_new_tokens


class Decoded(NamedTuple):
    """One answer."""

    answer_ids: Ids
    """(A,), with the token that ended it if one did"""
    logps: Floats
    """(A,), nats, of the model's own distribution: before processors, temperature and top-p"""
    ended: bool
    """False: cut at `max_new_tokens`"""


class DecodePlan(NamedTuple):
    """A model, and how its answers can be decoded; see `stages.logprobs.decode_trial.find_decoding`."""

    forward: Forward
    mixed: bool = True
    """rows of different lengths in one batch"""
    alone: bool = False
    """every row is a batch of its own"""
    cached: bool = True
    """what was computed for earlier tokens is kept; else each token takes a forward pass of its whole row"""


@dataclass
class _Row:
    """An answer that is being written."""

    index: int
    request: DecodeRequest
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.request.seed)

    @property
    def length(self) -> int:
        """Tokens so far, with the prompt's."""
        return len(self.request.prompt_ids) + len(self.tokens)

    def uniform(self) -> float:
        return self._generator.random()

    def decoded(self, ends: Collection[int]) -> Decoded:
        return Decoded(np.array(self.tokens, np.int32), np.array(self.logps, np.float32), self.tokens[-1] in ends)


def decode(
    decoding: DecodePlan,
    requests: Sequence[DecodeRequest],
    *,
    ends: Collection[int],
    max_tokens: int,
    processors: LogitsProcessorList | None = None,
    told: Told | None = None,
) -> Iterator[tuple[int, Decoded]]:
    """The index and the answer of each request, as they are ready.

    What the model's generation_config.json asks for (other ends too) has no part in it beyond what is given here.

    Args:
        decoding: its model is in eval mode.
        ends: ids that end an answer.
        max_tokens: of one batch: its rows times the most tokens that one of them may come to have. One request alone
            may have more.
        processors: transformers' own, of the logits that tokens are drawn from.
        told: called with every token of a batch, with its rows.
    """
    decoder = _Decoder(decoding, processors)
    for group in decoded_together(decoding, requests, max_tokens):
        yield from decoder.answers([_Row(index, requests[index]) for index in group], ends, told)


def decoded_together(decoding: DecodePlan, requests: Sequence[DecodeRequest], max_tokens: int) -> list[list[int]]:
    """Indices of the requests of each batch. Longest first: memory runs out at once or never.

    Some of these batches without the others are batched in the same way.
    """
    groups: list[list[int]] = []
    room = together = 0
    for by_length, longest, index in sorted(
        (0 if decoding.mixed else -len(request.prompt_ids), -request.longest, index)
        for index, request in enumerate(requests)
    ):
        if room < 1 or by_length != together or decoding.alone:
            groups.append([])
            room, together = max(1, max_tokens // -longest), by_length
        groups[-1].append(index)
        room -= 1
    return groups


class _Decoder:
    """A model, ready to say what comes next."""

    def __init__(self, decoding: DecodePlan, processors: LogitsProcessorList | None) -> None:
        self._decoding, self._forward, self._processors = decoding, decoding.forward, processors
        self._model: CausalLM = self._forward.model
        self._states_only = "cache_params" in _parameters(self._model)
        self._head: Head | None = None
        if self._forward.chunked:
            head = find_head(self._model)
            self._head = head._replace(weight_VH=head.weight_VH.float())

    def answers(self, rows: list[_Row], ends: Collection[int], told: Told | None) -> Iterator[tuple[int, Decoded]]:
        """The answers of one batch."""
        batch = _Rows(rows, input_device(self._model))
        cache, ids_RT = make_cache(self._model.config), batch.whole()
        if self._decoding.alone:
            self._forget_frequencies(ids_RT)
        while rows:
            with enough_memory(*batch.size()):
                tokens = self._next(rows, batch, ids_RT, cache)
            if told:
                told(len(rows))
            done = [_is_done(row, ends) for row in rows]
            yield from ((row.index, row.decoded(ends)) for row, ended in zip(rows, done, strict=True) if ended)
            ids_RT = tokens[:, None]
            if any(done) and not all(done):
                left = [place for place, ended in enumerate(done) if not ended]
                kept = torch.tensor(left, device=ids_RT.device)
                keep_rows(cache, kept, batch.keep(kept, forgets=forgets_beginnings(cache)))
                ids_RT = ids_RT[kept]
            rows = [row for row, ended in zip(rows, done, strict=True) if not ended]
            if rows and self._starts_again(rows[0]):
                cache, ids_RT = make_cache(self._model.config), batch.whole()

    @torch.no_grad()
    def _next(self, rows: list[_Row], batch: "_Rows", ids_RT: Tensor, cache: Any) -> Tensor:
        """Append a token to every row; returns them, (R,)."""
        with self._forward.context():
            logits_RV = self._logits(self._inputs(batch, ids_RT, cache))
        processed_RV = self._processors(batch.ids_RT, logits_RV) if self._processors else logits_RV
        uniform_R = torch.tensor([row.uniform() for row in rows], dtype=torch.float64, device=logits_RV.device)
        tokens_R = _agreed(self._model, draw(processed_RV, batch.temperature_R, batch.top_p_R, uniform_R))
        logps_R = logits_RV.log_softmax(-1).gather(-1, tokens_R[:, None]).squeeze(-1)
        if not bool(logps_R.isfinite().all()):
            raise SepoError(
                "the model's log-probs are not finite",
                hint="its training has diverged, or its weights are damaged: leave this model out",
            )
        for row, token, logp in zip(rows, tokens_R.tolist(), logps_R.tolist(), strict=True):
            row.tokens.append(token)
            row.logps.append(logp)
        batch.append(tokens_R)
        return tokens_R

    def _inputs(self, batch: "_Rows", ids_RT: Tensor, cache: Any) -> dict[str, Any]:
        inputs = batch.inputs(ids_RT)
        if not self._decoding.cached:
            return inputs | {"use_cache": False}
        if not self._states_only:
            return inputs | {"use_cache": True, "past_key_values": cache}
        if not batch.began:
            # A state has seen its padding, and of what is new no column is any.
            del inputs["attention_mask"]
        return inputs | {"use_cache": True, "cache_params": cache}

    def _logits(self, inputs: dict[str, Any]) -> Tensor:
        """What follows the last column, (R, V) float32."""
        if self._head is not None:
            last_RH = self._model.base_model(**inputs).last_hidden_state[:, -1]
            return self._head.logits(last_RH.to(self._head.weight_VH.device)).to(last_RH.device)
        # By the model's own head: soft-capping and scaling are its own.
        last = {"logits_to_keep": 1} if keeps_logits(self._model) else {}
        with own_head_in_float32(self._model):
            logits_RV: Tensor = self._model(**inputs, **last).logits[:, -1].float()
        return logits_RV

    @torch.no_grad()
    def _forget_frequencies(self, ids_RT: Tensor) -> None:
        """transformers keeps the rotary frequencies of the longest row so far; one of a single token takes it back."""
        with self._forward.context():
            self._model(input_ids=ids_RT[:1, :1], use_cache=False)

    def _starts_again(self, row: _Row) -> bool:
        """Whether nothing that is cached holds for the next token: longrope takes other frequencies for long rows."""
        if not self._decoding.cached:
            return True
        return self._decoding.alone and row.length - 1 == _longrope_border(self._model.config.to_dict())


class _Rows:
    """The tensors that go with the rows of a batch, and which columns are padding."""

    def __init__(self, rows: list[_Row], device: torch.device) -> None:
        self._device = device
        self._rows = rows
        lengths = [len(row.request.prompt_ids) for row in rows]
        self._width = 0
        self.began = True
        """whether the columns that were new last were the first"""
        self._padding_R = torch.tensor([max(lengths) - length for length in lengths], device=device)
        # Padded with a token of its own, which the attention mask hides, and which no processor can take for another.
        prompts = [row.request.prompt_ids for row in rows]
        padded = [np.pad(prompt, (max(lengths) - len(prompt), 0), "edge") for prompt in prompts]
        self.ids_RT = torch.from_numpy(np.stack(padded).astype(np.int64)).to(device)
        """all tokens so far"""
        self.temperature_R = torch.tensor([row.request.temperature for row in rows], device=device)
        self.top_p_R = torch.tensor([row.request.top_p for row in rows], device=device)

    def whole(self) -> Tensor:
        """All tokens so far, (R, T), for a model that knows none of them."""
        self._width = 0
        return self.ids_RT

    def append(self, tokens_R: Tensor) -> None:
        """Each row has a token more."""
        self.ids_RT = torch.cat([self.ids_RT, tokens_R[:, None]], -1)

    def inputs(self, ids_RT: Tensor) -> dict[str, Tensor]:
        """What a model is given for the columns that are new."""
        columns_T = torch.arange(self._width + ids_RT.shape[1], device=self._device)
        positions_RT = (columns_T[self._width :] - self._padding_R[:, None]).clamp(min=0)
        self.began = self._width == 0
        self._width = len(columns_T)
        attention_RT = (columns_T >= self._padding_R[:, None]).long()
        return {"input_ids": ids_RT, "attention_mask": attention_RT, "position_ids": positions_RT}

    def keep(self, kept: Tensor, *, forgets: bool) -> int:
        """Only these rows; returns how many columns at the beginning, padding in all of them, go with the others."""
        self._rows = [self._rows[place] for place in kept.tolist()]
        self._padding_R, self.temperature_R, self.top_p_R = (
            values_R[kept] for values_R in (self._padding_R, self.temperature_R, self.top_p_R)
        )
        start = int(self._padding_R.min()) if forgets else 0
        self.ids_RT = self.ids_RT[kept, start:]
        self._padding_R = self._padding_R - start
        self._width -= start
        return start

    def size(self) -> tuple[str, Any]:
        """For whoever runs out of memory: in what, and what helps."""
        tokens = len(self._rows) * max(row.request.longest for row in self._rows)
        doing = f"answering {len(self._rows):,} prompts at once, of up to {tokens:,} tokens in total"
        return doing, lambda: f"use --max-tokens-per-device {tokens // 2}, or fewer --max-new-tokens; the run goes on"


def _longrope_border(config: Any) -> int | None:
    """The tokens of a row beyond which a model with ``rope_type`` longrope takes other frequencies."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "longrope":
        return None
    border: int | None = rope.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    return border


def _agreed(model: CausalLM, tokens_R: Tensor) -> Tensor:
    """The tokens that the first process drew, where several hold the model together.

    All draw with the same random numbers; but where one of them rounds a logit otherwise, and draws another token, its
    rows would end at other steps than those of the others, which wait for it in every layer.
    """
    if getattr(model, "tp_size", None):
        torch.distributed.broadcast(tokens_R, src=0)
    return tokens_R


def _parameters(model: CausalLM) -> Collection[str]:
    return inspect.signature(getattr(model, "module", model).forward).parameters


def _is_done(row: _Row, ends: Collection[int]) -> bool:
    return row.tokens[-1] in ends or len(row.tokens) == row.request.max_new_tokens
