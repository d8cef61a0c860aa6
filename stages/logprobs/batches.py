"""Examples as padded tensors, and the grouping of examples into micro-batches of bounded size."""

from collections.abc import Sequence

import numpy as np
import torch

from stages.types import Batch, Example, Floats, Ids, TokenPair, longest


def whole(pair: TokenPair) -> Example:
    """An example in which every response token has weight 1."""
    return Example(pair, np.ones(len(pair.chosen_ids), np.float32), np.ones(len(pair.rejected_ids), np.float32))


def padded_groups(examples: Sequence[Example], max_tokens: int) -> list[list[int]]:
    """Places of examples that are padded together, longest first: rows x longest row stays within `max_tokens`.

    Longest first, because then memory runs out at once or never. A single pair over the budget makes a group alone.
    """
    groups: list[list[int]] = []
    rows = width = 0
    for place in sorted(range(len(examples)), key=lambda place: -longest(examples[place].pair)):
        pair = examples[place].pair
        more = 2 if len(pair.rejected_ids) else 1
        if not groups or (rows + more) * width > max_tokens:
            groups.append([])
            rows, width = 0, longest(pair)
        groups[-1].append(place)
        rows += more
    return groups


def collate(examples: list[Example], device: torch.device, *, every_token: bool = False) -> Batch:
    """Pad on the right with id 0, which the attention mask hides; no id is ever taken to mean padding.

    Rows are every chosen response, then every rejected one; examples without rejected ids (SFT) give chosen rows only.

    Args:
        every_token: read all response tokens, not only those with a weight.
    """
    rows = [(e.pair.prompt_ids, e.pair.chosen_ids, e.chosen_weights, e.chosen_reference) for e in examples]
    if len(examples[0].pair.rejected_ids):
        rows += [(e.pair.prompt_ids, e.pair.rejected_ids, e.rejected_weights, e.rejected_reference) for e in examples]
    width = max(len(prompt) + len(response) for prompt, response, _, _ in rows)
    ids_RT = np.zeros((len(rows), width), dtype=np.int64)
    attention_RT = np.zeros((len(rows), width), dtype=np.int64)
    weights_RT = np.zeros((len(rows), width), dtype=np.float32)
    read_RT = np.zeros((len(rows), width), dtype=np.bool_)
    for r, (prompt, response, weights, _) in enumerate(rows):
        _fill(ids_RT[r], attention_RT[r], weights_RT[r], prompt, response, weights)
        read_RT[r, len(prompt) : len(prompt) + len(response)] = every_token | (weights != 0)
    reference_R = torch.tensor([reference for _, _, _, reference in rows], dtype=torch.float32)
    tensors = [torch.from_numpy(array) for array in (ids_RT, attention_RT, weights_RT)]
    return Batch(*(tensor.to(device) for tensor in (*tensors, reference_R, torch.from_numpy(read_RT))))


def _fill(ids_T: Ids, attention_T: Ids, weights_T: Floats, prompt: Ids, response: Ids, weights: Floats) -> None:
    start, end = len(prompt), len(prompt) + len(response)
    ids_T[:start], ids_T[start:end] = prompt, response
    attention_T[:end] = 1
    weights_T[start:end] = weights
