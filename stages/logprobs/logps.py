"""The one primitive that turns a model and token ids into log-probs of those tokens. Nobody else shifts.

Three paths lead to the same numbers; `stages.logprobs.paths` finds out which of them a model can take.

- packed: pairs in one row, each prompt once, the head in chunks on response rows only (`stages.logprobs.packing`);
- padded: a row for each response, the head in chunks on response rows only, for models that mix up what is packed;
- plain: the same rows through the model's own head, for heads that are more than a matrix; training takes it too.

Shapes: ``R`` rows, ``T`` tokens, ``K`` positions whose logits are needed, ``N`` response tokens, ``V`` vocabulary.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from stages.devices.memory import memory_for
from stages.devices.parts import class_of, is_divided
from stages.devices.processes import Worker, this_worker
from stages.logprobs.attention import Attention, packed_attention
from stages.logprobs.batches import collate, looks_at_the_batch, padded_groups, whole
from stages.logprobs.head import (
    Divergence,
    LazyLogits,
    find_head,
    head_kl,
    head_logps,
    kl_from_reference,
    kl_of_reference,
    own_head_in_float32,
)
from stages.logprobs.packing import Packed, pack, packed_groups, unique_tokens
from stages.reporting import Task
from stages.types import Batch, CausalLM, Example, Floats, PairLogps, TokenPair, longest


class Forward(NamedTuple):
    """A model and the fast paths that its forward pass can take; without any of them, the plain one."""

    model: CausalLM
    packs: bool = False
    """what is packed into one row stays apart"""
    chunked: bool = False
    """its logits are what `stages.logprobs.head.find_head` says; else only the model itself knows"""
    alone: bool = False
    """a response's log-probs depend on what else is in the batch: every response is a batch of its own"""
    fused: Attention | None = None
    """what is packed attends in one kernel a layer also where FlashAttention cannot"""
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """open meanwhile: two forwards can share one model, one of them without its adapter"""


class Reference(NamedTuple):
    """A second model, from which the policy's divergence is measured while it trains."""

    forward: Forward
    divergence: Divergence

    def packed(self, packs: bool) -> "Reference":
        return self._replace(forward=self.forward._replace(packs=packs))


class WeightedLogps(torch.nn.Module):
    """`weighted_logps` as a module, for engines that wrap one; with a reference, `logps_and_kl`.

    The reference is none of its modules: it is not trained.
    """

    def __init__(self, forward: Forward, reference: Reference | None = None) -> None:
        super().__init__()
        self.model = forward.model
        self._forward = forward
        self._reference = reference
        if any(not parameter.requires_grad for parameter in self.parameters()):
            # Of a divided model the engine knows the model itself.
            saved: Any = forward.model if is_divided(forward.model) else self
            saved.register_state_dict_post_hook(_leave_out_frozen)
            saved.register_load_state_dict_post_hook(_frozen_may_be_missing)

    def forward(self, batch: Packed | Batch) -> Tensor | tuple[Tensor, Tensor]:
        if self._reference is None:
            return weighted_logps(self._forward, batch)
        return logps_and_kl(self._forward, self._reference, batch)


def _trained_names(module: torch.nn.Module) -> set[str]:
    # Layers that accelerate checkpoints have a wrapper around them, of which states know nothing.
    names = (name for name, parameter in module.named_parameters() if parameter.requires_grad)
    return {name.replace("_checkpoint_wrapped_module.", "") for name in names}


