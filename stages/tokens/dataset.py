"""A data set as token pairs of bounded length, with every row that was left out counted by reason."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from stages.errors import SepoError
from stages.reporting import Reporter
from stages.tokens.encode import NO_ROOM, SAME_WHEN_CUT, Encoder, truncate
from stages.tokens.tokenised import Tokenised, TokenTable, tokenised_conversations, tokenised_pairs
from stages.types import Dropped, TokenPair, longest

_LONGER: Final = "longer than "
_OF_LENGTH: Final = (_LONGER, NO_ROOM, SAME_WHEN_CUT)
"""how the reasons begin for which a limit drops a pair"""
EXAMPLES: Final = 3


@dataclass
class Counts:
    """What became of the rows of a data set."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    """pairs kept with a response cut"""
    tokens: Counter[str] = field(default_factory=Counter)
    """prompt, chosen and rejected tokens of what was kept"""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """the first rows that were dropped for a reason, such as ``row 17``"""

    def as_json(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "truncated": self.truncated,
            "tokens": dict(self.tokens),
        }

    def __str__(self) -> str:
        """``1,500 rows = 1,478 kept + 22 dropped (12 empty response, 10 longer than max_length)``."""
        text = f"{self.read:,} rows = {self.kept:,} kept + {self.dropped.total():,} dropped"
        reasons = [f"{count:,} {reason}" for reason, count in self.dropped.most_common()]
        text += f" ({', '.join(reasons)})" if reasons else ""
        return text + (f"; {self.truncated:,} of those kept were cut" if self.truncated else "")

    def drop(self, reason: str, count: int, rows: list[str]) -> None:
        self.dropped[reason] += count
        self.examples[reason] = [*self.examples.get(reason, []), *rows][:EXAMPLES]


class Limit(NamedTuple):
    """How long a pair may be, and what becomes of a longer one."""

    max_length: int
    """most tokens of prompt and longer response together"""
    overlong: str = "drop"
    """one of `stages.configs.OVERLONG`: drop the pair, cut the ends of its responses, or refuse the data set"""


class KeptPairs(Sequence[TokenPair]):
    """The pairs of a table that a limit keeps, cut to it on the way out."""

    def __init__(self, table: TokenTable, places: NDArray[np.int64], max_length: int) -> None:
        self._table = table
        self._places = places
        self._max_length = max_length

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> TokenPair: ...
    @overload
    def __getitem__(self, number: slice) -> list[TokenPair]: ...
    def __getitem__(self, number: int | slice) -> TokenPair | list[TokenPair]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        pair = self._table[int(self._places[number])]
        cut = pair if longest(pair) <= self._max_length else truncate(pair, self._max_length)
        assert isinstance(cut, TokenPair)
        return cut

    def __iter__(self) -> Iterator[TokenPair]:
        return (self[number] for number in range(len(self)))


def load_pairs(
    dataset: str, encoder: Encoder, limit: Limit, *, columns: Mapping[str, str], reporter: Reporter
) -> tuple[Sequence[TokenPair], Counts]:
    """A preference data set (files or a hub name) as token pairs; see `within`.

    Args:
        columns: which column of the data set stands for which of ours, as in ``{"prompt": "question"}``.
    """
    found = tokenised_pairs(dataset, encoder, columns=columns, reporter=reporter)
    return within(limit, found, name=dataset, reporter=reporter)


def load_conversations(
    dataset: str, encoder: Encoder, limit: Limit, *, reporter: Reporter
) -> tuple[Sequence[TokenPair], Counts]:
    """A data set for SFT as pairs without a rejected response; see `within`. Every answer counts as a row."""
    found = tokenised_conversations(dataset, encoder, reporter=reporter)
    return within(limit, found, name=dataset, reporter=reporter)


def within(limit: Limit, found: Tokenised, *, name: str, reporter: Reporter) -> tuple[KeptPairs, Counts]:
    """The pairs that a limit keeps, and what became of all rows; arguments as `apply_limit`.

    Raises:
        SepoError: no pair is left, or one is too long where that is an error.
    """
    pairs, counts = apply_limit(limit, found, name)
    reporter.say(f"{name}: {counts}")
    refuse_empty(counts, name)
    return pairs, counts


def apply_limit(limit: Limit, found: Tokenised, name: str) -> tuple[KeptPairs, Counts]:
    """The pairs that a limit keeps, if any, and what became of all rows.

    Args:
        name: of the data set, for messages.

    Raises:
        SepoError: a pair is too long where that is an error.
    """
    counts = Counts(read=found.read)
    for reason, dropped in found.dropped.items():
        counts.drop(reason, dropped.count, dropped.examples)
    places = _kept_places(limit, found.pairs, counts, name)
    counts.kept = len(places)
    counts.tokens = _tokens(found.pairs.lengths[places], limit.max_length)
    return KeptPairs(found.pairs, places, limit.max_length), counts


def refuse_empty(counts: Counts, name: str) -> None:
    """
    Raises:
        SepoError: no pair is left; the hint is by the reason that took most of the rows.
    """
    if not counts.kept:
        [(most, _)] = counts.dropped.most_common(1) or [("", 0)]
        too_short = most.startswith(_OF_LENGTH)
        hint = (
            "--max-length may be too low"
            if too_short
            else "see the reasons: the data or the chat template has to change"
        )
        raise SepoError(f"{name}: no pair is left: {counts}", hint=hint)


def refuse_dropped(counts: Counts, name: str) -> None:
    """
    Args:
        name: of the data set, for messages.

    Raises:
        SepoError: a row was dropped, for whatever reason.
    """
    if counts.dropped:
        reasons = [
            f"{count:,} {reason}" + (f" (first: {counts.examples[reason][0]})" if reason in counts.examples else "")
            for reason, count in counts.dropped.most_common()
        ]
        raise SepoError(
            f"{name}: {counts.dropped.total():,} of {counts.read:,} rows would be dropped: {', '.join(reasons)}",
            hint="repair or remove these rows (row 0 is the first), or leave out --strict",
        )


def refuse_recorded(counts: Any, name: str) -> None:
    """The same by the counts in the manifest of a finished run."""
    if isinstance(counts, dict) and isinstance(counts.get("dropped"), dict):
        refuse_dropped(Counts(read=counts.get("read", 0), dropped=Counter(counts["dropped"])), name)


def _kept_places(limit: Limit, table: TokenTable, counts: Counts, name: str) -> NDArray[np.int64]:
    """Where in the table the pairs stand that are kept; counts the others, and those that will be cut."""
    prompts, chosen, rejected = table.lengths.T
    keep = prompts + np.maximum(chosen, rejected) <= limit.max_length
    for place in np.flatnonzero(~keep):
        shortened = shorten(table[int(place)], limit, name)
        if isinstance(shortened, Dropped):
            counts.drop(shortened.reason, 1, [f"row {shortened.pair_id}"])
        else:
            counts.truncated += 1
            keep[place] = True
    return np.flatnonzero(keep)


def shorten(pair: TokenPair, limit: Limit, name: str) -> TokenPair | Dropped:
    """What becomes of a pair that is too long.

    Raises:
        SepoError: that is an error.
    """
    if limit.overlong == "error":
        raise SepoError(
            f"{name}: pair {pair.pair_id} has {longest(pair):,} tokens, more than max_length {limit.max_length:,}",
            hint="raise --max-length, or choose --overlong drop or --overlong truncate",
        )
    if limit.overlong == "truncate":
        return truncate(pair, limit.max_length)
    return Dropped(pair.pair_id, f"{_LONGER}{limit.max_length:,} tokens")


def _tokens(lengths: NDArray[np.int32], max_length: int) -> Counter[str]:
    """Tokens by side, the responses cut to the limit."""
    prompts, chosen, rejected = lengths.T
    room = max_length - prompts
    sides = {"prompt": prompts, "chosen": np.minimum(chosen, room), "rejected": np.minimum(rejected, room)}
    return Counter({side: int(tokens.sum(dtype=np.int64)) for side, tokens in sides.items()})
