"""What held-out pairs say of an oracle."""

from typing import Any, NamedTuple

import numpy as np

from stages.method.drift import Drift, DriftMeter
from stages.method.statistics import Interval, mean_interval, preference_accuracy
from stages.models.scorer import difference
from stages.types import PairLogps, ScoredPair, TokenPair


class OracleMetrics(NamedTuple):
    """What the held-out pairs say of an oracle."""

    accuracy: Interval
    """share of pairs whose implicit reward prefers the chosen response"""
    margin: Interval
    """beta * (summed score of chosen - of rejected), mean over pairs, nats"""
    drift: Drift

    def as_json(self, token: str) -> dict[str, Any]:
        """For the manifest."""
        return {
            "accuracy": self.accuracy.as_json(),
            "reward_margin": self.margin.as_json(),
            "drift": {**self.drift._asdict(), "worst_token": token},
        }


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
