"""A data set as token pairs, with every row that was left out counted by reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stages.currency import Dropped, Pair, TokenPair, longest
from stages.data.encode import Encoder, truncate
from stages.data.layouts import read_conversations, read_pairs
from stages.errors import SepoError
from stages.reporting import Reporter


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


class Limit(NamedTuple):
    """How long a pair may be, and what becomes of a longer one."""

    max_length: int
    """most tokens of prompt and longer response together"""
    overlong: str = "drop"
    """one of `stages.configs.OVERLONG`: drop the pair, cut the ends of its responses, or refuse the data set"""


def load_pairs(
    dataset: str, encoder: Encoder, limit: Limit, *, columns: Mapping[str, str], reporter: Reporter
) -> tuple[list[TokenPair], Counts]:
    """A preference data set (files or a hub name) as token pairs; see `tokenise`.

    Args:
        columns: which column of the data set stands for which of ours, as in ``{"prompt": "question"}``.
    """
    pairs = read_pairs(dataset, columns, on_layout=_layout_sayer(dataset, reporter))
    return tokenise(pairs, encoder, limit, name=dataset, reporter=reporter)


def load_conversations(
    dataset: str, encoder: Encoder, limit: Limit, *, reporter: Reporter
) -> tuple[list[TokenPair], Counts]:
    """A data set for SFT as pairs without a rejected response; see `tokenise`. Every answer counts as a row."""
    pairs = read_conversations(dataset, on_layout=_layout_sayer(dataset, reporter))
    return tokenise(pairs, encoder, limit, name=dataset, reporter=reporter)


def _layout_sayer(dataset: str, reporter: Reporter) -> Callable[[str], None]:
    """Says what the columns of the first row were taken for: a wrong guess has to be seen."""
    return lambda words: reporter.say(f"{dataset}: {words}")


def tokenise(
    pairs: Iterable[Pair | Dropped], encoder: Encoder, limit: Limit, *, name: str, reporter: Reporter
) -> tuple[list[TokenPair], Counts]:
    """Encode every pair, drop the unusable ones, deal with the too long ones, and count.

    Args:
        name: of the data set, for messages.

    Raises:
        SepoError: no pair is left, or one is too long where that is an error.
    """
    counts = Counts()
    kept: list[TokenPair] = []
    with reporter.task(f"read {name}", 0, "rows") as task:
        for pair in pairs:
            counts.read += 1
            encoded = pair if isinstance(pair, Dropped) else encoder.encode(pair)
            if isinstance(encoded, TokenPair) and longest(encoded) > limit.max_length:
                encoded = _shortened(encoded, limit, name)
                counts.truncated += isinstance(encoded, TokenPair)
            if isinstance(encoded, Dropped):
                counts.dropped[encoded.reason] += 1
            else:
                kept.append(encoded)
                _count_tokens(counts, encoded)
            task.advance()
    counts.kept = len(kept)
    reporter.say(f"{name}: {counts}")
    if not kept:
        raise SepoError(f"{name}: no pair is left: {counts}", hint="see the reasons; --max-length may be too low")
    return kept, counts


def _shortened(pair: TokenPair, limit: Limit, name: str) -> TokenPair | Dropped:
    """What becomes of a pair that is too long."""
    if limit.overlong == "error":
        raise SepoError(
            f"{name}: pair {pair.pair_id} has {longest(pair):,} tokens, more than max_length {limit.max_length:,}",
            hint="raise --max-length, or choose --overlong drop or --overlong truncate",
        )
    if limit.overlong == "truncate":
        return truncate(pair, limit.max_length)
    return Dropped(pair.pair_id, f"longer than {limit.max_length:,} tokens")


def _count_tokens(counts: Counts, pair: TokenPair) -> None:
    for side in ("prompt", "chosen", "rejected"):
        counts.tokens[side] += len(getattr(pair, f"{side}_ids"))
