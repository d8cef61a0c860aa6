"""What the figures of scores mean: lines of a summary, and warnings."""

from stages.evaluation.oracle import OracleMetrics
from stages.method.noise import Noise
from stages.method.score_totals import Drift

Rows = list[tuple[str, str]]


def drift_rows(drift: Drift) -> Rows:
    shared = f"{drift.shared:+.3f} nats, farthest {drift.worst_token!r} {drift.worst:+.3f}"
    return [
        ("median score", f"{drift.median:+.3f} nats, spread {drift.spread:.3f}"),
        ("score of the tokens both sides share", shared),
    ]


def drift_warnings(drift: Drift) -> list[str]:
    if not drift.large:
        return []
    return [
        f"the oracle drifted: tokens that chosen and rejected share score {drift.shared:+.2g} nats on average"
        f" ({drift.worst_token!r} {drift.worst:+.2g}, median of all {drift.median:+.2g}) against a spread of"
        f" {drift.spread:.2g}; selection may follow the drift, not the preference; a lower --learning-rate or"
        " --sft-weight 1 reduces it"
    ]


def noise_rows(noise: Noise) -> Rows:
    errors = f"mean {noise.mean:.2g}, p99 {noise.p99:.2g} nats, where a score's median size is {noise.median_score:.2g}"
    shares = ", ".join(f"{share:.3f} at k = {ratio}" for ratio, share in noise.agreement.items())
    return [("noise against float32", f"{errors} ({noise.pairs:,} pairs)"), ("same tokens selected", shares)]


def noise_warnings(noise: Noise) -> list[str]:
    if not noise.large:
        return []
    ratio, share = min(noise.agreement.items(), key=lambda item: item[1])
    return [
        f"rounding decides about tokens: at k = {ratio} only {share:.2f} of those selected"
        " are those that float32 selects; score with --precision float32"
    ]


def oracle_rows(metrics: OracleMetrics) -> Rows:
    return [
        ("held-out accuracy", f"{metrics.accuracy:.3f}"),
        ("held-out reward margin", f"{metrics.margin:+.3f}"),
        *drift_rows(metrics.drift),
    ]


def oracle_warnings(metrics: OracleMetrics) -> list[str]:
    coin = (
        f"on held-out pairs the oracle is not shown to be better than a coin: accuracy {metrics.accuracy:.3f}; "
        "its scores may select noise (more data, a higher --learning-rate or more epochs may help)"
    )
    return [coin] * (metrics.accuracy.low <= 0.5) + drift_warnings(metrics.drift)
