"""Attention within packed pairs: several pairs in one row, each prompt once for its two answers.

    pair       .------------ 0 ------------..------ 1 ------.
    ids        q0 q1 | w0 w1 w2 | l0 l1     q0 | w0 | l0 l1      q prompt, w chosen, l rejected
    positions   0  1    2  3  4    2  3      0    1    1  2
    l0 sees    q0 q1              l0                             its prompt and its own response, never the other one

Positions go on from the prompt, so every token is where it would be in a row of its own; a sliding window counts them.

transformers calls the function registered here instead of its own attention while `packed_attention` is open. On GPUs
that is one kernel a layer, in half precision FlashAttention's (`stages.logprobs.varlen`), else one that is compiled
(`stages.logprobs.flex`); elsewhere it is a loop over the answers. Models that mix tokens in other ways (state spaces,
convolutions) do not reach it; `stages.logprobs.paths` finds out by trying.

Shapes: ``H`` heads, ``T`` tokens of the packed row, ``Q`` queries, ``S`` keys, ``D`` head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from stages.compat import attention_of
from stages.logprobs.flex import block_mask_of
from stages.logprobs.varlen import Sequences, attend_by_sequences, sequences_of, takes_varlen
from stages.types import CausalLM

NAME: Final = "sepo_packed"
LARGEST_MASK: Final = 1 << 24
"""entries, 64 MB in float32; longer responses ask in blocks, which share one mask of that size"""
_ALIGNED: Final = 8
"""a GPU's kernel copies a mask whose rows, or whose beginning, are not aligned to so many entries"""


class Span(NamedTuple):
    """How many tokens a pair's parts have in a packed row."""

    prompt: int
    chosen: int
    rejected: int = 0
    """none in SFT data"""


