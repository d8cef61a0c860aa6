"""What held-out pairs say of an oracle."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from stages.method.score_totals import Drift, ScoreTotals
from stages.method.statistics import Interval, mean_interval
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
    pairs: Sequence[TokenPair],
    oracle: Sequence[PairLogps],
    reference: Sequence[PairLogps],
    beta: float,
    vocabulary_size: int,
    decode: Callable[[list[int]], str],
) -> OracleMetrics:
    """What pairs that an oracle was not trained on say of it by their log-probs; `decode` is the tokenizer's."""
    scores = [difference(ours, theirs) for ours, theirs in zip(oracle, reference, strict=True)]
    totals = ScoreTotals(vocabulary_size)
    totals.add("held out", [ScoredPair(pair, score, None) for pair, score in zip(pairs, scores, strict=True)])
    margins = [beta * float(score.chosen.sum() - score.rejected.sum()) for score in scores]
    return OracleMetrics(totals.accuracy, mean_interval(margins), totals.drift(decode))
