"""KL between two models, exact over the whole vocabulary, response by response."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from stages.logprobs.batches import whole
from stages.logprobs.head import kl_from_reference
from stages.logprobs.logps import Reader, Reference, logps_and_kl, make_batch, make_groups, reading
from stages.reporting import Task
from stages.types import Ids, TokenPair

_NOTHING: Final = np.empty(0, np.int32)


def as_pair(number: int, prompt: Ids, response: Ids) -> TokenPair:
    """A response that stands alone, as a pair without a rejected one."""
    return TokenPair(number, prompt, response, _NOTHING)


@torch.no_grad()
def response_kl(
    reader: Reader, other: Reader, pairs: list[TokenPair], *, max_tokens: int, device: torch.device, task: Task
) -> NDArray[np.float64]:
    """KL(model || other model) summed over the tokens of each pair's chosen and rejected response, (N, 2) nats.

    At a token it is the divergence of the two distributions that the token is drawn from, given what precedes it.

    Args:
        pairs: either all with a rejected response, or all without; then the second column is 0.
        max_tokens: of one forward pass.
        task: advanced by one for every pair.
    """
    packs = reader.packs and other.packs
    reader, reference = reader._replace(packs=packs), Reference(other._replace(packs=packs), kl_from_reference)
    for model in (reader.model, other.model):
        model.eval()
    examples = [whole(pair) for pair in pairs]
    kl_N2 = np.zeros((len(pairs), 2))
    for group in make_groups(examples, max_tokens, packs=packs):
        batch = make_batch([examples[index] for index in group], device, packs=packs)
        with reader.as_read(), reading(reader, batch):
            _, kl_RW = logps_and_kl(reader, reference, batch)
        by_side = kl_RW.double().sum(-1).view(-1, len(group)).T.cpu().numpy()
        kl_N2[group, : by_side.shape[1]] = by_side
        task.advance(len(group))
    return kl_N2