class Layout:
    """The spans of one packed row, and the masks they need: made once, used by every layer of every model."""

    def __init__(self, spans: list[Span], device: torch.device) -> None:
        self.spans = spans
        self.asking = [part for span in spans for part in (span.prompt + span.chosen, span.rejected) if part]
        """tokens that ask together, one group behind the other"""
        self.stretches = [part for span in spans for part in (span.prompt, span.chosen, span.rejected) if part]
        self.windows_seen: set[int | None] = set()
        self._device = device
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self._sequences: dict[torch.device, Sequences] = {}
        self._block_masks: dict[tuple[torch.device, int | None], BlockMask] = {}

    def sequences_on(self, device: torch.device) -> Sequences:
        """For the kernels that read the whole row; the layers of one model may be on several devices."""
        if device not in self._sequences:
            self._sequences[device] = sequences_of(self.spans, device)
        return self._sequences[device]

    def block_mask_on(self, device: torch.device, window: int | None) -> BlockMask:
        """For the kernel of `stages.logprobs.flex`."""
        if (device, window) not in self._block_masks:
            sequences, tokens = self.sequences_on(device), sum(self.asking)
            self._block_masks[device, window] = block_mask_of(sequences, tokens, window)
        return self._block_masks[device, window]

    def causal_mask(self, prompt: int, queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """What may be seen by `queries` tokens behind a prompt, (Q, S): 0, or minus infinity for what may not.

        Within a window a token sees itself and so many less one before it.
        """
        key = (prompt, queries, keys, window, dtype)
        if key not in self._masks:
            seen_by_Q1 = torch.arange(prompt, prompt + queries, device=self._device)[:, None]
            distance_QS = seen_by_Q1 - torch.arange(keys, device=self._device)
            visible_QS = (distance_QS >= 0) & (distance_QS < (window or keys + prompt + queries))
            self._masks[key] = torch.zeros((queries, keys), dtype=dtype, device=self._device).masked_fill_(
                ~visible_QS, float("-inf")
            )
        return self._masks[key]

    def blocks(
        self, prompt: int, queries: int, keys: int, window: int | None, dtype: torch.dtype
    ) -> Iterator[tuple[int, slice, Tensor]]:
        """Blocks of the queries behind a prompt: how many queries, which keys they may see, and their mask of these.

        All blocks' masks are parts of the last one's, in whose lower right corner they begin: where each query sees the
        keys up to itself, the distance from the end decides.
        """
        if queries * keys <= LARGEST_MASK:
            yield queries, slice(keys), self.causal_mask(prompt, queries, keys, window, dtype)
            return
        width = -(-keys // _ALIGNED) * _ALIGNED
        most = max(1, LARGEST_MASK // width // _ALIGNED) * _ALIGNED
        last_QS = self.causal_mask(keys - most, most, width, window, dtype)
        # The first block is the one that is not full: the ends of all others are as far from the last as is aligned.
        ends = range(queries - (queries - 1) // most * most, queries + 1, most)
        for start, end in zip([0, *ends], ends, strict=False):
            first = 0 if window is None else max(0, prompt + start - window + 1) // _ALIGNED * _ALIGNED
            behind = queries - end
            yield (
                end - start,
                slice(first, prompt + end),
                last_QS[most - (end - start) :, first + behind : prompt + end + behind],
            )


class How(NamedTuple):
    """What a layer says of its attention."""

    scale: float | None
    """of the scores; None: one by the root of the head size"""
    window: int | None
    """a token sees itself and so many less one before it; None: all before it"""
    softcap: float | None
    """bounds the scores, by way of tanh"""


Attention = Callable[[Tensor, Tensor, Tensor, Layout, How], Tensor | None]
"""(queries, keys, values, each (1, H, T, D), layout, how) -> what the tokens see, (1, T, H, D); None: it cannot tell"""

_open: tuple[Layout, Attention | None] | None = None
"""of the row that is in the model now; of the process, for autograd may recompute a layer in a thread of its own"""


@contextmanager
def packed_attention(model: CausalLM, layout: Layout, fused: Attention | None = None) -> Iterator[None]:
    """While open, `model` reads its one row as `layout` says; the model's own attention comes back at the end.

    A backward pass with gradient checkpointing recomputes layers, so it belongs inside.

    Args:
        fused: asked before the loop, where FlashAttention cannot serve.
    """
    global _open
    before, outer = attention_of(model), _open
    model.set_attn_implementation(NAME)
    _open = layout, fused
    try:
        yield
    finally:
        _open = outer
        model.set_attn_implementation(before)


# Every row has a layout of its own, for which a compiler would compile anew.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_packed(
    module: Any,
    query_HTD: Tensor,
    key_HTD: Tensor,
    value_HTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls; each tensor has a leading 1, and the result is (1, T, H, D)."""
    if _open is None or attention_mask is not None or query_HTD.shape[0] != 1:
        raise ValueError("packed attention is for one row without a mask, inside packed_attention()")
    layout, fused = _open
    layout.windows_seen.add(sliding_window)
    # Under autocast rotated queries and keys are float32, and values what a product gave.
    query_HTD, key_HTD = (each.to(value_HTD.dtype) for each in (query_HTD, key_HTD))
    if softcap is None and takes_varlen(query_HTD, value_HTD):
        sequences = layout.sequences_on(value_HTD.device)
        row = (query_HTD[0], key_HTD[0], value_HTD[0], sequences)
        return attend_by_sequences(*row, scale=scaling, window=sliding_window)[None], None
    how = How(scaling, sliding_window, softcap)
    seen = fused(query_HTD, key_HTD, value_HTD, layout, how) if fused else None
    return attend_in_loop(query_HTD, key_HTD, value_HTD, layout, how) if seen is None else seen, None


def attend_in_loop(query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, layout: Layout, how: How) -> Tensor:
    """An `Attention` of a kernel, or several, for each group of tokens that ask together."""
    scale, window, softcap = how
    groups = query_HTD.shape[1] // key_HTD.shape[1]
    if groups > 1 and (query_HTD.device.type != "cpu" or softcap is not None):
        # Elsewhere a mask keeps the fast kernels from reading grouped heads.
        key_HTD, value_HTD = (each.repeat_interleave(groups, dim=1) for each in (key_HTD, value_HTD))
        groups = 1
    parts = []
    for query, key, value in zip(
        torch.split(query_HTD, layout.asking, dim=2), _read(key_HTD, layout), _read(value_HTD, layout), strict=True
    ):
        queries, keys = query.shape[2], key.shape[2]
        inside = window if window is not None and window < keys else None
        if queries == keys and inside is None and softcap is None:
            parts.append(_attend(query, key, value, None, scale, grouped=groups > 1))
            continue
        parts += _attend_in_blocks(query, key, value, layout, How(scale, inside, softcap), grouped=groups > 1)
    return torch.cat(parts, dim=2).transpose(1, 2)


def _read(tensor_HTD: Tensor, layout: Layout) -> Iterator[Tensor]:
    """For each group of tokens that ask together, the keys (or values) of all they may see."""
    # Split once: the gradient of a slice is a tensor as large as the row, that of a split is one concatenation.
    pieces = iter(torch.split(tensor_HTD, layout.stretches, dim=2))
    for span in layout.spans:
        prompt = next(pieces)
        yield torch.cat([prompt, next(pieces)], dim=2)
        if span.rejected:
            yield torch.cat([prompt, next(pieces)], dim=2)


def _attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    how: How,
    *,
    grouped: bool,
) -> list[Tensor]:
    """What queries behind a prompt see, in the blocks of `Layout.blocks`; one block reads the keys as they are."""
    queries, keys = query.shape[2], key.shape[2]
    blocks = [*layout.blocks(keys - queries, queries, keys, how.window, query.dtype)]
    attend: Callable[..., Tensor] = partial(_attend, scale=how.scale, grouped=grouped)
    if how.softcap is not None:
        attend = partial(_capped, scale=how.scale, cap=how.softcap)
        # The scores of all blocks are as many as the entries of a whole mask, in every head.
        attend = attend if len(blocks) == 1 else partial(checkpoint, attend, use_reentrant=False)
    parts = []
    for asking, (_, seen, mask_QS) in zip(torch.split(query, [each[0] for each in blocks], 2), blocks, strict=True):
        read = (key, value) if len(blocks) == 1 else (key[:, :, seen], value[:, :, seen])
        parts.append(attend(asking, *read, mask_QS.to(query.device)))
    return parts


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask_QS: Tensor | None, scale: float | None, *, grouped: bool
) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask_QS, is_causal=mask_QS is None, scale=scale, enable_gqa=grouped
    )


def _capped(query: Tensor, key: Tensor, value: Tensor, mask_QS: Tensor, scale: float | None, cap: float) -> Tensor:
    """As transformers' eager attention has it: the softmax in float32, whatever the model's precision."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.tanh(scores / cap) * cap + mask_QS
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


AttentionInterface.register(NAME, _attend_packed)
