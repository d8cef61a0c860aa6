"""SimPO."""

from torch import Tensor

from stages.method.objectives.sepo import sepo
from stages.types import PairLoss, Weighted


def simpo(
    logps_RW: Tensor,
    batch: Weighted,
    *,
    gamma: float,
    margin: float,
    sft_weight: float,
    kl_weight: float,
    anchor_margin: bool,
) -> PairLoss:
    """-log sigmoid(u(y_w) - u(y_l) - margin) on all tokens, arXiv 2405.14734 Eq. 6

    Its beta is gamma here, its gamma is the margin: it is the loss of `sepo`, and differs in the tokens it is given.
    """
    return sepo(
        logps_RW,
        batch,
        gamma=gamma,
        margin=margin,
        sft_weight=sft_weight,
        kl_weight=kl_weight,
        anchor_margin=anchor_margin,
    )
