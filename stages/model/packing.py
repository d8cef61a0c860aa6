"""Pairs packed into one row without padding, and their grouping by a budget of tokens.

Shapes: ``T`` tokens of the row, ``N`` response tokens in it (of every pair the chosen ones, then the rejected ones).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.currency import Ids, TokenPair
from stages.model.attention import Layout, Span, lay_out


class Packed(NamedTuple):
    """Pairs in one row; see `stages.model.attention` for the picture."""

    ids_T: Tensor
    """int64"""
    positions_T: Tensor
    """int64, where each token would stand in a row of its own"""
    layout: Layout
    sources_N: Tensor
    """int64, where in the row the logits of a response token are: at the token before it, for the first token of
    either response the last one of the prompt"""
    targets_N: Tensor
    """int64, the response tokens' ids"""


def unique_tokens(pair: TokenPair) -> int:
    """Tokens of a pair in a packed row, the prompt counted once."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def packed_groups(pairs: list[TokenPair], max_tokens: int) -> list[list[int]]:
    """Places of pairs that go into a row together, longest first, so that memory runs out at once or never.

    A pair over the budget has a row to itself.
    """
    order = sorted(range(len(pairs)), key=lambda place: -unique_tokens(pairs[place]))
    groups: list[list[int]] = []
    room = 0
    for place in order:
        tokens = unique_tokens(pairs[place])
        if not groups or tokens > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(place)
        room -= tokens
    return groups


def pack(pairs: list[TokenPair], device: torch.device, *, share_prompts: bool = True) -> Packed:
    """Put pairs into one row.

    Args:
        share_prompts: False computes the prompt for each answer apart, which is slower and gives the same.
    """
    rows = [row for pair in pairs for row in (_shared(pair) if share_prompts else _apart(pair))]
    spans = lay_out([(len(prompt), len(first), len(second)) for prompt, first, second in rows])
    arrays = [
        np.concatenate([part for row in rows for part in row]),
        np.concatenate([_positions(span) for span in spans]),
        np.concatenate([_sources(span) for span in spans]),
        np.concatenate([part for _, first, second in rows for part in (first, second)]),
    ]
    ids_T, positions_T, sources_N, targets_N = (torch.from_numpy(each.astype(np.int64)).to(device) for each in arrays)
    return Packed(ids_T, positions_T, Layout(spans, device), sources_N, targets_N)


def _shared(pair: TokenPair) -> list[tuple[Ids, Ids, Ids]]:
    return [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]


def _apart(pair: TokenPair) -> list[tuple[Ids, Ids, Ids]]:
    nothing = pair.rejected_ids[:0]
    return [(pair.prompt_ids, response, nothing) for response in (pair.chosen_ids, pair.rejected_ids) if len(response)]


def _positions(span: Span) -> Ids:
    first = np.arange(span.prompt + span.chosen)
    return np.concatenate([first, np.arange(span.prompt, span.prompt + span.rejected)])


def _sources(span: Span) -> Ids:
    chosen, rejected = (
        np.arange(span.prompt, span.prompt + span.chosen),
        np.arange(span.rejected) + span.border - span.start,
    )
    before = np.concatenate([chosen, rejected]) - 1
    if span.rejected:
        before[span.chosen] = span.prompt - 1
    return before + span.start
