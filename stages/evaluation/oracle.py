"""What held-out pairs say of an oracle."""

from collections.abc import Callable
from typing import Any, NamedTuple

from stages.method.drift import Drift, DriftMeter
from stages.method.statistics import Interval, implicit_margin, mean_interval, preference_accuracy
from stages.models.scorer import difference
from stages.types import PairLogps, ScoredPair, TokenPair


class OracleMetrics(NamedTuple):
    """What the held-out pairs say of an oracle."""

    accuracy: Interval
    """share of pairs whose implicit reward prefers the chosen response"""
    margin: Interval
    """beta * (summed score of chosen - of rejected), mean over pairs, nats"""
    drift: Drift

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        margin, drift = self.margin.as_json(), self.drift._asdict()
        return {"accuracy": self.accuracy.as_json(), "reward_margin": margin, "drift": drift}


def oracle_metrics(
    pairs: list[TokenPair],
    oracle: list[PairLogps],
    reference: list[PairLogps],
    beta: float,
    vocabulary_size: int,
    decode: Callable[[list[int]], str],
) -> OracleMetrics:
    """What pairs that an oracle was not trained on say of it by their log-probs; `decode` is the tokenizer's."""
    scores = [difference(ours, theirs) for ours, theirs in zip(oracle, reference, strict=True)]
    meter = DriftMeter(vocabulary_size)
    for pair, score in zip(pairs, scores, strict=True):
        meter.add(ScoredPair(pair, score, None))
    accuracy = preference_accuracy([implicit_margin(score) for score in scores])
    margins = [beta * float(score.chosen.sum() - score.rejected.sum()) for score in scores]
    return OracleMetrics(accuracy, mean_interval(margins), meter.read(decode))
