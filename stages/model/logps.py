"""The one primitive that turns a model and token ids into log-probs of those tokens. Nobody else shifts.

Shapes: ``R`` rows, ``T`` tokens, ``K`` positions whose logits are needed, ``V`` vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.currency import Batch, Example, PairLogps, TokenPair
from stages.model.batches import collate, micro_batches, whole
from stages.reporting import Task


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
    models: Sequence[Any], pairs: list[TokenPair], *, max_tokens: int, device: torch.device, task: Task
) -> list[list[PairLogps]]:
    """Log-probs of every response token of every pair under each model.

    Batches are made by length, whatever the order of the pairs, and depend on the pairs and `max_tokens` alone.

    Args:
        max_tokens: rows x longest row of one forward pass.
        task: advanced by one for every pair that all models have seen.

    Returns:
        one list a model, in the order of the models; each in the order of the pairs.
    """
    found: list[dict[int, PairLogps]] = [{} for _ in models]
    places = {id(pair): place for place, pair in enumerate(pairs)}
    for examples in micro_batches([whole(pair) for pair in pairs], max_tokens):
        batch = collate(examples, device)
        for model, logps in zip(models, found, strict=True):
            logps_RT = token_logps(model.eval(), batch).cpu().numpy()
            for row, example in enumerate(examples):
                logps[places[id(example.pair)]] = _responses(example, logps_RT[row], logps_RT[len(examples) + row])
        task.advance(len(examples))
    return [[logps[place] for place in range(len(pairs))] for logps in found]


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
    if _keeps_logits(model):
        kept: Tensor = model(**inputs, logits_to_keep=positions_K).logits
        return kept.float()
    every: Tensor = model(**inputs).logits
    return every[:, positions_K].float()


def _keeps_logits(model: Any) -> bool:
    """Whether the model's forward can run its head on chosen positions only."""
    bare = getattr(model, "module", model)
    return "logits_to_keep" in inspect.signature(bare.forward).parameters


def _responses(example: Example, chosen_T: Any, rejected_T: Any) -> PairLogps:
    start = len(example.pair.prompt_ids)
    chosen, rejected = len(example.pair.chosen_ids), len(example.pair.rejected_ids)
    return PairLogps(chosen_T[start : start + chosen].copy(), rejected_T[start : start + rejected].copy())
