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

from stages.devices.memory import on_device
from stages.logprobs.attention import Layout, Span
from stages.logprobs.batches import references_of, token_values
from stages.types import Example, Floats, Response


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
    reference_RW: Tensor | None = None
    """float32, as in `Batch`"""
    scores_RW: Tensor | None = None
    """float32, as in `Batch`"""


def unique_tokens(example: Example) -> int:
    """Tokens of an example in a packed row: the prompt counted once, responses up to their last weighted token."""
    return len(example.pair.prompt_ids) + sum(_end(np.flatnonzero(weights)) for weights in example.weights)


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


def pack(examples: Sequence[Example], device: torch.device, *, every_token: bool = False) -> Packed:
    """Put examples into one row; with `every_token` all response tokens are needed, not only those with a weight."""
    # Every chosen response, then every rejected one.
    responses = [each for side in zip(*(example.responses for example in examples), strict=True) for each in side]
    needed = [np.arange(len(each.ids)) if every_token else np.flatnonzero(each.weights) for each in responses]
    width = max(map(len, needed))
    ids, positions, sources, targets, places, spans = [], [], [], [], [], []
    start = 0
    for number, example in enumerate(examples):
        prompt = example.pair.prompt_ids
        ids.append(prompt)
        positions.append(np.arange(len(prompt)))
        end = prompt_end = start + len(prompt)
        lengths = []
        for row in range(number, len(responses), len(examples)):
            response, offsets = responses[row].ids, needed[row]
            length = _end(offsets)
            ids.append(response[:length])
            positions.append(len(prompt) + np.arange(length))
            # The logits of a first token stand at the last one of the prompt.
            sources.append(np.where(offsets == 0, prompt_end - 1, end + offsets - 1))
            targets.append(response[offsets])
            places.append(row * width + np.arange(len(offsets)))
            lengths.append(length)
            end += length
        spans.append(Span(len(prompt), *lengths))
        start = end
    weights_RW, needed_RW = (on_device(each, device) for each in _by_response(responses, needed, width))
    reference_RW, scores_RW = token_values(responses, needed_RW)
    return Packed(
        ids_T=_integers(ids, device),
        positions_T=_integers(positions, device),
        layout=Layout(spans, device),
        sources_N=_integers(sources, device),
        targets_N=_integers(targets, device),
        places_N=_integers(places, device),
        weights_RW=weights_RW,
        reference_R=references_of([each.reference for each in responses], device),
        needed_RW=needed_RW,
        reference_RW=reference_RW,
        scores_RW=scores_RW,
    )


def _end(offsets: NDArray[np.int64]) -> int:
    """How many tokens of a response there are up to the last one that is needed."""
    return int(offsets[-1]) + 1 if len(offsets) else 0


def _by_response(
    responses: list[Response], needed: list[NDArray[np.int64]], width: int
) -> tuple[Floats, NDArray[np.bool_]]:
    """weights_RW and needed_RW."""
    weights_RW = np.zeros((len(responses), width), np.float32)
    needed_RW = np.zeros((len(responses), width), np.bool_)
    for row, (response, offsets) in enumerate(zip(responses, needed, strict=True)):
        weights_RW[row, : len(offsets)] = response.weights[offsets]
        needed_RW[row, : len(offsets)] = True
    return weights_RW, needed_RW


def _integers(parts: list[NDArray[Any]], device: torch.device) -> Tensor:
    return on_device(np.concatenate(parts).astype(np.int64), device)
