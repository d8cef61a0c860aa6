"""The LM head on the rows that are needed, a tile of rows x vocabulary at a time, in float32.

No [rows x vocabulary] tensor ever exists: the log of the sum is gathered tile by tile, and the tile stays in the cache
of a CPU, where this is faster than the bare matrix product with its large result.

Shapes: ``N`` rows, ``C`` columns of a tile, ``V`` vocabulary, ``H`` hidden size.
"""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

_CPU_TILE: Final = (1024, 2048)
_DEVICE_TILE: Final = (4096, 32768)


class Head(NamedTuple):
    """What a causal language model does with its last hidden states: logits = softcap(scale * (W h + b))."""

    weight_VH: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None


def find_head(model: Any) -> Head | None:
    """The head as its configuration describes it, or None; `stages.model.paths` tries whether that is the truth."""
    output = model.get_output_embeddings()
    if not isinstance(output, torch.nn.Linear):
        return None
    scaling = getattr(model.config, "logits_scaling", None)
    scale = 1.0 / scaling if scaling else float(getattr(model.config, "logit_scale", None) or 1.0)
    return Head(output.weight, output.bias, scale, getattr(model.config, "final_logit_softcapping", None))


def head_logps(head: Head, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    """Log-prob of the target of every row, (N,) float32 nats."""
    rows, columns = _CPU_TILE if hidden_NH.device.type == "cpu" else _DEVICE_TILE
    starts = range(0, len(targets_N), rows)
    return torch.cat(
        [
            _rows_logps(head, hidden_NH[start : start + rows], targets_N[start : start + rows], columns)
            for start in starts
        ]
    )


def _rows_logps(head: Head, hidden_NH: Tensor, targets_N: Tensor, columns: int) -> Tensor:
    hidden_NH = hidden_NH.float()
    highest_N1 = torch.full((len(hidden_NH), 1), float("-inf"), device=hidden_NH.device)
    total_N1 = torch.zeros_like(highest_N1)
    picked_N = torch.empty_like(highest_N1).squeeze(1)
    for start in range(0, len(head.weight_VH), columns):
        logits_NC = _logits(head, hidden_NH, slice(start, start + columns))
        here_N = (targets_N >= start) & (targets_N < start + logits_NC.shape[1])
        places_N1 = (targets_N - start).clamp(0, logits_NC.shape[1] - 1)[:, None]
        picked_N = torch.where(here_N, logits_NC.gather(1, places_N1).squeeze(1), picked_N)
        rising_N1 = torch.maximum(highest_N1, logits_NC.amax(-1, keepdim=True))
        total_N1 *= (highest_N1 - rising_N1).exp_()
        total_N1 += logits_NC.sub_(rising_N1).exp_().sum(-1, keepdim=True)
        highest_N1 = rising_N1
    return picked_N - (highest_N1 + total_N1.log()).squeeze(1)


def _logits(head: Head, hidden_NH: Tensor, columns: slice) -> Tensor:
    bias = None if head.bias_V is None else head.bias_V[columns].float()
    logits_NC = torch.nn.functional.linear(hidden_NH, head.weight_VH[columns].float(), bias)
    if head.scale != 1.0:
        logits_NC *= head.scale
    if head.softcap is not None:
        logits_NC = torch.tanh(logits_NC / head.softcap) * head.softcap
    return logits_NC
