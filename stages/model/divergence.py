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
_NONE: Final = np.empty(0, np.int32)


def response_kl(
    reader: Reader, reference: Reader, prompts: list[Ids], responses: list[Ids], *, device: torch.device, task: Task
) -> NDArray[np.float64]:
    """KL(model || reference) summed over the tokens of each response, (N,) nats.

    At a token it is the divergence of the two distributions that the token is drawn from, given what precedes it.

    Args:
        task: advanced by one for every response.
    """
    examples = [
        whole(TokenPair(number, prompt, response, _NONE))
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    room = 1 if reader.alone or reference.alone else min(MOST_TOKENS, LOGITS // head_rows(reader.model))
    kl_N = np.zeros(len(examples))
    for group in padded_groups(examples, room):
        batch = collate([examples[place] for place in group], device)
        kl_RT = token_kl(reader.model.eval(), reference.model.eval(), batch)
        kl_N[group] = kl_RT.double().sum(-1).cpu().numpy()
        task.advance(len(group))
    return kl_N
