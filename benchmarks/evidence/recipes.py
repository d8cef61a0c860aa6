"""The recipes that are compared on real text: losses of the library, each at its own two settings.

Settings of the anchored ones are those of the demo (examples/compare.yaml). Without a reference in the loss, or with a
small beta, a policy goes so far at their rate that no sample of the reference tells of it, so these have smaller ones.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from benchmarks.evidence.last_layers import Loss, Row, pair_losses
from stages.method import objectives

BASELINE: Final = "DPO, beta 1, with KL"
"""from which differences are counted"""
SHARE: Final = 0.3
"""of the tokens that a selection takes"""


class Setting(NamedTuple):
    """One way to train by a recipe."""

    loss: Loss
    rate: float


def recipes(
    rows: Sequence[Row],
    raw: Sequence[Tensor],
    denoised: Sequence[Tensor],
    counted: Sequence[Tensor],
    rate: float,
    seed: int,
) -> dict[str, list[Setting]]:
    """Each with its settings, of which the first is compared first; scores are of the tokens of each row, (N,)."""
    simpo = {"gamma": 2.1, "margin": 0.5, "sft_weight": 0.0, "kl_weight": 0.0, "anchor_margin": False}
    dpo = {"beta": 1.0, "sft_weight": 0.0}

    def loss(objective: Callable[..., Any], options: dict[str, Any], **more: Any) -> Loss:
        return pair_losses(rows, objective, options, **more)

    def at_rates(shares: tuple[float, float], objective: Callable[..., Any], *how: Any, **more: Any) -> list[Setting]:
        return [Setting(loss(objective, *how, **more), rate * share) for share in shares]

    def regressions(scores: Sequence[Tensor]) -> list[Setting]:
        return [Setting(loss(objectives.regress, {"scale": scale}, scores=scores), rate) for scale in (0.4, 1.0)]

    best = [selected(row, scores_N) for row, scores_N in zip(rows, raw, strict=True)]
    rng = torch.Generator().manual_seed(seed)
    any_ones = [selected(row, torch.rand(len(row.targets), generator=rng)) for row in rows]
    return {
        "regression, denoised": regressions(denoised),
        BASELINE: [Setting(loss(objectives.dpo, dpo, kl_weight=weight), rate) for weight in (0.3, 0.03)],
        "regression, counts alone": regressions(counted),
        "SimPO": at_rates((0.3, 0.1), objectives.sepo, simpo),
        "DPO, beta 0.1": at_rates((0.3, 0.1), objectives.dpo, dpo | {"beta": 0.1}),
        "TDPO2, beta 0.1": at_rates((0.3, 0.1), objectives.tdpo, {"beta": 0.1, "alpha": 0.5}, token_kl=True),
        "SePO, as published": at_rates((0.1, 0.03), objectives.sepo, simpo, weights=best),
        "SePO, random tokens": at_rates((0.1, 0.03), objectives.sepo, simpo, weights=any_ones),
        "regression, as measured": regressions(raw),
    }


def selected(row: Row, scores_N: Tensor) -> Tensor:
    """Weights of SePO's selection, (N,): the best tokens of the chosen response, the worst of the rejected one."""
    weights = []
    for sign, part in zip((1, -1), torch.split(scores_N, row.lengths), strict=True):
        best = (sign * part).topk(math.ceil(SHARE * len(part))).indices
        weights.append(torch.zeros_like(part).index_fill(0, best, 1.0))
    return torch.cat(weights)
