"""The one primitive that turns a model and token ids into log-probs of those tokens. Nobody else shifts.

Three ways lead to the same numbers; `stages.model.paths` finds out which of them a model can take.

- packed: pairs in one row, each prompt once, the head in tiles on response rows only (`stages.model.packing`);
- padded: a row for each response, the head in tiles on response rows only, for models that mix up what is packed;
- plain: the same rows through the model's own head, for heads that are more than a matrix; training takes it too.

Shapes: ``R`` rows, ``T`` tokens, ``K`` positions whose logits are needed, ``N`` response tokens, ``V`` vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.currency import Batch, Floats, PairLogps, TokenPair
from stages.model.attention import packed_attention
from stages.model.batches import collate, micro_batches, whole
from stages.model.head import Head, head_logps
from stages.model.packing import Packed, pack, packed_groups
from stages.reporting import Task


class Reader(NamedTuple):
    """A model, and the ways in which it can be read."""

    model: Any
    packs: bool
    """what is packed into one row stays apart"""
    head: Head | None
    """how its logits come from its last hidden states; None: only the model itself knows"""
    as_read: Callable[[], AbstractContextManager[Any]] = nullcontext
    """open while it is read: two readers can share one model, one of them without its adapter"""


def token_logps(model: Any, batch: Batch) -> Tensor:
    """Log-prob of every weighted response token, aligned with the ids, (R, T) float32 nats; 0 elsewhere.

    The logits at a position belong to the next token::

        ids      q0  q1  q2  y0  y1  y2  pad
        weights   0   0   0   1   1   1   0
        logits at         q2  y0  y1          (K positions: one before each weighted token of any row)
        logps     0   0   0   *   *   *   0   (* = log p of the id above it)
    """
    targets_K = _targets(batch)
    logits_RKV = _logits(model, batch, targets_K - 1)
    ids_RK = batch.ids_RT[:, targets_K]
    logps_RK = -F.cross_entropy(logits_RKV.flatten(0, 1), ids_RK.flatten(), reduction="none").view_as(ids_RK)
    return _at_targets(batch, targets_K, logps_RK)


@torch.no_grad()
def token_kl(model: Any, reference: Any, batch: Batch) -> Tensor:
    """KL(model || reference) of the distribution each weighted token was drawn from, (R, T) nats; 0 elsewhere.

    The exact sum over the vocabulary, which at a token depends on what precedes it and not on the token itself.
    """
    targets_K = _targets(batch)
    ours_RKV, theirs_RKV = (F.log_softmax(_logits(each, batch, targets_K - 1), -1) for each in (model, reference))
    return _at_targets(batch, targets_K, (ours_RKV.exp() * (ours_RKV - theirs_RKV)).sum(-1))


@torch.no_grad()
def response_logps(
    readers: Sequence[Reader],
    pairs: list[TokenPair],
    *,
    max_tokens: int,
    device: torch.device,
    task: Task,
    share_prompts: bool = True,
) -> list[list[PairLogps]]:
    """Log-probs of every response token of every pair under each model.

    Batches are made by length, whatever the order of the pairs, and depend on the pairs and `max_tokens` alone.

    Args:
        max_tokens: tokens of one forward pass (where rows are padded, rows x longest row).
        task: advanced by one for every pair that all models have seen.
        share_prompts: False computes each prompt twice, once for each answer.

    Returns:
        one list a model, in the order of the models; each in the order of the pairs.
    """
    packs = all(reader.packs for reader in readers)
    groups = packed_groups(pairs, max_tokens) if packs else _padded_groups(pairs, max_tokens)
    found: list[list[Tensor]] = [[] for _ in readers]
    for group in groups:
        chosen = [pairs[place] for place in group]
        batch = pack(chosen, device, share_prompts=share_prompts) if packs else collate([*map(whole, chosen)], device)
        for reader, logps in zip(readers, found, strict=True):
            with reader.as_read():
                logps.append(packed_logps(reader, batch) if isinstance(batch, Packed) else padded_logps(reader, batch))
        task.advance(len(group))
    places = [place for group in groups for place in group]
    # Copied once, at the end: a device would wait for every copy.
    return [_by_pair(torch.cat(logps).cpu().numpy(), places, pairs) if logps else [] for logps in found]


@torch.no_grad()
def packed_logps(reader: Reader, batch: Packed) -> Tensor:
    """Log-probs of a packed row's response tokens, (N,) float32 nats."""
    with packed_attention(reader.model, batch.layout):
        inputs = {"input_ids": batch.ids_T[None], "position_ids": batch.positions_T[None], "use_cache": False}
        if reader.head is None:
            logits_KV = reader.model.eval()(**inputs, logits_to_keep=batch.sources_N).logits[0].float()
            return -F.cross_entropy(logits_KV, batch.targets_N, reduction="none")
        hidden_TH = reader.model.eval().base_model(**inputs).last_hidden_state[0]
    return head_logps(reader.head, hidden_TH[batch.sources_N], batch.targets_N)


