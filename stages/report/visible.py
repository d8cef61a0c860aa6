"""Pairs and token ids made visible: as turns, and as tokens with their borders.

Among tokens a blank is ``·``, a newline ``⏎`` and a tab ``⇥``; what cannot be printed is escaped. A control token
stands in ``«»``. Several tokens that make one character together show ``\ufffd``, and the last of them the character.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from stages.data.template_arguments import TOOLS
from stages.reporting import Table, printable
from stages.types import Ids, Pair, Tokenizer, TokenPair

BORDER: Final = "│"
TOKENS_SHOWN: Final = (100, 30)
"""how many from the beginning and from the end of a longer text"""
LETTERS_SHOWN: Final = (400, 150)
TURNS_SHOWN: Final = (3, 3)

UNFINISHED: Final = "\ufffd"
"""what a decoder writes for bytes that are no character, or not yet"""
_LONGEST: Final = 16
"""tokens after which bytes are taken for what will never become a character"""
_SIGNS: Final = {" ": "·", "\n": "⏎", "\t": "⇥"}


def pair_table(pair: Pair) -> Table:
    """A pair as it was understood: the turns of its prompt, and both answers."""
    turns = [[turn["role"], shortened(turn["content"])] for turn in pair.prompt]
    head, tail = TURNS_SHOWN
    if len(turns) > head + tail:
        left_out = ["...", f"{len(turns) - head - tail:,} turns that are not shown"]
        turns = [*turns[:head], left_out, *turns[-tail:]]
    answers = [["= chosen", shortened(pair.chosen)], ["= rejected", shortened(pair.rejected)]]
    title = f"Row {pair.pair_id:,} as it was understood (⏎ is a newline)"
    return Table(title, ["part", "text"], [*_argument_rows(pair), *turns, *answers], texts=True)


def token_table(pair: TokenPair, tokenizer: Tokenizer) -> Table:
    """A pair as the tokens that a model is given."""
    rows = [
        [f"{side} {len(ids):,}", "".join(token + BORDER for token in token_texts(ids, tokenizer))]
        for side, ids in (("prompt", pair.prompt_ids), ("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids))
    ]
    title = f"Row {pair.pair_id:,} as tokens (· blank, ⏎ newline, {BORDER} end of a token, «control token»)"
    return Table(title, ["part", "tokens"], rows, texts=True)


def shortened(text: str) -> str:
    """A text on one line; the middle of a long one is left out."""
    head, tail = LETTERS_SHOWN
    if len(text) > head + tail:
        text = f"{text[:head]} ... {len(text) - head - tail:,} characters ... {text[-tail:]}"
    return printable(text.replace("\n", "⏎"))


def token_texts(ids: Ids, tokenizer: Tokenizer) -> list[str]:
    """Token ids as texts, each with its own part of the whole; the middle of many is left out."""
    head, tail = TOKENS_SHOWN
    if len(ids) <= head + tail:
        return _texts(ids.tolist(), tokenizer)
    left_out = f" ... {len(ids) - head - tail:,} tokens ... "
    return [*_texts(ids[:head].tolist(), tokenizer), left_out, *_texts(ids[-tail:].tolist(), tokenizer)]


def visible(text: str) -> str:
    """A text of which every character can be seen."""
    return "".join(_SIGNS.get(letter, printable(letter)) for letter in text)


def _texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    # An added token that is a blank is text (GPT-NeoX has some).
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if not token.content.isspace()}
    special = {id_: tokenizer.convert_ids_to_tokens(id_) for id_ in added | set(tokenizer.all_special_ids)}
    return visible_parts(ids, partial(tokenizer.decode, clean_up_tokenization_spaces=False), special)


def text_parts(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """Each token's part of the text of all; alone, some would lose a blank or be no character.

    Of several tokens that make one character together the last one has it, and the others have nothing. A token is
    decoded behind the one before it, so that time rises with the number of tokens and not with its square.
    """
    parts, before = [], ""
    first = begin = 0
    """of the tokens decoded, and of those behind the last whole character"""
    for end in range(1, len(ids) + 1):
        text = decode([*ids[first:end]])
        finished = text.rstrip(UNFINISHED)
        parts.append(finished[len(before) :])
        # A byte that begins a character can make all bytes before it unreadable, until the character is whole.
        before = max(before, finished, key=len)
        if text == finished or end - begin >= _LONGEST:
            first, begin = max(begin, end - _LONGEST), end
            before = decode([*ids[first:end]])
    return parts


def readable(text: str) -> str:
    """As `visible`, for prose: a single blank is a blank, and a line ends where it ends."""
    if text.isprintable() and "  " not in text:
        return text
    lines = (re.sub(" {2,}", lambda blanks: visible(blanks[0]), line) for line in text.split("\n"))
    return "⏎\n".join("".join(" " if each == " " else visible(each) for each in line) for line in lines)


def visible_parts(
    ids: Sequence[int],
    decode: Callable[[list[int]], str],
    control: Mapping[int, str],
    shown: Callable[[str], str] = visible,
) -> list[str]:
    """Each token's part of the text of all, visibly.

    Args:
        control: id -> name of the control tokens.
        shown: `visible` or `readable`.
    """
    parts = zip(ids, text_parts(ids, decode), strict=True)
    return [f"«{visible(control[id_])}»" if id_ in control else shown(part) or UNFINISHED for id_, part in parts]


def _argument_rows(pair: Pair) -> list[list[str]]:
    """What the chat template is given beside the turns."""
    named = [tool.get("function", tool) for tool in pair.template_arguments.get(TOOLS, [])]
    names = ", ".join(str(tool.get("name", "?")) if isinstance(tool, dict) else "?" for tool in named)
    others = ", ".join(f"{name}={value!r}" for name, value in pair.template_arguments.items() if name != TOOLS)
    return [[label, shortened(text)] for label, text in (("(tools)", names), ("(template)", others)) if text]
