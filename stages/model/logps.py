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
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor

from stages.currency import Batch, Example, Floats, PairLogps, TokenPair
from stages.model.attention import packed_attention
from stages.model.batches import collate, padded_groups, whole
from stages.model.head import find_head, head_logps
from stages.model.packing import Packed, pack, packed_groups
from stages.model.processes import Worker, this_worker
from stages.reporting import Task


class Reader(NamedTuple):
    """A model, and the ways in which it can be read."""

    model: Any
    packs: bool
    """what is packed into one row stays apart"""
    tiled: bool
    """its logits are what `stages.model.head.find_head` says; else only the model itself knows"""
    alone: bool = False
    """a response's log-probs depend on what else is in the batch: every response is read by itself"""
    as_read: Callable[[], AbstractContextManager[Any]] = nullcontext
    """open while it is read: two readers can share one model, one of them without its adapter"""


class WeightedLogps(torch.nn.Module):
    """`weighted_logps` as a module, for engines that wrap one.

    Where an engine divides the layers among processes, embeddings and head stay with this module, whose forward brings
    them together until the backward pass is done. A head that was divided by itself is whole in its own forward only.
    """

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.model = reader.model
        self._reader = reader
        kinds = {type(module).__name__ for module in reader.model.modules()}
        self._no_split_modules = sorted(kinds & set(getattr(reader.model, "_no_split_modules", None) or ()))
        """the layers, by the name of their class, where accelerate looks for it"""

    def forward(self, batch: Packed | Batch) -> Tensor:
        tiled = self._reader.tiled and not isinstance(find_head(self.model).weight_VH, DTensor)
        # An engine that divides a model hooks into what its forward returns; on a view the hook would be lost.
        return weighted_logps(self._reader._replace(tiled=tiled), batch).clone()


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

    The exact sum over the vocabulary, which at a token depends on what precedes it and not on the token itself. A head
    that was padded to a round number has rows for no token: only rows that both models have count.
    """
    targets_K = _targets(batch)
    logits = [_logits(each, batch, targets_K - 1) for each in (model, reference)]
    rows = min(each.shape[-1] for each in logits)
    ours_RKV, theirs_RKV = (F.log_softmax(each[..., :rows], -1) for each in logits)
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
    accelerator: Accelerator | None = None,
) -> list[list[PairLogps]]:
    """Log-probs of every response token of every pair under each model.

    Batches are made by length, whatever the order of the pairs, and depend on the pairs and `max_tokens` alone: not on
    how many workers divide them, so that one and many find the same bits.

    Args:
        max_tokens: tokens of one forward pass (where rows are padded, rows x longest row).
        task: advanced by one for every pair that all models have seen.
        share_prompts: False computes each prompt twice, once for each answer.
        accelerator: its processes divide the batches, and each of them gets all results; without one this process reads
            every batch.

    Returns:
        one list a model, in the order of the models; each in the order of the pairs.
    """
    packs = all(reader.packs for reader in readers)
    examples = [whole(pair) for pair in pairs]
    groups = _groups(packs, examples, max_tokens)
    found: list[list[Tensor]] = [[] for _ in readers]
    worker = this_worker(accelerator, None) if accelerator else Worker(1, 1)
    mine = worker.share(len(groups))
    for number in mine:
        chosen = [examples[place] for place in groups[number]]
        batch = make_batch(chosen, device, packs=packs, share_prompts=share_prompts)
        for reader, logps in zip(readers, found, strict=True):
            reader.model.eval()
            with reader.as_read(), reading(reader, batch):
                logps.append(pair_by_pair(batch, weighted_logps(reader, batch)))
        # Meanwhile the others read as many.
        task.advance(sum(len(group) for group in groups[number - number % worker.workers :][: worker.workers]))
    places = [place for number in mine for place in groups[number]]
    # Copied once, at the end: a device would wait for every copy.
    share = places, [torch.cat(logps).cpu().numpy() if logps else np.empty(0, np.float32) for logps in found]
    shares = gather_object([share]) if accelerator else [share]
    places = [place for places, _ in shares for place in places]
    return [
        _by_pair(np.concatenate(parts), places, pairs) for parts in zip(*(found for _, found in shares), strict=True)
    ]


def make_batch(
    examples: list[Example], device: torch.device, *, packs: bool, share_prompts: bool = True
) -> Packed | Batch:
    """Examples as the tensors of one row, where the models that read them can do that, or of padded rows."""
    return pack(examples, device, share_prompts=share_prompts) if packs else collate(examples, device)


def make_groups(reader: Reader, examples: list[Example], max_tokens: int) -> list[list[Example]]:
    """Examples by the batch they go into, each within the budget."""
    return [[examples[place] for place in group] for group in _groups(reader.packs, examples, max_tokens)]


def reading(reader: Reader, batch: Packed | Batch) -> AbstractContextManager[None]:
    """Has to be open while the model reads a batch, and until its backward pass is done."""
    return packed_attention(reader.model, batch.layout) if isinstance(batch, Packed) else nullcontext()


def weighted_logps(reader: Reader, batch: Packed | Batch) -> Tensor:
    """Log-probs of the weighted tokens, float32 nats, in the shape of the batch's weights; 0 where these are 0."""
    if isinstance(batch, Packed):
        return _placed(batch.weights_RW, batch.places_N, _packed_logps(reader, batch))
    if reader.alone:
        return _one_by_one(reader, batch)
    if not reader.tiled:
        return token_logps(reader.model, batch)
    places_N = (batch.weights_RW != 0).flatten().nonzero().squeeze(-1)
    inputs = {"input_ids": batch.ids_RT, "attention_mask": batch.attention_RT, "use_cache": False}
    hidden_RTH = reader.model.base_model(**inputs).last_hidden_state
    logps_N = head_logps(
        find_head(reader.model), hidden_RTH.flatten(0, 1)[places_N - 1], batch.ids_RT.flatten()[places_N]
    )
    return _placed(batch.weights_RW, places_N, logps_N)


