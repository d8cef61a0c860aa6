"""A data set as token pairs, with every row that was left out counted by reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.currency import Dropped, Pair, TokenPair
from stages.data.encode import Encoder
from stages.data.layouts import read_conversations, read_pairs
from stages.errors import SepoError
from stages.reporting import Reporter


@dataclass
class Counts:
    """What became of the rows of a data set."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    """prompt, chosen and rejected tokens of what was kept"""

    def as_json(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "tokens": dict(self.tokens),
        }

    def __str__(self) -> str:
        """``1,500 rows = 1,478 kept + 22 dropped (12 empty response, 10 longer than max_length)``."""
        text = f"{self.read:,} rows = {self.kept:,} kept + {self.dropped.total():,} dropped"
        reasons = [f"{count:,} {reason}" for reason, count in self.dropped.most_common()]
        return text + (f" ({', '.join(reasons)})" if reasons else "")


def load_pairs(
    dataset: str, encoder: Encoder, *, columns: Mapping[str, str], max_length: int, reporter: Reporter
) -> tuple[list[TokenPair], Counts]:
    """A preference data set (files or a hub name) as token pairs; see `tokenise`.

    Args:
        columns: which column of the data set stands for which of ours, as in ``{"prompt": "question"}``.
    """
    pairs = read_pairs(dataset, columns, on_layout=_layout_sayer(dataset, reporter))
    return tokenise(pairs, encoder, max_length=max_length, name=dataset, reporter=reporter)


def load_conversations(
    dataset: str, encoder: Encoder, *, max_length: int, reporter: Reporter
) -> tuple[list[TokenPair], Counts]:
    """A data set for SFT as pairs without a rejected response; see `tokenise`. Every answer counts as a row."""
    pairs = read_conversations(dataset, on_layout=_layout_sayer(dataset, reporter))
    return tokenise(pairs, encoder, max_length=max_length, name=dataset, reporter=reporter)


def _layout_sayer(dataset: str, reporter: Reporter) -> Callable[[str], None]:
    """Says what the columns of the first row were taken for: a wrong guess has to be seen."""
    return lambda words: reporter.say(f"{dataset}: {words}")


def tokenise(
    pairs: Iterable[Pair | Dropped], encoder: Encoder, *, max_length: int, name: str, reporter: Reporter
) -> tuple[list[TokenPair], Counts]:
    """Encode every pair, drop the unusable and the too long ones, and count.

    Args:
        max_length: most tokens of prompt and longer response together; longer pairs are dropped.
        name: of the data set, for messages.

    Raises:
        SepoError: no pair is left.
    """
    counts = Counts()
    kept: list[TokenPair] = []
    with reporter.task(f"read {name}", 0, "rows") as task:
        for pair in pairs:
            counts.read += 1
            encoded = pair if isinstance(pair, Dropped) else _bounded(encoder.encode(pair), max_length)
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


def _bounded(pair: TokenPair | Dropped, max_length: int) -> TokenPair | Dropped:
    if isinstance(pair, Dropped):
        return pair
    length = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
    return pair if length <= max_length else Dropped(pair.pair_id, f"longer than {max_length:,} tokens")


def _count_tokens(counts: Counts, pair: TokenPair) -> None:
    for side in ("prompt", "chosen", "rejected"):
        counts.tokens[side] += len(getattr(pair, f"{side}_ids"))
