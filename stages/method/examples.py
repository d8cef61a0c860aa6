"""Scored pairs and what a rule made of them, as training takes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.errors import SepoError
from stages.method.selection import Selection
from stages.types import Example, Floats, PairLogps, PairWeights, PerToken, ReferenceSums, ScoredPair

SIDES = ("chosen", "rejected")


def make_examples(
    rows: Sequence[ScoredPair],
    selection: Selection,
    references: Sequence[PairLogps] | None,
    too_long: dict[str, int],
    *,
    alone: bool = False,
    per_token: bool = False,
) -> tuple[list[Example], dict[str, Any]]:
    """Join rows, weights and reference log-probs; a pair of which a response has no weight is dropped and counted.

    Args:
        references: log-probs under the reference, a row each, where the objective has one.
        too_long: reason -> pairs that were left out before for it, for the counts (of the manifest).
        alone: the chosen responses are trained on alone: nothing of the rejected ones is looked at or counted.
        per_token: examples also get the reference log-probs and the scores of every token.
    """
    examples: list[Example] = []
    empty = 0
    sides = SIDES[:1] if alone else SIDES
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(sides, 0) for name in ("tokens", "selected")}
    for index, (row, weights) in enumerate(zip(rows, selection.weights, strict=True)):
        if not weights.chosen.any() or not (alone or weights.rejected.any()):
            empty += 1
            continue
        sums = None if references is None else ReferenceSums(*map(_weighted_sum, weights, references[index]))
        values = PerToken(references[index], row.scores) if per_token and references is not None else None
        example = Example(row.pair, weights, sums, values)
        examples.append(chosen_only(example) if alone else example)
        for name, side in zip(sides, weights, strict=False):
            counts["tokens"][name] += len(side)
            counts["selected"][name] += int(np.count_nonzero(side))
    if not examples:
        raise SepoError(
            f"in each of the {empty:,} pairs a response has no weighted token",
            hint="give every response a token with a weight above 0",
        )
    dropped = {**too_long, "a response without a weighted token": empty}
    return examples, {
        "read": len(examples) + sum(dropped.values()),
        "kept": len(examples),
        "dropped": {reason: count for reason, count in dropped.items() if count},
        **counts,
        "selection": selection.notes,
    }


def chosen_only(example: Example) -> Example:
    """The example without its rejected response."""
    nothing = np.empty(0, np.float32)
    pair = example.pair._replace(rejected_ids=np.empty(0, np.int32))
    return Example(pair, PairWeights(example.weights.chosen, nothing), example.reference)


def _weighted_sum(weights: Floats, logps: Floats) -> float:
    """In float64: reference and policy nearly cancel."""
    return float((weights.astype(np.float64) * logps).sum())