def _groups(packs: bool, examples: list[Example], max_tokens: int) -> list[list[int]]:
    return packed_groups(examples, max_tokens) if packs else padded_groups(examples, max_tokens)


def _placed(like_RW: Tensor, places_N: Tensor, values_N: Tensor) -> Tensor:
    """Values at some places of a flattened (R, W), and 0 elsewhere."""
    return torch.zeros_like(like_RW).flatten().index_copy(0, places_N, values_N).view_as(like_RW)


def _packed_logps(reader: Reader, batch: Packed) -> Tensor:
    inputs = {"input_ids": batch.ids_T[None], "position_ids": batch.positions_T[None], "use_cache": False}
    if not reader.tiled:
        logits_NV = reader.model(**inputs, logits_to_keep=batch.sources_N).logits[0].float()
        return -F.cross_entropy(logits_NV, batch.targets_N, reduction="none")
    hidden_TH = reader.model.base_model(**inputs).last_hidden_state[0]
    # The head is looked up at every call: an engine that shards a model replaces its parameters.
    return head_logps(find_head(reader.model), hidden_TH[batch.sources_N], batch.targets_N)


def _one_by_one(reader: Reader, batch: Batch) -> Tensor:
    """The rows of a batch, each in a batch of its own and without padding."""
    rows = []
    for row in range(len(batch.ids_RT)):
        length = int(batch.attention_RT[row].sum())
        this = (slice(row, row + 1), slice(length))
        part = Batch(
            batch.ids_RT[this], batch.attention_RT[this], batch.weights_RW[this], batch.reference_R[row : row + 1]
        )
        with torch.no_grad():
            # transformers keeps the frequencies of the longest row so far; one of a single token takes it back.
            reader.model(input_ids=batch.ids_RT[:1, :1], use_cache=False)
        logps_T = weighted_logps(reader._replace(alone=False), part)[0]
        rows.append(F.pad(logps_T, (0, batch.ids_RT.shape[1] - length)))
    return torch.stack(rows)


def pair_by_pair(batch: Packed | Batch, logps: Tensor) -> Tensor:
    """The weighted tokens' log-probs in a row, (N,): of every pair the chosen ones, then the rejected ones."""
    order_R = torch.arange(len(logps), device=logps.device).view(2, -1).T.flatten()
    return logps[order_R][batch.weights_RW[order_R] != 0]


def _by_pair(logps: Floats, places: list[int], pairs: list[TokenPair]) -> list[PairLogps]:
    """Log-probs in the order in which they were computed, as one item a pair in the order of the pairs."""
    lengths = [length for place in places for length in (len(pairs[place].chosen_ids), len(pairs[place].rejected_ids))]
    parts = np.split(logps, np.cumsum(lengths)[:-1]) if lengths else []
    found = dict(zip(places, zip(parts[::2], parts[1::2], strict=True), strict=True))
    return [PairLogps(*found[place]) for place in range(len(pairs))]


def _targets(batch: Batch) -> Tensor:
    """The positions at which some row has a weighted token, (K,)."""
    return (batch.weights_RW != 0).any(dim=0).nonzero().squeeze(-1)


def _at_targets(batch: Batch, targets_K: Tensor, values_RK: Tensor) -> Tensor:
    """Values of K positions put back among all T, and 0 wherever a row has no weighted token."""
    values_RT = torch.zeros_like(batch.weights_RW).index_copy(1, targets_K, values_RK)
    return torch.where(batch.weights_RW != 0, values_RT, 0.0)


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
