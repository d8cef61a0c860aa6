"""The next token, drawn from logits: temperature and top-p, one uniform number for each row.

Shapes: ``R`` rows, ``V`` vocabulary.
"""

from typing import Final

import torch
from torch import Tensor

_LIKELY: Final = 1024
"""tokens among which a nucleus is looked for first: sorting a whole vocabulary takes as long as a small model"""


def draw(logits_RV: Tensor, temperature_R: Tensor, top_p_R: Tensor, uniform_R: Tensor) -> Tensor:
    """A token for each row, (R,): by inverting the cumulative distribution in the order of the ids; at temperature 0
    the likeliest one.

    Args:
        logits_RV: float32; what is minus infinity is never drawn.
        temperature_R: float32, at least 0.
        top_p_R: float32 in (0, 1]: of the likeliest tokens, as many as together have this probability, are left.
        uniform_R: float64 in [0, 1).
    """
    tokens_R = logits_RV.argmax(-1)
    sampled = (temperature_R > 0).nonzero().squeeze(-1)
    if len(sampled):
        probabilities = (logits_RV[sampled] / temperature_R[sampled, None]).softmax(-1)
        tokens_R[sampled] = _inverted(_nucleus(probabilities, top_p_R[sampled]), uniform_R[sampled])
    return tokens_R


def _nucleus(probabilities_RV: Tensor, top_p_R: Tensor) -> Tensor:
    """The same with 0 for what is not in the nucleus; what is as likely as its last token is in it too."""
    cut = (top_p_R < 1).nonzero().squeeze(-1)
    if not len(cut):
        return probabilities_RV
    whole, top_p = probabilities_RV[cut], top_p_R[cut, None].double()
    likely = whole.topk(min(_LIKELY, whole.shape[-1])).values
    if bool((likely.double().sum(-1, keepdim=True) < top_p).any()):
        likely = whole.sort(descending=True).values
    before = likely.double().cumsum(-1) - likely.double()
    last = ((before < top_p).sum(-1, keepdim=True) - 1).clamp(min=0)
    return probabilities_RV.index_copy(0, cut, whole.where(whole >= likely.gather(-1, last), 0.0))


def _inverted(weights_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The first token at which the cumulative weight exceeds a share of their sum; one of weight 0 is never it."""
    sums_RV = weights_RV.double().cumsum(-1)
    targets_R1 = (uniform_R * sums_RV[:, -1]).unsqueeze(-1)
    return torch.searchsorted(sums_RV, targets_R1, right=True).squeeze(-1).clamp(max=weights_RV.shape[-1] - 1)
