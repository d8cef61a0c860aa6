"""The pairs that a page shows: a seeded sample of a folder's rows, as coloured tokens and as packed numbers."""

import base64
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.report.heat import STEPS, levels
from stages.report.token_selection import TokenSelector
from stages.report.visible import readable
from stages.reporting import Reporter
from stages.store.scores import Scores
from stages.types import Floats, Ids, ScoredPair

if TYPE_CHECKING:
    from stages.report.vocabulary import Vocabulary

NOISE: Final = chr(ord("a") + 2 * STEPS + 1)
"""the class of a token whose score the scorer's noise hides; those of the others are the letters before it"""
LOGP_STEPS: Final = 256
"""to a nat, in which reference log-probs are packed: what is shown has two decimals"""
UNKNOWN: Final = -32768
"""in place of a packed reference log-prob"""

Mask = NDArray[np.bool_]


class SampledRow(NamedTuple):
    """A row of the folder, and which of its tokens are selected."""

    number: int
    """in the folder, from 0"""
    pair: ScoredPair
    masks: tuple[Mask, Mask]


class ResponseView(NamedTuple):
    """A response as it is shown."""

    tokens: list[tuple[str, str]]
    """of each its class and its text; a capital stands for a token that is selected"""
    selected: int
    sum: float
    """of its scores, nats"""


class ExamplePair(NamedTuple):
    """A pair as it is shown."""

    anchor: str
    number: int
    pair_id: int
    prompt: str
    chosen: ResponseView
    rejected: ResponseView

    @property
    def margin(self) -> float:
        return self.chosen.sum - self.rejected.sum


class Sample(NamedTuple):
    """Rows of a folder, by chance, and what the page's rules need to know of all of its rows."""

    rows: list[SampledRow]
    lengths: dict[str, dict[int, int]]
    """by side, how many responses have so many tokens"""
    median: float | None
    """of all scores, to the bit; None where it was not found"""

    @property
    def pairs(self) -> int:
        """of the folder"""
        return sum(self.lengths["chosen"].values())


class _Median:
    """An exact median in a second reading, from those scores alone that are near the one that the first has found."""

    def __init__(self, near: float) -> None:
        reach = abs(near) / 128 + 1e-9
        self._low, self._high = near - reach, near + reach
        self._below = self._count = 0
        self._inside: list[Floats] = []

    def add(self, scores: Floats) -> None:
        self._count += len(scores)
        self._below += int((scores < self._low).sum())
        self._inside.append(scores[(scores >= self._low) & (scores <= self._high)])

    @property
    def value(self) -> float | None:
        inside = np.sort(np.concatenate(self._inside)) if self._inside else np.zeros(0, np.float32)
        first, last = (self._count - 1) // 2 - self._below, self._count // 2 - self._below
        return float(np.median(inside[first : last + 1])) if 0 <= first <= last < len(inside) else None


def read_sample(
    scores: Scores, selector: TokenSelector, median: float, *, count: int, seed: int, reporter: Reporter
) -> Sample:
    """Read a folder, and keep so many of its rows, each as likely.

    Args:
        median: of all scores, nearly.
    """
    kept = int(scores.manifest["counts"]["kept"])
    wanted = {*np.random.default_rng(seed).choice(kept, min(count, kept), replace=False).tolist()} if kept else set()
    rows: list[SampledRow] = []
    lengths: dict[str, dict[int, int]] = {"chosen": {}, "rejected": {}}
    exact = _Median(median)
    with reporter.task("pairs to show", kept, "pairs") as task:
        for columns in scores.columns():
            for side, found in lengths.items():
                exact.add(getattr(columns, side).scores)
                for length in getattr(columns, side).lengths.tolist():
                    found[length] = found.get(length, 0) + 1
            places = [at for at in range(len(columns.pair_ids)) if columns.start + at in wanted]
            if places:
                pairs = columns.rows()
                rows += [
                    # A copy: a view would keep all rows that were read with it in memory.
                    SampledRow(columns.start + at, deepcopy(pairs[at]), (weights.chosen > 0, weights.rejected > 0))
                    for at, weights in zip(places, selector.weights(columns, places), strict=True)
                ]
            task.advance(len(columns.pair_ids))
    return Sample(rows, lengths, exact.value)


def examples(
    sample: Sample, vocabulary: "Vocabulary | None", median: float, far: float, noise: float | None
) -> list[ExamplePair]:
    """The rows of a sample as they are shown.

    Args:
        vocabulary: without one, ids stand for tokens.
        median: of all scores, where colours begin; `far` from it they end.
        noise: tokens whose score is nearer to the median than that have no colour.
    """

    def texts(ids: Ids) -> list[str]:
        return vocabulary.parts(ids.tolist(), readable) if vocabulary else [f"{each} " for each in ids]

    def response(ids: Ids, scores: Floats, mask: Mask) -> ResponseView:
        letters = [chr(ord("a") + STEPS + level) for level in levels(scores, median, far).tolist()]
        hidden = np.abs(scores - np.float32(median)) < (noise or 0.0)
        classes = (NOISE if grey else letter for letter, grey in zip(letters, hidden, strict=True))
        tokens = [
            (letter.upper() if selected else letter, text)
            for letter, text, selected in zip(classes, texts(ids), mask, strict=True)
        ]
        return ResponseView(tokens, int(mask.sum()), float(scores.sum(dtype=np.float64)))

    shown: dict[str, ExamplePair] = {}
    for row in sample.rows:
        pair, scores = row.pair.pair, row.pair.scores
        anchor = f"pair-{pair.pair_id}"
        # A foreign scorer may number two rows alike.
        anchor += f"-row-{row.number}" if anchor in shown else ""
        sides = [response(*each) for each in zip((pair.chosen_ids, pair.rejected_ids), scores, row.masks, strict=True)]
        ids = pair.prompt_ids
        prompt = readable(vocabulary.decoded([ids.tolist()])[0]) if vocabulary else "".join(texts(ids))
        shown[anchor] = ExamplePair(anchor, row.number, pair.pair_id, prompt, *sides)
    return list(shown.values())


def packed(sample: Sample) -> dict[str, Any]:
    """The numbers of a sample's tokens, response after response, chosen before rejected: base64, little-endian.

    ``scores``: float32. ``types``: uint32, the ids that occur; ``type_of``: of each token the index of its id there,
    uint16, or uint32 where they are ``wide``. ``logps``: int16, 1/256 nat; null where there are none.
    """
    pairs = [row.pair for row in sample.rows]
    ids = np.concatenate([side for pair in pairs for side in pair.pair.parts[1:]])
    types, type_of = np.unique(ids, return_inverse=True)
    wide = len(types) > 1 << 16
    logps = None
    if any(pair.reference for pair in pairs):
        known = [
            side for pair in pairs for side in pair.reference or [np.full(len(each), np.nan) for each in pair.scores]
        ]
        steps = np.clip(np.round(np.concatenate(known) * LOGP_STEPS), UNKNOWN + 1, 0)
        logps = _base64(np.where(np.isnan(steps), UNKNOWN, steps), "<i2")
    return {
        "scores": _base64(np.concatenate([side for pair in pairs for side in pair.scores]), "<f4"),
        "types": _base64(types, "<u4"),
        "type_of": _base64(type_of, "<u4" if wide else "<u2"),
        "wide": wide,
        "logps": logps,
        "all_lengths": {side: sorted(found.items()) for side, found in sample.lengths.items()}
        if len(pairs) < sample.pairs
        else None,
    }


def _base64(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()