@torch.no_grad()
def padded_logps(reader: Reader, batch: Batch) -> Tensor:
    """Log-probs of the weighted tokens of padded rows, (N,) float32 nats: of every pair the chosen, then the rejected.

    Rows of a batch are every chosen response, then every rejected one.
    """
    order_N = _pair_by_pair(batch)
    if reader.head is None:
        return token_logps(reader.model.eval(), batch).flatten()[order_N]
    inputs = {"input_ids": batch.ids_RT, "attention_mask": batch.attention_RT, "use_cache": False}
    hidden_RTH = reader.model.eval().base_model(**inputs).last_hidden_state
    return head_logps(reader.head, hidden_RTH.flatten(0, 1)[order_N - 1], batch.ids_RT.flatten()[order_N])


def _padded_groups(pairs: list[TokenPair], max_tokens: int) -> list[list[int]]:
    places = {id(pair): place for place, pair in enumerate(pairs)}
    return [
        [places[id(example.pair)] for example in group] for group in micro_batches([*map(whole, pairs)], max_tokens)
    ]


def _pair_by_pair(batch: Batch) -> Tensor:
    """Places of the weighted tokens in the flattened rows, (N,): pair by pair, chosen before rejected."""
    rows, width = batch.ids_RT.shape
    order_R = torch.arange(rows, device=batch.ids_RT.device).view(2, -1).T.flatten()
    places_RT = torch.arange(rows * width, device=batch.ids_RT.device).view(rows, width)
    return places_RT[order_R][batch.weights_RT[order_R] != 0]


def _by_pair(logps: Floats, places: list[int], pairs: list[TokenPair]) -> list[PairLogps]:
    """Log-probs in the order in which they were computed, as one item a pair in the order of the pairs."""
    lengths = [length for place in places for length in (len(pairs[place].chosen_ids), len(pairs[place].rejected_ids))]
    parts = np.split(logps, np.cumsum(lengths)[:-1])
    found = dict(zip(places, zip(parts[::2], parts[1::2], strict=True), strict=True))
    return [PairLogps(*found[place]) for place in range(len(pairs))]


def _targets(batch: Batch) -> Tensor:
    """The positions at which some row has a weighted token, (K,)."""
    return (batch.weights_RT != 0).any(dim=0).nonzero().squeeze(-1)


def _at_targets(batch: Batch, targets_K: Tensor, values_RK: Tensor) -> Tensor:
    """Values of K positions put back among all T, and 0 wherever a row has no weighted token."""
    values_RT = torch.zeros_like(batch.weights_RT).index_copy(1, targets_K, values_RK)
    return torch.where(batch.weights_RT != 0, values_RT, 0.0)


def _logits(model: Any, batch: Batch, positions_K: Tensor) -> Tensor:
    """Logits at some positions, (R, K, V) float32, by the model's own head: soft-capping and scaling are its own."""
    inputs = {"input_ids": batch.ids_RT, "attention_mask": batch.attention_RT, "use_cache": False}
    if keeps_logits(model):
        kept: Tensor = model(**inputs, logits_to_keep=positions_K).logits
        return kept.float()
    every: Tensor = model(**inputs).logits
    return every[:, positions_K].float()


def keeps_logits(model: Any) -> bool:
    """Whether the model's forward can run its head on chosen positions only."""
    bare = getattr(model, "module", model)
    return "logits_to_keep" in inspect.signature(bare.forward).parameters
