"""Whether a tokenizer keeps what it reads: a tokenizer of another class than its file loses all blanks, say."""

from typing import Any, Final

from stages.errors import SepoError, borrowed

PROBE: Final = "Sepo reads 2 + 2 = 4,\n\tna\u00efve fa\u00e7ade."


def refuse_unfit(tokenizer: Any) -> None:
    """
    Raises:
        SepoError: the tokenizer fails on its first text, loses blanks, or spells out its special tokens.
    """
    back = _back(tokenizer)
    if back.strip() and len(back.split()) == 1:
        raise SepoError(
            f"the tokenizer loses all blanks: {PROBE!r} comes back as {back!r}",
            hint="its tokenizer_class does not fit its tokenizer.json; upgrade transformers, or name the right class",
        )
    if tokenizer.chat_template and getattr(tokenizer, "split_special_tokens", False):
        raise SepoError(
            "the tokenizer spells special tokens as ordinary text (split_special_tokens), so no turn would have an end",
            hint="set split_special_tokens to false in tokenizer_config.json",
        )


def losses(tokenizer: Any) -> list[str]:
    """What a user should know of what the tokenizer does to text, one sentence each."""
    back = _back(tokenizer)
    if back.strip() == PROBE:
        return []
    return [f"the tokenizer does not keep every text as it is: {PROBE!r} comes back as {back!r}"]


def _back(tokenizer: Any) -> str:
    with borrowed("the tokenizer fails on its first text", "give the tokenizer files that belong together"):
        ids = tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
