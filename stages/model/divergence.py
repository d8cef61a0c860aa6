"""KL between two models, exact over the whole vocabulary, response by response."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from stages.currency import Ids, TokenPair
from stages.model.batches import collate, padded_groups, whole
from stages.model.folders import head_rows
from stages.model.logps import Reader, token_kl
from stages.reporting import Task

LOGITS: Final = 1 << 25
"""of one model in one group; a response whose own are more is a group by itself"""
MOST_TOKENS: Final = 8192
"""of one group"""
_NOTHING: Final = np.empty(0, np.int32)


def as_pair(number: int, prompt: Ids, response: Ids) -> TokenPair:
    """A response that stands alone, as a pair without a rejected one."""
    return TokenPair(number, prompt, response, _NOTHING)


def response_kl(
    reader: Reader, reference: Reader, pairs: list[TokenPair], *, device: torch.device, task: Task
) -> NDArray[np.float64]:
    """KL(model || reference) summed over the tokens of each pair's chosen and rejected response, (N, 2) nats.

    At a token it is the divergence of the two distributions that the token is drawn from, given what precedes it.

    Args:
        pairs: either all with a rejected response, or all without; then the second column is 0.
        task: advanced by one for every pair.
    """
    examples = [whole(pair) for pair in pairs]
    room = 1 if reader.alone or reference.alone else min(MOST_TOKENS, LOGITS // head_rows(reader.model))
    kl_N2 = np.zeros((len(examples), 2))
    for group in padded_groups(examples, room):
        batch = collate([examples[place] for place in group], device)
        kl_RT = token_kl(reader.model.eval(), reference.model.eval(), batch)
        by_side = kl_RT.double().sum(-1).view(-1, len(group)).T.cpu().numpy()
        kl_N2[group, : by_side.shape[1]] = by_side
        task.advance(len(group))
    return kl_N2
