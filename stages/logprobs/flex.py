"""Packed attention in one kernel a layer by torch's FlexAttention: where FlashAttention's has no such arithmetic.

    row      q0 q1 | w0 w1 w2 | l0 l1
    keys     q0 q1   w0 w1 w2   q0 q1 l0 l1    gathered by the index of `stages.logprobs.varlen`
    l0 sees                     =========      one stretch, which ends with itself; a window makes it shorter

So a row's mask is two numbers a query. The kernel reads whole blocks of keys: which of them, and whether to look at the
mask there, is worked out from these numbers too; no mask of queries by keys is ever made.

Shapes: ``H`` heads, ``T`` tokens of the packed row, ``Q`` queries, which are these filled up to whole blocks, ``S``
gathered keys, filled up likewise, ``D`` head size, ``I`` blocks of queries, ``J`` blocks of keys.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from stages.logprobs.head import full_precision
from stages.logprobs.varlen import Sequences

BLOCK: Final = 128
"""queries, and keys, of a block"""
_FEWEST: Final = 2
"""blocks: the compiler would compile a kernel of its own for a single one"""

Kernel = Callable[..., Any]
"""`flex_attention`, compiled or not"""


@cache
def compiled_flex() -> Kernel:
    """FlexAttention compiled once for rows of all lengths. Where nothing can be compiled it raises, in any way."""
    return torch.compile(_only_compiled, dynamic=True, fullgraph=True)


def _only_compiled(*given: Any, **named: Any) -> Any:
    if not torch.compiler.is_compiling():
        # It would work, and hold the scores of all queries with all keys.
        raise RuntimeError("torch.compile is switched off")
    return flex_attention(*given, **named)


def block_mask_of(sequences: Sequences, tokens: int, window: int | None) -> BlockMask:
    """What the queries of a row may see of its gathered keys; those that fill up the last block see what the last may.

    Args:
        tokens: T, those of the row.
        window: a token sees itself and so many less one before it; None: all before it.
    """
    device, keys = sequences.keys_S.device, len(sequences.keys_S)
    query_ends, key_ends = sequences.query_ends_G, sequences.key_ends_G
    asking_Q = torch.arange(_blocks(tokens) * BLOCK, dtype=torch.int32, device=device)
    number_Q = torch.searchsorted(query_ends[1:], asking_Q, right=True).clamp(max=len(query_ends) - 2)
    last_Q = (asking_Q + (key_ends - query_ends)[number_Q + 1]).clamp(max=keys - 1)
    first_Q = key_ends[number_Q]
    if window is not None:
        first_Q = torch.maximum(first_Q, last_Q - window + 1)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (first_Q[query] <= key) & (key <= last_Q[query])

    first_IB, last_IB = first_Q.view(-1, BLOCK), last_Q.view(-1, BLOCK)
    begin_J = BLOCK * torch.arange(_blocks(keys), device=device)
    end_J = begin_J + BLOCK - 1
    read_IJ = (first_IB.amin(1, keepdim=True) <= end_J) & (last_IB.amax(1, keepdim=True) >= begin_J)
    whole_IJ = (first_IB.amax(1, keepdim=True) <= begin_J) & (last_IB.amin(1, keepdim=True) >= end_J)
    return BlockMask.from_kv_blocks(
        *_listed(read_IJ & ~whole_IJ),
        *_listed(whole_IJ),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(len(asking_Q), len(begin_J) * BLOCK),
    )


def attend_by_blocks(
    query_HTD: Tensor,
    key_HTD: Tensor,
    value_HTD: Tensor,
    sequences: Sequences,
    mask: BlockMask,
    *,
    scale: float | None,
    softcap: float | None,
    kernel: Kernel,
) -> Tensor:
    """What the tokens of a row see, (T, H, D).

    Args:
        query_HTD, key_HTD, value_HTD: of one type; keys and values may have fewer heads, and values another size.
        mask: `block_mask_of` the sequences.
        softcap: scores are bounded by it, by way of tanh.
    """
    tokens, queries, keys = query_HTD.shape[1], *mask.shape[-2:]
    # With numbers that its blocks do not divide, its gradient has not been finite (pytorch/pytorch#153799).
    # Where nothing is to be filled up it would keep its strides, for which the compiler has another kernel.
    query_HQD = F.pad(query_HTD, (0, 0, 0, queries - tokens)).contiguous()
    keys_S = F.pad(sequences.keys_S, (0, keys - len(sequences.keys_S)))
    key_HSD, value_HSD = (each.index_select(1, keys_S) for each in (key_HTD, value_HTD))
    # Everything is of one type: under autocast the compiler would make another kernel of the same arithmetic.
    with full_precision(query_HTD.device):
        seen: Tensor = kernel(
            query_HQD[None],
            key_HSD[None],
            value_HSD[None],
            score_mod=None if softcap is None else _capped(softcap, query_HTD.device),
            block_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
    return seen[0, :, :tokens].transpose(0, 1)


def _capped(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    # A number would be another kernel for each, which torch 2.13 moreover fails to compile.
    cap = torch.full((), softcap, device=device)

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    return capped


def _blocks(tokens: int) -> int:
    return max(_FEWEST, -(-tokens // BLOCK))


def _listed(blocks_IJ: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries reads, (1, 1, I), and which: those first, (1, 1, I, J); int32."""
    order_IJ = blocks_IJ.int().argsort(stable=True, dim=-1, descending=True)
    return blocks_IJ.sum(-1, dtype=torch.int32)[None, None], order_IJ.int()[None, None]
