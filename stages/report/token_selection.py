"""Which tokens a rule of `sepo train-policy` takes, without a model and without holding all pairs where it need not."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from stages.store.columns import ScoreColumns
from stages.store.scores import Scores


class TokenSelector:
    """A rule with its options, ready for the rows of one folder.

    Args:
        rule: a name of `stages.registry.RULES` that needs no model.
        options: of the rule, where they are not its defaults.
    """

    def __init__(self, scores: Scores, rule: str, options: Mapping[str, Any], seed: int) -> None:
        raise NotImplementedError

    def masks(self, columns: ScoreColumns) -> tuple[NDArray[Any], NDArray[Any]]:
        """Which chosen tokens, (T,) bool, and which rejected ones it takes of some rows of the folder, flat."""
        raise NotImplementedError
