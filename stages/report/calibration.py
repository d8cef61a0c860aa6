"""What denoised scores are pooled of, and what labels of unseen pairs say of them: lines of a summary, and warnings."""

from collections.abc import Mapping
from typing import Any, Final

from stages.method import pooling
from stages.method.calibration import Calibration
from stages.method.pooling import Shrinkage
from stages.method.statistics import Interval

PARTS: Final = (*pooling.PARTS, "counts")
"""that calibration weighs: those of an oracle's score, and what labels alone say of types"""
KINDS: Final = ("as measured", "centred", "pooled", "counts", "calibrated")
"""of scores, in the order in which they come about"""
UNSEEN: Final = ("calibration", "accuracy_on_unseen_pairs", "log_loss_on_unseen_pairs")
"""of the results in a manifest: what labels of unseen pairs said of scores that were denoised"""


def shrinkage_in_words(found: Shrinkage) -> str:
    return f"{found.groups:,}: variance {found.between:.2g} between their means, {found.within:.2g} within"


def calibration_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What labels of unseen pairs said of scores that were denoised, where the results of a manifest hold it."""
    coefficients, accuracies, losses = (results.get(name) or {} for name in UNSEEN)
    rows = []
    for part in filter(coefficients.get, PARTS):
        value, error = (coefficients[part][name] for name in ("coefficient", "standard_error"))
        known = "unknown" if error is None else f"{error:.2f}"
        rows.append((f"coefficient of the {part}", f"{value:+.2f} (standard error {known})"))
    for kind in filter(accuracies.get, KINDS):
        loss = f", log-loss {Interval(**losses[kind]):.3f}" if kind in losses else ""
        rows.append((f"on unseen pairs, {kind}", f"accuracy {Interval(**accuracies[kind]):.3f}{loss}"))
    return rows


def calibration_warnings(found: Calibration, without_counts: Calibration | None, *, calibrated: bool) -> list[str]:
    """What the labels say against pooling, by the parts of the scores alone, and against the oracle beside counts.

    Without parts of scores, against counts alone.
    """
    if without_counts is None:
        value, error = found.coefficients_K[0], found.errors_K[0]
        if value > 2 * error:
            return []
        said = f"coefficient {value:+.2f}, standard error {error:.2f}"
        return [f"counts are not shown to tell preferences of unseen pairs ({said}): the scores may be noise"]
    beside_counts = found.coefficients_K > 2 * found.errors_K
    shown = without_counts.coefficients_K > 2 * without_counts.errors_K
    warnings = []
    if not shown[:2].any():
        warnings.append(
            "neither what a token's type scores nor what its predecessor adds is shown to tell preferences of unseen"
            " pairs: pooled scores may hold nothing (more data, or a better oracle, may help)"
        )
    if beside_counts[3] and not beside_counts[:3].any():
        warnings.append(
            "beside counts of the types, which need no oracle, nothing in the scores is shown to tell preferences of"
            " unseen pairs: a better oracle, or more pairs for it, may add something"
        )
    if shown[2] and not calibrated:
        value, error = (each[2] for each in without_counts)
        warnings.append(
            f"what pooling leaves out tells preferences of unseen pairs (coefficient {value:+.2f}, standard error"
            f" {error:.2f}): --calibrate keeps it"
        )
    return warnings
