"""An objective of your own: copy the function to stages/method/objectives.py, and add a line to `OBJECTIVES` in
stages/registry.py:

    Objective("own-objective", {"gamma": 2.0, "margin": 0.5}, select="oracle", void=("soft_k",)),

`sepo train-policy --objective own-objective` then has it. CONTRIBUTING.md says how to test it.
"""

import torch.nn.functional as F
from torch import Tensor

from stages.method.rewards import pair_loss, selected_rewards
from stages.types import PairLoss, Weighted


def own_objective(logps_RW: Tensor, batch: Weighted, *, gamma: float, margin: float) -> PairLoss:
    """softplus(margin - (u_w - u_l)), u the mean log-prob of the selected tokens times gamma"""
    chosen_B, rejected_B = selected_rewards(logps_RW, batch, gamma=gamma, anchor_margin=False).chunk(2)
    return pair_loss(F.softplus(margin - (chosen_B - rejected_B)), chosen_B, rejected_B)