def _leave_out_frozen(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Of a model that is trained in part, such as an adapter, the rest is where it was loaded from."""
    trained = {prefix + name for name in _trained_names(module)}
    for name in [name for name in state if name not in trained]:
        del state[name]


def _frozen_may_be_missing(module: torch.nn.Module, found: Any) -> None:
    """Nothing that is trained may: another version may name it anew."""
    trained = _trained_names(module)
    found.missing_keys[:] = [name for name in found.missing_keys if name.removeprefix("module.") in trained]


@torch.no_grad()
def response_logps(
    forwards: Sequence[Forward],
    pairs: list[TokenPair],
    *,
    max_tokens: int,
    device: torch.device,
    task: Task,
    accelerator: Accelerator | None = None,
) -> list[list[PairLogps]]:
    """Log-probs of every response token of every pair under each model.

    Batches are made by length, whatever the order of the pairs, and depend on the pairs and `max_tokens` alone: not on
    how many workers divide them, so that one and many find the same bits.

    Args:
        max_tokens: tokens of one forward pass (where rows are padded, rows x longest row).
        task: advanced by one for every pair that all models have seen.
        accelerator: its processes divide the batches, and each of them gets all results; without one this process does
            all of them.

    Returns:
        one list a model, in the order of the models; each in the order of the pairs.
    """

    def measure(batch: Packed | Batch) -> Iterator[Tensor]:
        for forward in forwards:
            with forward.context(), attention_for(forward, batch):
                yield weighted_logps(forward, batch)

    return _measured(measure, len(forwards), forwards, pairs, max_tokens, device, task, accelerator)


@torch.no_grad()
def response_logps_and_kl(
    oracle: Forward, reference: Forward, pairs: list[TokenPair], *, max_tokens: int, device: torch.device, task: Task
) -> list[list[PairLogps]]:
    """Log-probs of every response token under two models, and KL(reference || oracle) there; as `response_logps`.

    At a token it is the divergence of the two distributions that the token is drawn from, over the whole vocabulary.
    """

    def measure(batch: Packed | Batch) -> Iterator[Tensor]:
        with oracle.context(), attention_for(oracle, batch):
            ours = _logits(oracle, batch)
        with reference.context(), attention_for(reference, batch):
            theirs = _logits(reference, batch)
        for values_N in (_logps_of(ours, batch), _logps_of(theirs, batch), head_kl(ours, theirs, kl_of_reference)):
            yield _placed(batch, values_N)

    return _measured(measure, 3, [oracle, reference], pairs, max_tokens, device, task, None)


def _measured(
    measure: Callable[[Packed | Batch], Iterator[Tensor]],
    kinds: int,
    forwards: Sequence[Forward],
    pairs: list[TokenPair],
    max_tokens: int,
    device: torch.device,
    task: Task,
    accelerator: Accelerator | None,
) -> list[list[PairLogps]]:
    """So many kinds of values of every response token; `measure` gives them, in the shape of a batch's weights."""
    packs = all(forward.packs for forward in forwards)
    for forward in forwards:
        forward.model.eval()
    examples = [whole(pair) for pair in pairs]
    groups = make_groups(examples, max_tokens, packs=packs)
    found: list[list[Tensor]] = [[] for _ in range(kinds)]
    places: list[int] = []
    in_step = any(is_divided(forward.model) for forward in forwards)
    for group in shared_groups(groups, accelerator, task, in_step=in_step):
        chosen = [examples[place] for place in group]
        batch = make_batch(chosen, device, packs=packs)
        with memory_for(chosen, batch[0].numel(), max_tokens, trains=False):
            for values, kind in zip(measure(batch), found, strict=True):
                kind.append(pair_by_pair(batch, values))
        places += group
    # Copied once, at the end: a device would wait for every copy.
    share = places, [torch.cat(kind).cpu().numpy() if kind else np.empty(0, np.float32) for kind in found]
    shares = gather_object([share]) if accelerator else [share]
    places = [place for places, _ in shares for place in places]
    return [
        _by_pair(np.concatenate(parts), places, pairs) for parts in zip(*(found for _, found in shares), strict=True)
    ]


@torch.no_grad()
def response_kl(
    forward: Forward,
    other: Forward,
    pairs: list[TokenPair],
    *,
    max_tokens: int,
    device: torch.device,
    task: Task,
    accelerator: Accelerator | None = None,
) -> NDArray[np.float64]:
    """KL(model || other model) summed over the tokens of each pair's chosen and rejected response, (N, 2) nats.

    At a token it is the divergence of the two distributions that the token is drawn from, given what precedes it.

    Args:
        pairs: either all with a rejected response, or all without; then the second column is 0.
        max_tokens: of one forward pass.
        task: advanced by one for every pair.
        accelerator: as in `response_logps`.
    """
    packs = forward.packs and other.packs
    forward, reference = forward._replace(packs=packs), Reference(other, kl_from_reference).packed(packs)
    for model in (forward.model, other.model):
        model.eval()
    examples = [whole(pair) for pair in pairs]
    kl_N2 = np.zeros((len(pairs), 2))
    places: list[int] = []
    for group in shared_groups(make_groups(examples, max_tokens, packs=packs), accelerator, task):
        batch = make_batch([examples[index] for index in group], device, packs=packs)
        with forward.context(), attention_for(forward, batch):
            _, kl_RW = logps_and_kl(forward, reference, batch)
        by_side = kl_RW.double().sum(-1).view(-1, len(group)).T.cpu().numpy()
        kl_N2[group, : by_side.shape[1]] = by_side
        places += group
    for theirs, values_N2 in gather_object([(places, kl_N2[places])]) if accelerator else ():
        kl_N2[theirs] = values_N2
    return kl_N2


def shared_groups(
    groups: list[list[int]], accelerator: Accelerator | None, task: Task, *, in_step: bool = False
) -> Iterator[list[int]]:
    """This process's part of what several divide; without an accelerator, all. `task` is advanced for all of them.

    Args:
        in_step: every process gets as many, a first one perhaps twice.
    """
    worker = this_worker(accelerator, None) if accelerator else Worker(1, 1)
    for number in worker.share(len(groups)):
        yield groups[number]
        # Meanwhile the others did as many.
        task.advance(sum(len(group) for group in groups[number - number % worker.workers :][: worker.workers]))
    if in_step and len(worker.share(len(groups))) < math.ceil(len(groups) / worker.workers):
        yield groups[0]


def make_batch(
    examples: list[Example], device: torch.device, *, packs: bool, every_token: bool = False
) -> Packed | Batch:
    """Examples as the tensors of one row, where the models can take that, or of padded rows; see `pack`, `collate`."""
    every_token = every_token or _looks_at_every_token(examples)
    if packs:
        return pack(examples, device, every_token=every_token)
    return collate(examples, device, every_token=every_token)


def make_groups(examples: list[Example], max_tokens: int, *, packs: bool, every_token: bool = False) -> list[list[int]]:
    """The indices of the examples of each batch, which is within the budget; options as in `make_batch`."""
    every_token = every_token or _looks_at_every_token(examples)
    sized = [whole(example.pair) for example in examples] if every_token else examples
    return packed_groups(sized, max_tokens) if packs else padded_groups(sized, max_tokens)


def _looks_at_every_token(examples: Sequence[Example]) -> bool:
    return any(example.per_token is not None for example in examples)


def batch_tokens(example: Example, *, packs: bool, every_token: bool = False) -> int:
    """Tokens of an example in a batch by itself, padding included; options as in `make_batch`."""
    if packs:
        return unique_tokens(whole(example.pair) if every_token else example)
    return longest(example.pair) * (2 if len(example.pair.rejected_ids) else 1)


def attention_for(forward: Forward, batch: Packed | Batch) -> AbstractContextManager[None]:
    """Has to be open during the forward pass of a batch, and until its backward pass is done."""
    if not isinstance(batch, Packed):
        return nullcontext()
    return packed_attention(forward.model, batch.layout, forward.fused)


def weighted_logps(forward: Forward, batch: Packed | Batch) -> Tensor:
    """Log-probs of the needed tokens, float32 nats, in the shape of the batch's weights; 0 at other places.

    The logits at a position belong to the next token::

        ids      q0  q1  q2  y0  y1  y2  pad
        needed    0   0   0   1   1   1   0
        logits at         q2  y0  y1
        logps     0   0   0   *   *   *   0   (* = log p of the id above it)
    """
    return _placed(batch, _logps_of(_logits(forward, batch), batch))


def logps_and_kl(forward: Forward, reference: Reference, batch: Packed | Batch) -> tuple[Tensor, Tensor]:
    """`weighted_logps`, and at the same tokens the divergence from the reference, float32 nats; 0 at other places.

    `attention_for` has to be open for the policy's forward, as for `weighted_logps`; the reference's is opened here.
    """
    other = reference.forward
    with torch.no_grad(), other.context(), attention_for(other, batch):
        theirs = _logits(other, batch)
    ours = _logits(forward, batch)
    return _placed(batch, _logps_of(ours, batch)), _placed(batch, head_kl(ours, theirs, reference.divergence))


def _places(batch: Packed | Batch) -> Tensor:
    """Where the needed tokens are in the flattened (R, W), (N,)."""
    return batch.places_N if isinstance(batch, Packed) else batch.needed_RW.flatten().nonzero().squeeze(-1)


def _placed(batch: Packed | Batch, values_N: Tensor) -> Tensor:
    """Values of the needed tokens put into the shape of the weights, and 0 elsewhere."""
    like_RW = batch.weights_RW
    return torch.zeros_like(like_RW).flatten().index_copy(0, _places(batch), values_N).view_as(like_RW)


def _logps_of(logits: LazyLogits, batch: Packed | Batch) -> Tensor:
    """Log-probs of the needed tokens, (N,), from the logits that predict them."""
    targets_N = batch.targets_N if isinstance(batch, Packed) else batch.ids_RT.flatten()[_places(batch)]
    if logits.head is None:
        return -F.cross_entropy(logits.values_NX, targets_N, reduction="none")
    return head_logps(logits.head, logits.values_NX, targets_N)


def _logits(forward: Forward, batch: Packed | Batch) -> LazyLogits:
    """What a model says where the needed tokens are predicted."""
    model = forward.model
    if isinstance(batch, Packed):
        inputs = {"input_ids": batch.ids_T[None], "position_ids": batch.positions_T[None], "use_cache": False}
        sources_N = columns_K = batch.sources_N
        at_columns: Any = 0
    elif forward.alone:
        return _row_by_row(forward, batch)
    else:
        inputs = {"input_ids": batch.ids_RT, "attention_mask": batch.attention_RT, "use_cache": False}
        sources_N = _places(batch) - 1
        targets_K = batch.needed_RW.any(dim=0).nonzero().squeeze(-1)
        columns_K, at_columns = targets_K - 1, batch.needed_RW[:, targets_K]
    if forward.chunked:
        # A divided model brings embeddings and head together in forwards that it knows of.
        read_base = getattr(model, "read_base", model.base_model)
        hidden_RTH = read_base(**inputs).last_hidden_state
        # The head is looked up at every call: an engine that shards a model replaces its parameters.
        return LazyLogits(hidden_RTH.flatten(0, 1)[sources_N], find_head(model))
    # By the model's own head: soft-capping and scaling are its own.
    with own_head_in_float32(model):
        if keeps_logits(model):
            logits_RKV = model(**inputs, logits_to_keep=columns_K).logits
        else:
            logits_RKV = model(**inputs).logits[:, columns_K]
    return LazyLogits(logits_RKV[at_columns].float(), None)


def _row_by_row(forward: Forward, batch: Batch) -> LazyLogits:
    """The same from rows in a batch of their own, without padding."""
    # What code of its own keeps of a row, nobody knows.
    reset = looks_at_the_batch(forward.model) or not class_of(forward.model).__module__.startswith("transformers.")
    found = []
    for row, length in enumerate(batch.attention_RT.sum(-1).tolist()):
        this = (slice(row, row + 1), slice(length))
        part = Batch(batch.ids_RT[this], batch.attention_RT[this], batch.weights_RW[this], None, batch.needed_RW[this])
        if reset:
            with torch.no_grad():
                # transformers keeps the frequencies of the longest row so far; one of a single token takes it back.
                forward.model(input_ids=batch.ids_RT[:1, :1], use_cache=False)
        found.append(_logits(forward._replace(alone=False), part))
    return LazyLogits(torch.cat([each.values_NX for each in found]), found[0].head)


def pair_by_pair(batch: Packed | Batch, logps: Tensor) -> Tensor:
    """The log-probs of the needed tokens, (N,): of every pair the chosen ones, then the rejected ones."""
    order_R = torch.arange(len(logps), device=logps.device).view(2, -1).T.flatten()
    return logps[order_R][batch.needed_RW[order_R]]


def _by_pair(logps: Floats, places: list[int], pairs: list[TokenPair]) -> list[PairLogps]:
    """Log-probs in the order in which they were computed, as one item a pair in the order of the pairs."""
    lengths = [length for place in places for length in (len(pairs[place].chosen_ids), len(pairs[place].rejected_ids))]
    parts = np.split(logps, np.cumsum(lengths)[:-1]) if lengths else []
    found = dict(zip(places, zip(parts[::2], parts[1::2], strict=True), strict=True))
    return [PairLogps(*found[place]) for place in range(len(pairs))]


def keeps_logits(model: CausalLM) -> bool:
    """Whether the model's forward can run its head on chosen positions only."""
    bare = getattr(model, "module", model)
    return "logits_to_keep" in inspect.signature(bare.forward).parameters
