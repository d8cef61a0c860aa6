"""Whether ids spell the text they were made of: a tokenizer of another class than its file loses all blanks, say."""

import re
import unicodedata
from typing import Final

from stages.errors import SepoError, borrowed
from stages.types import Tokenizer

PROBE: Final = "Sepo reads 2 + 2 = 4,\n\tna\u00efve fa\u00e7ade."
EXCERPT: Final = 60
OTHER_BLANKS: Final = "the tokenizer changes the blanks of the text: repair the tokenizer, or leave the row out"
OTHER_LETTERS: Final = "the tokenizer changes the letters of the text: repair the tokenizer, or leave the row out"


class RoundTrip:
    """Compares what ids spell with the text that they were made of.

    A tokenizer that does not even keep a plain sentence is made so (lower case, say): what it changes is counted, and
    no damage. Nor is what does not change a text's meaning: how an accent is written, and the blanks beside added
    tokens, which some of them take with them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        with borrowed("the tokenizer fails on its first text", "give the tokenizer files that belong together"):
            back = self._decode(tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"])
        if back.strip() and len(back.split()) == 1:
            raise SepoError(
                f"the tokenizer loses all blanks: {PROBE!r} comes back as {back!r}",
                hint="its tokenizer_class does not fit its tokenizer.json; upgrade transformers, or name another",
            )
        if tokenizer.chat_template and getattr(tokenizer, "split_special_tokens", False):
            raise SepoError(
                "the tokenizer spells special tokens as ordinary text (split_special_tokens), so no turn has an end",
                hint="set split_special_tokens to false in tokenizer_config.json",
            )
        self._keeps_text = back.strip() == PROBE
        self.changed = 0
        """texts that a tokenizer which is made so changed"""
        self.example = ""
        """the first of them"""
        added = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
        tokens = "|".join(re.escape(text) for text in sorted(added, key=len, reverse=True) if text.strip())
        self._beside_tokens = re.compile(rf"\s*({tokens})\s*" if tokens else r"()(?!)")

    def damage(self, ids: list[int], text: str, after: str = "") -> str | None:
        """What differs between the ids and their text, without which of `after` at its end it is as good; or None."""
        back, least = self._decode(ids), text.removesuffix(after)
        if text.startswith(back) and back.startswith(least):
            return None
        spelled, whole, least = map(self._bare, (back, text, least))
        if whole.startswith(spelled) and spelled.startswith(least):
            return None
        if not self._keeps_text:
            self.example = self.example or f"{_excerpt(text)} comes back as {_excerpt(back)}"
            self.changed += 1
            return None
        spelled, whole, least = ("".join(each.split()) for each in (spelled, whole, least))
        return OTHER_BLANKS if whole.startswith(spelled) and spelled.startswith(least) else OTHER_LETTERS

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _bare(self, text: str) -> str:
        return unicodedata.normalize("NFC", self._beside_tokens.sub(r"\1", text).strip())


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= EXCERPT else text[:EXCERPT] + "\u2026")
