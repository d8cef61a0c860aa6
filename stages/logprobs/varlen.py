"""Packed attention in one kernel a layer, whatever the number of pairs: for GPUs in half precision.

    row      q0 q1 | w0 w1 w2 | l0 l1        one pair of the picture in `stages.logprobs.attention`
    queries  [q0 q1   w0 w1 w2]  [l0 l1]     two sequences, as they lie in the row
    keys     [q0 q1   w0 w1 w2]  [q0 q1 l0 l1]    what each of them sees, gathered by an index

Causal from the bottom right, this is what the pairs see; so FlashAttention's kernel for sequences of different lengths
computes it, grouped heads and sliding windows included. It has no soft caps and no float32: `stages.logprobs.flex` has.

Shapes: ``H`` heads, ``T`` tokens of the packed row, ``S`` gathered keys, ``G`` sequences, ``D`` head size.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from stages.compat import varlen_options
from stages.devices.memory import on_device

HALF = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256
_HEADS_BY = 8
_AMPERE = (8, 0)


class Sequences(NamedTuple):
    """The sequences of a packed row, as the kernel wants them told."""

    keys_S: Tensor
    """int64, which tokens of the row are keys, sequence by sequence"""
    query_ends_G: Tensor
    """int32, (G + 1,): where each sequence of queries ends in the row, and 0 before the first"""
    key_ends_G: Tensor
    """int32, (G + 1,): the same of the keys"""
    most_queries: int
    most_keys: int


def sequences_of(spans: Sequence[tuple[int, int, int]], device: torch.device) -> Sequences:
    """Args: spans: each pair's tokens as `stages.logprobs.attention.Span`, in the order of the row."""
    keys, queries, start = [], [], 0
    for prompt, chosen, rejected in spans:
        answers = start + prompt
        keys.append(np.arange(start, answers + chosen))
        queries.append(prompt + chosen)
        if rejected:
            behind = answers + chosen
            keys.append(np.concatenate([np.arange(start, answers), np.arange(behind, behind + rejected)]))
            queries.append(rejected)
        start += prompt + chosen + rejected
    lengths = [len(each) for each in keys]
    query_ends_G, key_ends_G = (on_device(np.cumsum([0, *each], dtype=np.int32), device) for each in (queries, lengths))
    return Sequences(on_device(np.concatenate(keys), device), query_ends_G, key_ends_G, max(queries), max(lengths))


def takes_varlen(query_HTD: Tensor, value_HTD: Tensor) -> bool:
    """Whether FlashAttention's kernel is there for these: on the meta device too, where nothing is computed.

    It takes heads of one size, a multiple of 8: latent attention (DeepSeek) has smaller values than queries.
    """
    device, size = query_HTD.device, query_HTD.shape[-1]
    new_enough = device.type == "meta" or (
        device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device) >= _AMPERE)
    )
    fits = size <= _LARGEST_HEAD and size % _HEADS_BY == 0 and value_HTD.shape[-1] == size
    return bool(new_enough) and value_HTD.dtype in HALF and fits


def attend_by_sequences(
    query_HTD: Tensor,
    key_HTD: Tensor,
    value_HTD: Tensor,
    sequences: Sequences,
    *,
    scale: float | None,
    window: int | None,
    kernel: Callable[..., Any] = varlen_attn,
) -> Tensor:
    """What the tokens of a row see, (T, H, D).

    Args:
        query_HTD, key_HTD, value_HTD: in half precision; keys and values may have fewer heads.
        window: a token sees itself and so many less one before it; None: all before it.
        kernel: `torch.nn.attention.varlen.varlen_attn`, or what computes the same.
    """
    key_SHD, value_SHD = (each.transpose(0, 1).index_select(0, sequences.keys_S) for each in (key_HTD, value_HTD))
    found: Tensor = kernel(
        query_HTD.transpose(0, 1).contiguous(),
        key_SHD,
        value_SHD,
        sequences.query_ends_G,
        sequences.key_ends_G,
        sequences.most_queries,
        sequences.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **varlen_options(grouped=query_HTD.shape[0] != key_HTD.shape[0]),
    )
    return found
