"""What held-out pairs say of an oracle, and the examples it is trained on."""

from typing import Any, NamedTuple

import numpy as np

from stages.logprobs.batches import whole
from stages.method.drift import Drift, DriftMeter
from stages.method.statistics import Interval, mean_interval, preference_accuracy
from stages.models.scorer import difference
from stages.types import Example, PairLogps, ReferenceSums, ScoredPair, TokenPair


class OracleMetrics(NamedTuple):
    """What the held-out pairs say of an oracle."""

    accuracy: Interval
    """share of pairs whose implicit reward prefers the chosen response"""
    margin: Interval
    """beta * (summed score of chosen - of rejected), mean over pairs, nats"""
    drift: Drift

    def rows(self, token: str) -> list[tuple[str, str]]:
        """For the summary; `token` is the drift's worst one as text."""
        return [
            ("held-out accuracy", f"{self.accuracy:.3f}"),
            ("held-out reward margin", f"{self.margin:+.3f}"),
            *self.drift.rows(token),
        ]

    def as_json(self, token: str) -> dict[str, Any]:
        """For the manifest."""
        return {
            "accuracy": self.accuracy.as_json(),
            "reward_margin": self.margin.as_json(),
            "drift": {**self.drift._asdict(), "worst_token": token},
        }

    def warnings(self, token: str) -> list[str]:
        """What to read before the oracle's scores are trusted."""
        warnings = []
        if self.accuracy.low <= 0.5:
            warnings.append(
                f"on held-out pairs the oracle is not better than a coin: accuracy {self.accuracy:.3f}; "
                "its scores would select noise (more data, a higher --learning-rate or more epochs may help)"
            )
        if self.drift.large:
            warnings.append(self.drift.warning(token))
        return warnings


def with_reference(pairs: list[TokenPair], reference: list[PairLogps]) -> list[Example]:
    """Examples over whole responses that carry their summed reference log-probs."""
    return [
        whole(pair)._replace(reference=ReferenceSums(*(float(side.sum(dtype=np.float64)) for side in logps)))
        for pair, logps in zip(pairs, reference, strict=True)
    ]


def oracle_metrics(
    pairs: list[TokenPair], oracle: list[PairLogps], reference: list[PairLogps], beta: float, vocabulary_size: int
) -> OracleMetrics:
    """Accuracy, margin and drift of an oracle on pairs it has not seen."""
    scores = [difference(ours, theirs) for ours, theirs in zip(oracle, reference, strict=True)]
    meter = DriftMeter(vocabulary_size)
    for pair, score in zip(pairs, scores, strict=True):
        meter.add(ScoredPair(pair, score, None))
    margins = np.array([beta * float(score.chosen.sum() - score.rejected.sum()) for score in scores])
    return OracleMetrics(preference_accuracy(scores), mean_interval(margins), meter.read())
