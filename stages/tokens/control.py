"""The control tokens of a tokenizer, and every way in which a text can spell one.

A text that is tokenised spells a control token when it holds

- the content of a special token of `added_tokens_decoder` (with `lstrip` or `rstrip` its blanks come on top);
- a token that has a role (`eos_token`, ...) without being an added one, and so may be a word of the vocabulary;
- an added token that is not special, but that the chat template writes around its turns: fine-tunes add ChatML's so;
- something that the tokenizer's normaliser turns into an added token that is matched after normalising.
"""

import re
from typing import Any

from stages.types import Tokenizer


class ControlTokens:
    """Finds control tokens in texts: a user must not be able to end a turn."""

    def __init__(self, tokenizer: Tokenizer, own_text: str) -> None:
        """Args: own_text: what the chat template writes around its turns, "" without one."""
        added = list(tokenizer.added_tokens_decoder.values())
        written = {token.content for token in added if token.content in own_text and not token.content.isspace()}
        special = {token.content for token in added if token.special} | set(map(str, tokenizer.all_special_tokens))
        contents = special | written
        self._ids = {tokenizer.convert_tokens_to_ids(content): content for content in contents}
        self._special = special
        self._pattern = _any_of(contents)
        self._normalizer: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        late = {token.content for token in added if token.normalized and token.content in contents}
        self._normalized = _any_of(map(self._normalizer.normalize_str, late)) if self._normalizer and late else None

    def spelled_in(self, text: str) -> bool:
        """Whether the tokenizer could read a control token in the text."""
        if self._pattern.search(text):
            return True
        return self._normalized is not None and bool(self._normalized.search(self._normalizer.normalize_str(text)))

    def last(self, text: str) -> int:
        """Where the last control token of the text begins, or 0."""
        start = 0
        for match in self._pattern.finditer(text):
            start = match.start()
        return start

    def first(self, text: str, ids: list[int]) -> int | None:
        """The first of the text's `ids` that is a control token spelled there: a special one, or else any."""
        # An unknown character has a special id too (unk), but does not spell it.
        found = [id_ for id_ in ids if id_ in self._ids and self._ids[id_] in text]
        return next((id_ for id_ in found if self._ids[id_] in self._special), next(iter(found), None))


def _any_of(contents: Any) -> re.Pattern[str]:
    """A pattern for any of the contents; with none of them, one that matches nothing."""
    longest_first = sorted(filter(None, contents), key=lambda content: (-len(content), content))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
