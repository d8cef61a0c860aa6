"""Which tokens a rule of `sepo train-policy` takes, without a model and without holding all pairs where it need not."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from stages.method.selection import Mask, RuleInputs, Selection
from stages.registry import RULES
from stages.reporting import Quiet, Reporter
from stages.store.columns import ScoreColumns
from stages.store.scores import Scores
from stages.store.shape import lookup
from stages.types import PairWeights, ScoredPair


class TokenSelector:
    """A rule with its options, ready for the rows of one folder.

    A rule that looks at all pairs together is given all of their scores at once, which are held in memory.

    Args:
        rule: a name of `RULES` that needs no log-probs of a model.
        options: of rules; those of another rule are left aside, those that are missing have this one's defaults.
    """

    def __init__(
        self, scores: Scores, rule: str, options: Mapping[str, Any], seed: int, reporter: Reporter | None = None
    ) -> None:
        entry = RULES[rule]
        self.notes: Counter[str] = Counter()
        """what the rule says that happened, and how often, in the rows that were asked for"""
        self._select = partial(entry.load(), **{name: options[name] for name in entry.options if name in options})
        self._noise = lookup(scores.manifest, "results.noise.p99")
        self._seed = seed
        self._all: list[PairWeights] | None = None
        if entry.whole_data and scores.manifest["counts"]["kept"]:
            (reporter or Quiet()).say(f"select {rule} looks at all pairs together: their scores are held in memory")
            self._all = self._selected([row for columns in scores.columns() for row in columns.rows()])

    def masks(self, columns: ScoreColumns) -> tuple[Mask, Mask]:
        """Which chosen tokens, (T,), and which rejected ones it takes of some rows of the folder, flat."""
        weights = self.weights(columns, range(len(columns.pair_ids)))
        chosen, rejected = (np.concatenate(side) > 0 for side in zip(*weights, strict=True))
        return chosen, rejected

    def weights(self, columns: ScoreColumns, places: Iterable[int]) -> list[PairWeights]:
        """Those of some of these rows, by their places among them: above 0 where a token is taken."""
        if self._all is not None:
            return [self._all[columns.start + place] for place in places]
        rows = columns.rows()
        return self._selected([rows[place] for place in places])

    def _selected(self, rows: list[ScoredPair]) -> list[PairWeights]:
        selection: Selection = self._select(RuleInputs(rows, (), self._noise, self._seed))
        weights, notes = selection.drawn()
        self.notes.update(notes)
        return weights
