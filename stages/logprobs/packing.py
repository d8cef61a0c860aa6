"""Pairs packed into one row without padding, and their grouping by a budget of tokens.

A response is cut behind its last weighted token: nothing that follows can matter to a causal model.

Shapes: ``T`` tokens of the row; ``N`` response tokens that are needed: the weighted ones, or all (of every pair the
chosen ones, then the rejected ones); ``R`` responses, every chosen one, then every rejected one; ``W`` needed tokens of
the response that has most.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.logprobs.attention import Layout, Span
from stages.logprobs.batches import references_of
from stages.types import Example, Floats, Ids


class Packed(NamedTuple):
    """Examples in one row; see `stages.logprobs.attention` for the picture."""

    ids_T: Tensor
    """int64"""
    positions_T: Tensor
    """int64, where each token would stand in a row of its own"""
    layout: Layout
    sources_N: Tensor
    """int64, where in the row the logits of a needed token are: at the token before it, for the first token of
    either response the last one of the prompt"""
    targets_N: Tensor
    """int64, the ids of the needed tokens"""
    places_N: Tensor
    """int64, where each of them is in the flattened `weights_RW`"""
    weights_RW: Tensor
    """float32, the weights of each response's needed tokens, then 0"""
    reference_R: Tensor | None
    """float32, summed reference log-probs; None without a reference"""
    needed_RW: Tensor
    """bool, where `weights_RW` holds a token"""
    kl_RW: Tensor | None = None
    """float32 nats, divergence from a reference at every needed token, where it was asked for"""


class _Response(NamedTuple):
    """A response on its way into a row."""

    row: int
    """R"""
    ids: Ids
    """up to the last needed one"""
    places: NDArray[np.int64]
    """of the needed ones"""
    weights: Floats
    """of these"""
    reference: float | None


def unique_tokens(example: Example) -> int:
    """Tokens of an example in a packed row: the prompt counted once, responses up to their last weighted token."""
    return len(example.pair.prompt_ids) + sum(map(_last, example.weights))


def packed_groups(examples: Sequence[Example], max_tokens: int) -> list[list[int]]:
    """Indices of examples that go into a row together, longest first, so that memory runs out at once or never.

    An example over the budget has a row to itself.
    """
    sizes = [unique_tokens(example) for example in examples]
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(examples)), key=lambda index: -sizes[index]):
        if not groups or sizes[index] > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(index)
        room -= sizes[index]
    return groups


def pack(
    examples: Sequence[Example], device: torch.device, *, share_prompts: bool = True, every_token: bool = False
) -> Packed:
    """Put examples into one row; where none has a rejected response (SFT), R is their number, else twice that.

    Args:
        share_prompts: False computes the prompt for each answer apart, which is slower and gives the same.
        every_token: all response tokens are needed, not only those with a weight.
    """
    parts = [
        (example.pair.prompt_ids, _responses(row, example, len(examples), every_token))
        for row, example in enumerate(examples)
    ]
    if not share_prompts:
        parts = [(prompt, [response]) for prompt, responses in parts for response in responses]
    ids, positions, sources, spans = _laid_out(parts)
    responses = [response for _, responses in parts for response in responses]
    weights_RW, needed_RW = _by_response(responses)
    width = weights_RW.shape[1]
    return Packed(
        ids_T=_integers(ids, device),
        positions_T=_integers(positions, device),
        layout=Layout(spans, device),
        sources_N=_integers(sources, device),
        targets_N=_integers([each.ids[each.places] for each in responses], device),
        places_N=_integers([each.row * width + np.arange(len(each.places)) for each in responses], device),
        weights_RW=torch.from_numpy(weights_RW).to(device),
        reference_R=references_of([each.reference for each in sorted(responses, key=lambda each: each.row)], device),
        needed_RW=torch.from_numpy(needed_RW).to(device),
    )


def _responses(row: int, example: Example, count: int, every_token: bool) -> list[_Response]:
    responses = []
    for number, (ids, weights, reference) in zip((row, count + row), example.responses, strict=False):
        places = np.arange(len(ids)) if every_token else np.flatnonzero(weights)
        end = len(ids) if every_token else _last(weights)
        responses.append(_Response(number, ids[:end], places, weights[places], reference))
    return responses


def _laid_out(
    parts: list[tuple[Ids, list[_Response]]],
) -> tuple[list[Ids], list[NDArray[Any]], list[NDArray[Any]], list[Span]]:
    """Prompts and their responses one behind the other: ids, positions, sources of each response, and spans."""
    ids, positions, sources, spans = [], [], [], []
    start = 0
    for prompt, responses in parts:
        ids.append(prompt)
        positions.append(np.arange(len(prompt)))
        end = prompt_end = start + len(prompt)
        for each in responses:
            ids.append(each.ids)
            positions.append(len(prompt) + np.arange(len(each.ids)))
            # The logits of a first token stand at the last one of the prompt.
            sources.append(np.where(each.places == 0, prompt_end - 1, end + each.places - 1))
            end += len(each.ids)
        first = len(responses[0].ids)
        spans.append(Span(len(prompt), first, end - prompt_end - first))
        start = end
    return ids, positions, sources, spans


def _last(weights: Floats) -> int:
    """How many tokens there are up to the last weighted one."""
    places = np.flatnonzero(weights)
    return int(places[-1]) + 1 if len(places) else 0


def _by_response(responses: list[_Response]) -> tuple[Floats, NDArray[np.bool_]]:
    """weights_RW and needed_RW."""
    rows, width = 1 + max(each.row for each in responses), max(len(each.places) for each in responses)
    weights_RW, needed_RW = np.zeros((rows, width), np.float32), np.zeros((rows, width), np.bool_)
    for each in responses:
        weights_RW[each.row, : len(each.places)] = each.weights
        needed_RW[each.row, : len(each.places)] = True
    return weights_RW, needed_RW


def _integers(parts: list[NDArray[Any]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)
