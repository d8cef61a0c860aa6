"""Examples as padded tensors, and the grouping of examples into micro-batches of bounded size."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.devices.memory import on_device
from stages.reporting import flat
from stages.types import (
    Batch,
    CausalLM,
    Example,
    Floats,
    PairLogps,
    PairWeights,
    ReferenceSums,
    Response,
    TokenPair,
    longest,
)


def whole(pair: TokenPair, reference: ReferenceSums | None = None) -> Example:
    """An example in which every response token has weight 1, perhaps with log-probs under the reference."""
    weights = PairWeights(*(np.ones(len(ids), np.float32) for ids in (pair.chosen_ids, pair.rejected_ids)))
    return Example(pair, weights, reference)


def reference_sums(logps: Iterable[PairLogps]) -> NDArray[np.float64]:
    """Of each pair the log-probs under a reference added up, (N, 2) nats: chosen, rejected."""
    sums = (side.sum(dtype=np.float64) for pair in logps for side in pair)
    return np.fromiter(sums, np.float64).reshape(-1, 2)


def padded_groups(examples: Sequence[Example], max_tokens: int) -> list[list[int]]:
    """Indices of examples that are padded together, longest first: rows x longest row stays within `max_tokens`.

    Longest first, because then memory runs out at once or never. A single pair over the budget makes a group alone.
    """
    groups: list[list[int]] = []
    rows = width = 0
    for index in sorted(range(len(examples)), key=lambda index: -longest(examples[index].pair)):
        pair = examples[index].pair
        more = 2 if len(pair.rejected_ids) else 1
        if not groups or (rows + more) * width > max_tokens:
            groups.append([])
            rows, width = 0, longest(pair)
        groups[-1].append(index)
        rows += more
    return groups


def collate(examples: list[Example], device: torch.device, *, every_token: bool = False) -> Batch:
    """Pad on the right with id 0, which the attention mask hides; no id is ever taken to mean padding.

    Rows are every chosen response, then every rejected one; examples without rejected ids (SFT) give chosen rows only.
    With `every_token` all response tokens are needed, not only those with a weight.
    """
    responses = [each for side in zip(*(example.responses for example in examples), strict=True) for each in side]
    prompts = [example.pair.prompt_ids for example in examples] * (len(responses) // len(examples))
    rows = list(zip(prompts, responses, strict=True))
    width = max(len(prompt) + len(response.ids) for prompt, response in rows)
    ids_RT = np.zeros((len(rows), width), dtype=np.int64)
    attention_RT = np.zeros((len(rows), width), dtype=np.int64)
    weights_RT = np.zeros((len(rows), width), dtype=np.float32)
    needed_RT = np.zeros((len(rows), width), dtype=np.bool_)
    for r, (prompt, response) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(response.ids)
        ids_RT[r, :start], ids_RT[r, start:end] = prompt, response.ids
        attention_RT[r, :end] = 1
        weights_RT[r, start:end] = response.weights
        needed_RT[r, start:end] = every_token | (response.weights != 0)
    arrays = (ids_RT, attention_RT, weights_RT, needed_RT)
    ids, attention, weights, needed = (on_device(array, device) for array in arrays)
    sums_R = references_of([response.reference for response in responses], device)
    reference_RW, scores_RW = token_values(responses, needed)
    return Batch(ids, attention, weights, sums_R, needed, reference_RW=reference_RW, scores_RW=scores_RW)


def token_values(responses: Sequence[Response], needed_RW: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Reference log-probs and scores of every token, in the shape of `needed_RW`; None where they are not known."""
    return (
        _spread([response.token_reference for response in responses], needed_RW),
        _spread([response.scores for response in responses], needed_RW),
    )


def _spread(values: Sequence[Floats | None], needed_RW: Tensor) -> Tensor | None:
    """Values of all needed tokens, row by row, put where they are needed, and 0 elsewhere."""
    known = [each for each in values if each is not None]
    if not known:
        return None
    flat = on_device(np.concatenate(known), needed_RW.device)
    spread_RW = torch.zeros(needed_RW.shape, device=needed_RW.device)
    return spread_RW.masked_scatter(needed_RW, flat)


def references_of(sums: Sequence[float | None], device: torch.device) -> Tensor | None:
    """The summed reference log-probs of the rows of a batch, (R,) float32; None where they are not known."""
    known = [each for each in sums if each is not None]
    return on_device(np.array(known, np.float32), device) if known else None


def looks_at_the_batch(model: CausalLM) -> bool:
    """Whether rotary frequencies are chosen by the largest position in the batch: the trial is too short to show it."""
    # A configuration may have one for each kind of layer.
    kinds = [str(value) for path, value in flat(model.config.to_dict()) if path.endswith("rope_type")]
    return any(kind == "longrope" or "dynamic" in kind for kind in kinds)
