"""What a folder of scores looks like as a whole, from one reading of it in constant memory.

Shapes: ``P`` pairs; ``T`` tokens of a side; ``V`` ids; ``B`` bins.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from numpy.typing import NDArray

from stages.method.statistics import Interval
from stages.report.token_selection import TokenSelector
from stages.reporting import Reporter
from stages.store.scores import Scores

STEPS: Final = 20
"""of the cumulative shares: the top 5%, 10%, ... 100% of each response's tokens"""
POSITIONS: Final = 10
"""tenths of a response"""
TYPES_SHOWN: Final = 20
PAIRS_SAMPLED: Final = 1000
"""pairs that are kept one by one for a picture of margin against length"""


class Distribution(NamedTuple):
    """All response scores together, nats."""

    tokens: int
    median: float
    """to 11 bits, as are quantiles"""
    mean: float
    spread: float
    """standard deviation"""
    low: float
    high: float
    far: float
    """98th percentile of |score - median|, where colours end"""


class Bins(NamedTuple):
    """A histogram of both sides over the same bins; what lies outside is counted in the first or the last."""

    edges: NDArray[Any]
    """(B + 1,)"""
    chosen: NDArray[Any]
    """(B,) tokens"""
    rejected: NDArray[Any]
    """(B,)"""


class Part(NamedTuple):
    """Some tokens of a side, and how many of them were selected."""

    name: str
    """such as ``0-10%`` of the response, ``punctuation``, or ``64-127`` tokens"""
    tokens: int
    selected: int
    mean_score: float
    """nats; 0 where there is no token"""


class TokenType(NamedTuple):
    """A token type that is selected more often than chance would."""

    id: int
    tokens: int
    selected: int
    expected: float
    """the sum over its occurrences of the share that was selected of their responses"""
    z: float
    """(selected - expected) / sqrt(the sum of share * (1 - share)): what the types are ranked by"""
    mean_score: float


@dataclass(frozen=True)
class SideStatistics:
    """The chosen or the rejected responses."""

    tokens: int
    selected: int
    cumulative: list[float]
    """(STEPS,) Figure 1: see `ScoreStatistics.cumulative`"""
    by_position: list[Part]
    """by tenth of the response"""
    by_class: list[Part]
    """by class of token (`stages.report.token_classes.CLASSES`); none without a tokenizer"""
    by_length: list[Part]
    """by tokens of the response, doubling; empty bins are left out"""
    last_selected: Interval
    """how often a response's last token, its end of turn, is selected"""
    types: list[TokenType]
    """those selected most above expectation, best first"""


@dataclass(frozen=True)
class MarginStatistics:
    """Of each pair the sum of the chosen scores minus that of the rejected ones, nats."""

    mean: Interval
    accuracy: Interval
    """share of pairs whose margin is above 0, a tie counts half"""
    length_correlation: float | None
    """Pearson's, of the margin with chosen minus rejected length; None where one of them is the same in all pairs"""
    longer_accuracy: Interval
    """how often the longer response is the chosen one: what a preference for length alone would reach"""
    sample: NDArray[Any]
    """(min(P, PAIRS_SAMPLED), 3): chosen length minus rejected length, margin, row number from 0; a seeded sample"""


@dataclass(frozen=True)
class Drifting:
    """How often the best token of a chosen response and the worst of its rejected one are of the same type."""

    same: Interval
    expected: float
    """if best and worst tokens of different pairs were compared"""
    types: list[tuple[int, int]]
    """(id, pairs) of the most frequent ones"""


@dataclass(frozen=True)
class ScoreStatistics:
    """A folder of scores as a whole."""

    pairs: int
    prompt_tokens: int
    scores: Distribution
    histogram: Bins
    noise: float | None
    """99th percentile of the scorer's error, nats, if it was measured"""
    within_noise: float | None
    """share of the tokens whose score is nearer to the median than that"""
    cumulative: list[float] | None
    """(STEPS,) Figure 1 of arXiv 2408.13518. Let top(f, y) be the ceil(f n) highest scores of a chosen response and the
    lowest of a rejected one: the sum of the chosen ones' minus the sum of the rejected ones', over all pairs, divided
    by the same at f = 1, the sum of all margins. It may exceed 1, since what is left out holds scores against the pair;
    None where the margins do not sum up to more than 0. On a side: the wanted part alone, max(0, score) of chosen
    tokens and max(0, -score) of rejected ones, which rises from 0 to 1."""
    margin: MarginStatistics
    drifting: Drifting
    chosen: SideStatistics
    rejected: SideStatistics
    notes: dict[str, int]
    """what the rule said happened how often"""


def read_statistics(
    scores: Scores, selector: TokenSelector, reporter: Reporter, classes: NDArray[Any] | None = None
) -> ScoreStatistics | None:
    """Read all of a folder once; None where it has no pair.

    Args:
        classes: (V,) of each id its class (`stages.report.token_classes.classes_of`).
    """
    raise NotImplementedError
