"""Scored pairs and what a rule made of them, as training takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from stages.errors import SepoError
from stages.method.selection import Selection
from stages.types import SIDES, Example, Floats, Joined, PairLogps, PairWeights, ReferenceSums, ScoredPair

LOPSIDED: Final = 0.5
"""how far apart the shares of selected last tokens may be; beyond it a policy learns length before anything else"""


@dataclass
class ExampleCounts:
    """What became of the pairs that a rule was given: known when all examples were drawn."""

    alone: bool
    """the chosen responses are trained on alone: nothing of the rejected ones is looked at or counted"""
    kept: int = 0
    empty: int = 0
    """pairs of which a response has no weight"""
    tokens: dict[str, int] = field(default_factory=dict)
    """by side, of the pairs that were kept"""
    selected: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    """responses whose last token is selected: as a rule the one that ends the turn"""

    def __post_init__(self) -> None:
        sides = SIDES[:1] if self.alone else SIDES
        self.tokens, self.selected, self.ends = (dict.fromkeys(sides, 0) for _ in range(3))

    def add(self, weights: PairWeights) -> bool:
        """Count a pair, which is dropped where this is False."""
        empty = not weights.chosen.any() or not (self.alone or weights.rejected.any())
        self.empty += empty
        self.kept += not empty
        for name in () if empty else self.tokens:
            self.tokens[name] += len(getattr(weights, name))
            self.selected[name] += int(np.count_nonzero(getattr(weights, name)))
            self.ends[name] += bool(getattr(weights, name)[-1])
        return not empty

    def as_json(self, too_long: dict[str, int], notes: dict[str, int]) -> dict[str, Any]:
        """For the manifest.

        Args:
            too_long: reason -> pairs that were left out before for it.
            notes: of the selection.

        Raises:
            SepoError: no pair was kept.
        """
        if not self.kept:
            raise SepoError(
                f"in each of the {self.empty:,} pairs a response has no weighted token",
                hint="give every response a token with a weight above 0",
            )
        dropped = {**too_long, "a response without a weighted token": self.empty}
        return {
            "read": self.kept + sum(dropped.values()),
            "kept": self.kept,
            "dropped": {reason: count for reason, count in dropped.items() if count},
            "tokens": self.tokens,
            "selected": self.selected,
            "selected_ends": self.ends,
            "selection": {note: int(count) for note, count in notes.items()},
        }


def end_warnings(counts: dict[str, Any]) -> list[str]:
    """What there is to say where one side's last tokens are selected far more often than the other's."""
    chosen, *others = (ends / counts["kept"] for ends in counts["selected_ends"].values())
    if not others or abs(chosen - others[0]) <= LOPSIDED:
        return []
    effect = "to end its answers sooner" if chosen > others[0] else "not to end its answers"
    return [
        f"the last token is selected in {chosen:.1%} of the chosen and {others[0]:.1%} of the rejected responses: "
        f"the policy learns {effect}; --kl-selected and --kl-unselected hold it"
    ]


def join(
    rows: Sequence[ScoredPair],
    selection: Selection,
    references: Sequence[PairLogps] | None,
    counts: ExampleCounts,
    *,
    per_token: bool = False,
) -> Iterator[Joined]:
    """Join rows, weights and reference log-probs; a pair of which a response has no weight is dropped and counted.

    Args:
        references: log-probs under the reference, a row each, where the objective has one.
        per_token: the reference log-probs of every token are kept too.
    """
    for row, (scored, weights) in enumerate(zip(rows, selection.weights, strict=True)):
        _refuse_other_lengths(scored, weights)
        if counts.add(weights):
            logps = None if references is None else references[row]
            sums = None if logps is None else ReferenceSums(*map(_weighted_sum, weights, logps))
            yield Joined(row, weights, sums, logps if per_token else None)


def _refuse_other_lengths(row: ScoredPair, weights: PairWeights) -> None:
    given, wanted = (tuple(map(len, each)) for each in (weights, row.scores))
    if given != wanted:
        raise SepoError(
            f"the rule gave pair {row.pair.pair_id} {given[0]:,} and {given[1]:,} weights for responses of "
            f"{wanted[0]:,} and {wanted[1]:,} tokens",
            hint="a rule gives every token of either response a weight, 0 where it is not selected",
        )


def chosen_only(example: Example) -> Example:
    """The example without its rejected response."""
    nothing = np.empty(0, np.float32)
    pair = example.pair._replace(rejected_ids=np.empty(0, np.int32))
    return Example(pair, PairWeights(example.weights.chosen, nothing), example.reference)


def _weighted_sum(weights: Floats, logps: Floats) -> float:
    """In float64: reference and policy nearly cancel."""
    return float((weights.astype(np.float64) * logps).sum())
