"""What training watches beside its loss: log-probs a token, the distance from the start, and their collapse."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

COLLAPSE_NATS: Final = 1.0
"""fall of a chosen token's mean log-prob that is called a collapse: its probability has fallen by a factor of e"""
LINEAR_MARGIN: Final = 0.25
"""mean reward margin at which the loss's slope, 0.5 at the start, has fallen to 0.44 only"""
WINDOW: Final = 3
"""values averaged at either end, so that one odd step raises no alarm"""


def response_metrics(logps_RW: Tensor, weights_RW: Tensor, reference_R: Tensor | None, pairs: int) -> dict[str, Tensor]:
    """Mean log-prob of the tokens that take part, a response each, nats; detached, each (B,).

    With a reference also `log_ratio`: the weighted mean of log pi - log pi_ref over the tokens of both responses, nats
    a token. It is no KL: the responses are the data's and not samples of the policy, so that it may be negative.

    Args:
        reference_R: weighted sums of reference log-probs; None where there is no reference.
        pairs: B; R is B where there are no rejected responses, else 2B.
    """
    taken_RW = weights_RW != 0
    count_R = taken_RW.sum(-1).clamp(min=1)
    sums_R = (logps_RW.detach() * taken_RW).sum(-1)
    means_SB = (sums_R / count_R).view(-1, pairs)
    metrics = dict(zip(("chosen_logp", "rejected_logp"), means_SB, strict=False))
    if reference_R is not None:
        weighted_R = (logps_RW.detach() * weights_RW).sum(-1)
        metrics["log_ratio"] = ((weighted_R - reference_R) / weights_RW.sum(-1)).view(-1, pairs).mean(0)
    return metrics


def linear(margins: Sequence[float]) -> list[str]:
    """What is to be said of DPO's reward margins, one value a logged step; nothing once its sigmoid has bent.

    -log sigmoid(margin) is nearly a straight line while the margin, beta times a difference of log-ratios, is far below
    1: pairs that are ranked well push as hard as the others, and nothing but the number of steps ends that.
    """
    last = margins[-WINDOW:]
    if not last or sum(last) / len(last) >= LINEAR_MARGIN:
        return []
    return [
        f"the reward margin ended at {sum(last) / len(last):+.2f}, far below 1: the loss stayed linear, and pairs that"
        " are ranked well pushed on as hard as the others; more steps or a higher --learning-rate move the margin, and"
        " a larger --beta lets such pairs rest (docs/training.md says where it helped)"
    ]


def collapse(chosen_logps: Sequence[float]) -> str:
    """What is to be said of the chosen responses' log-probs, one value a logged step; nothing if they hold.

    A loss without a reference rewards the margin alone, and may buy it by making both responses less probable.
    """
    window = min(WINDOW, len(chosen_logps) // 2)
    if not window:
        return ""
    first, last = (sum(values) / window for values in (chosen_logps[:window], chosen_logps[-window:]))
    if not first - last > COLLAPSE_NATS:
        return ""
    return (
        f"the chosen responses have become less probable: their mean log-prob a token fell from {first:.2f} to"
        f" {last:.2f}; the margin grows although the model unlearns what it should prefer"
        " (a lower --learning-rate or fewer steps may help)"
    )
