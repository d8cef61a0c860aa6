"""Rows to pairs. The layout is recognised from the columns of a row; there is no flag for it.

Preference data, for `read_pairs`: the layouts of `stages.data.published`, and

- prompt, chosen, rejected as text: the prompt is one user turn, or the turns of a dialogue written like HH-RLHF;
- prompt, and answers as turns, which answer it or are whole conversations that hold it (a system turn may come first),
  such as ``HuggingFaceH4/ultrafeedback_binarized``;
- chosen, rejected as turns: whole conversations, the prompt is their common beginning;
- chosen, rejected as dialogues in text: the same, written like HH-RLHF (see `stages.data.conversations`).

A row that fits two layouts is refused, unless the columns of one of them are among the other's; then the one with more
columns is meant. So is a row whose layout is not that of the first row.

Whatever the layout, the last assistant turn is the answer, what precedes it must be the same for both, and turns go
system (at most once, first), user, assistant, user, assistant ... A text in a ``system`` column is a system turn.
The columns ``tools`` and ``chat_template_kwargs`` go to the chat template (`stages.data.template_arguments`). Where a
row gives both answers a grade (`GRADES`), a tie, or a higher one for the rejected answer, is remarked upon: the pair is
kept, for the grade need not be what the answers were chosen by.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from stages.data.conversations import (
    MORE_DIFFERS,
    OTHER_PROMPT,
    SAME,
    UnusableError,
    check_order,
    conversation,
    is_dialogue,
    split,
    turns_of,
    unread_keys,
    with_system,
)
from stages.data.published import PUBLISHED, DataLayout, Sides, as_number
from stages.data.read import Row, read_rows
from stages.data.template_arguments import COLUMNS as TEMPLATE_COLUMNS
from stages.data.template_arguments import template_arguments
from stages.data.text_files import kind
from stages.errors import SepoError
from stages.types import Dropped, Pair

_NAMING: Final = "; name other columns with --columns prompt=...,chosen=...,rejected=..."
_PAIR_HINT: Final = f"each row needs prompt, chosen and rejected, or chosen and rejected as whole dialogues{_NAMING}"
_CONVERSATION_HINT: Final = "each row needs messages, or prompt and completion, or the columns of preference data"
_MIXED_HINT: Final = "give each layout a file of its own"
_OPTIONAL: Final = {"prompt", "messages", "completion", "system", "input", "history", *TEMPLATE_COLUMNS}
_TURNS_AS_TEXT: Final = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")


GRADES: Final = tuple(
    (order.format(grade, "chosen"), order.format(grade, "rejected"))
    for grade in ("score", "rating", "reward")
    for order in ("{0}_{1}", "{1}_{0}", "{0}-{1}", "{1}-{0}")
)
"""higher is better in all data sets that have them, such as UltraFeedback's and Argilla's"""
_GRADE_COLUMNS: Final = frozenset(itertools.chain(*GRADES))


class Look(NamedTuple):
    """What the columns of a data set were taken for, going by its first row."""

    layout: str
    columns: dict[str, str]
    """what a column is read as, and its own name"""
    kinds: dict[str, str]
    """what a column is read as, and what it holds in that row: ``text``, ``a list``"""
    ignored: list[str]
    """columns that nothing reads, and keys of turns, such as ``messages.id``"""


def read_pairs(
    dataset: str,
    columns: Mapping[str, str] | None = None,
    *,
    on_layout: Callable[[str], None] | None = None,
    on_remark: Callable[[str, int], None] | None = None,
) -> Iterator[Pair | Dropped]:
    """Every row of a preference data set (see `stages.data.sources`), usable or not, in its order.

    What cannot be read as rows, and columns of no known layout, are a `SepoError` that names file and row.

    Args:
        columns: which column of the data set stands for which of ours, as in ``{"prompt": "question"}``; the others
            keep their names.
        on_layout: is told the layout of the first row in words before anything is made of it.
        on_remark: is told what is odd about a pair that is kept, and its number.
    """
    for row, layout in _recognised_rows(dataset, columns, _PAIR_HINT, on_layout):
        try:
            pair: Pair | Dropped = _pair(row, layout)
        except UnusableError as reason:
            pair = Dropped(row.number, str(reason))
        else:
            remark = _remark(row)
            if on_remark and remark:
                on_remark(remark, row.number)
        yield pair


def read_conversations(
    dataset: str, columns: Mapping[str, str] | None = None, *, on_layout: Callable[[str], None] | None = None
) -> Iterator[Pair | Dropped]:
    """Prompts and answers for supervised fine-tuning, as pairs whose `rejected` is empty; arguments as `read_pairs`.

    A row holds, in this order of precedence, preference data (whose other side is not looked at), ``messages``, or
    ``prompt`` and ``completion``. Of ``messages`` *every* assistant turn becomes an answer to what precedes it, so a
    row can yield several items of one `pair_id`; of the others only the last turn is the answer.
    """
    for row, layout in _recognised_rows(dataset, columns, _CONVERSATION_HINT, on_layout):
        yield from _answers(row, layout)


def look(dataset: str, columns: Mapping[str, str] | None = None) -> Look:
    """What the columns of a preference data set's first row are taken for."""
    row = next(_renamed(dataset, columns))
    _recognised(row, columns, _PAIR_HINT)
    reads = _reads(row.columns, columns)
    read = {name: kind(value) for name, value in row.columns.items() if name in reads}
    names = {ours: (columns or {}).get(ours, ours) for ours in read}
    ignored = [str(name) for name in row.columns if name not in reads]
    ignored += [f"{names[ours]}.{key}" for ours in read for key in unread_keys(row.columns[ours])]
    return Look(describe_layout(row.columns), names, read, ignored)


def describe_layout(columns: Mapping[str, Any]) -> str:
    """The layout of a row in words, such as ``whole conversations, prompt is their common beginning``."""
    fits = _fitting(columns.keys(), frozenset())
    if len(fits) > 1:
        return f"two layouts at once, {' and '.join(layout.name for layout in fits)}"
    words = fits[0].name if fits and fits[0] in PUBLISHED else _describe_general(columns)
    more = [name for name in ("system", *TEMPLATE_COLUMNS) if name in columns]
    return f"{words}, with a {' and a '.join(more)} column" if more else words


def _describe_general(columns: Mapping[str, Any]) -> str:
    match columns.get("chosen"):
        case str(chosen) if is_dialogue(chosen):
            return "dialogues as text (HH-RLHF), prompt is their common beginning"
        case str() if is_dialogue(columns.get("prompt")):
            return "prompt as a dialogue (HH-RLHF), answers as text"
        case str() if "prompt" in columns:
            return "prompt and answers as text"
        case list() if columns.get("prompt") is None:
            return "whole conversations, prompt is their common beginning"
        case [{"role": "assistant"}, *_]:
            return "prompt, answers as turns"
        case list():
            return "prompt, answers in whole conversations"
    if "messages" in columns:
        return "conversations, every assistant turn is an answer"
    return "prompt and completion" if "completion" in columns else "no known layout"


def _general(row: Row) -> Sides:
    return conversation(row, "chosen", _PAIR_HINT), conversation(row, "rejected", _PAIR_HINT)


_GENERAL: Final = (
    DataLayout("prompt, chosen, rejected", frozenset({"prompt", "chosen", "rejected"}), _general),
    DataLayout("chosen, rejected", frozenset({"chosen", "rejected"}), _general),
)

_ANSWERS: Final = ("chosen", "messages", "completion")
"""columns that hold the answer of a conversation, the first that is there"""
_CONVERSATIONS: Final = {"prompt", "messages", "completion", "chosen", "rejected"}


def _fitting(columns: Iterable[str], named: frozenset[str]) -> list[DataLayout]:
    """The layouts whose columns are all there, without those that are part of another one.

    A layout made of only such columns as the user `named` is the one that is meant.
    """
    present = frozenset(columns)
    fits = [layout for layout in (*PUBLISHED, *_GENERAL) if layout.needs <= present]
    meant = [layout for layout in fits if layout.needs <= named]
    return [layout for layout in meant or fits if not any(layout.needs < other.needs for other in meant or fits)]


def _reads(present: Iterable[str], columns: Mapping[str, str] | None) -> frozenset[str]:
    """Which of the columns of a row, named as ours, are read."""
    names = frozenset(present)
    fits = _fitting(names, frozenset(columns or ()))
    of_layout = fits[0].needs | fits[0].takes if fits else _CONVERSATIONS
    return names & {*of_layout, *_GRADE_COLUMNS, "system", *TEMPLATE_COLUMNS}


def _recognised(row: Row, columns: Mapping[str, str] | None, hint: str) -> DataLayout | None:
    """The row's layout; None if it is not of preference data, but might be of conversations."""
    fits = _fitting(row.columns, frozenset(columns or ()))
    if len(fits) > 1:
        names = " and ".join(layout.name for layout in fits)
        all_named = ",".join(f"{name}={name}" for name in sorted(fits[-1].needs))
        raise SepoError(
            f"{row.where}: two layouts at once, {names}", hint=f"say which by naming its columns: --columns {all_named}"
        )
    if fits:
        return fits[0]
    if not ({"chosen", "rejected"} if hint == _PAIR_HINT else set(_ANSWERS)) & row.columns.keys():
        raise SepoError(f"{row.where}: no known layout in the columns {_listed(row)}", hint=hint)
    return None


def _recognised_rows(
    dataset: str, columns: Mapping[str, str] | None, hint: str, on_layout: Callable[[str], None] | None
) -> Iterator[tuple[Row, DataLayout | None]]:
    """Rows with their layouts, all of which have to be that of the first row."""
    first = ""
    for row in _renamed(dataset, columns):
        layout = _recognised(row, columns, hint)
        if not first and on_layout is not None:
            on_layout(describe_layout(row.columns))
        yield row, layout
        # Looked at behind whoever reads the row: a fault of its own is told more exactly.
        shape = _shape(row, layout)
        if not first:
            _refuse_turns_as_text(row)
        elif shape != first:
            raise SepoError(
                f"{row.where}: mixed layouts, this row is {shape}, the first row is {first}", hint=_MIXED_HINT
            )
        first = shape


def _shape(row: Row, layout: DataLayout | None) -> str:
    """What must not change from row to row. How a prompt is held may decide what a text means; an answer's may not."""
    if layout in PUBLISHED:
        return layout.name
    column = _answer_column(row)
    answer = row.columns.get(column)
    if is_dialogue(row.columns.get("prompt", answer)):
        shape = "as dialogues"
    else:
        shape = "as turns" if isinstance(answer, list) else "as text"
    return f"{layout.name if layout else column} {shape}"


def _refuse_turns_as_text(row: Row) -> None:
    """A list that a CSV file, or pandas, made a text of would be trained on with its brackets."""
    for column in ("prompt", "chosen", "rejected", "completion"):
        value = row.columns.get(column)
        if isinstance(value, str) and _TURNS_AS_TEXT.match(value):
            raise SepoError(
                f'{row.where}: "{column}" is a list of turns written as text',
                hint="store turns as lists, in JSON Lines or Parquet",
            )


def _renamed(dataset: str, columns: Mapping[str, str] | None) -> Iterator[Row]:
    """The rows, their columns named as ours; a column that bears one of these names without being meant is left out."""
    known = _OPTIONAL.union(*(layout.needs for layout in (*PUBLISHED, *_GENERAL)))
    unknown = next((ours for ours in columns or () if ours not in known), None)
    if unknown is not None:
        raise SepoError(
            f"columns: nothing reads a column called {unknown}", hint=f"name one of {', '.join(sorted(known))}"
        )
    ours_of = {theirs: ours for ours, theirs in (columns or {}).items()}

    def wanted(names: list[str]) -> list[str]:
        reads = _reads((ours_of.get(name, name) for name in names), columns)
        return [name for name in names if ours_of.get(name, name) in reads]

    for row in read_rows(dataset, wanted):
        if not columns:
            yield row
            continue
        missing = next((theirs for theirs in columns.values() if theirs not in row.columns), None)
        if missing is not None:
            raise SepoError(f'{row.where}: no column "{missing}"', hint=f"the columns are {_listed(row)}")
        others = {name: value for name, value in row.columns.items() if name not in columns.values()}
        yield row._replace(columns=others | {ours: row.columns[theirs] for ours, theirs in columns.items()})


def _listed(row: Row) -> str:
    names = [str(name)[:40] for name in row.columns]
    return ", ".join(names[:20]) + (" ..." if len(names) > 20 else "") if names else "(none)"


def _pair(row: Row, layout: DataLayout | None) -> Pair:
    arguments = template_arguments(row)
    sides = (layout.read if layout else _general)(row)
    (prompt, chosen), (other_prompt, rejected) = (split(with_system(row, turns)) for turns in sides)
    if prompt != other_prompt:
        shared = itertools.takewhile(lambda turns: turns[0] == turns[1], zip(prompt, other_prompt, strict=False))
        share_a_question = any(turn["role"] == "user" for turn, _ in shared)
        raise UnusableError(MORE_DIFFERS if share_a_question else OTHER_PROMPT)
    if chosen == rejected:
        raise UnusableError(SAME)
    return Pair(row.number, prompt, chosen, rejected, arguments)


def _remark(row: Row) -> str | None:
    """What is odd about the grades of a row's answers."""
    for better, worse in GRADES:
        chosen, rejected = (as_number(row.columns.get(name)) for name in (better, worse))
        if chosen is not None and rejected is not None and chosen <= rejected:
            return f"{better} equals {worse}" if chosen == rejected else f"{better} is below {worse}"
    return None


def _answers(row: Row, layout: DataLayout | None) -> Iterator[Pair | Dropped]:
    column = _answer_column(row)
    try:
        arguments = template_arguments(row)
        if layout in PUBLISHED:
            turns = layout.read(row)[0]
        elif column == "messages":
            turns = turns_of(row.columns[column], column, row.where, _CONVERSATION_HINT)
        else:
            turns = conversation(row, column, _CONVERSATION_HINT)
        turns = with_system(row, turns)
        check_order(turns)
    except UnusableError as reason:
        yield Dropped(row.number, str(reason))
        return
    for end, turn in enumerate(turns, start=1):
        if end == len(turns) or (layout is None and column == "messages" and turn["role"] == "assistant"):
            try:
                yield Pair(row.number, *split(turns[:end]), rejected="", template_arguments=arguments)
            except UnusableError as reason:
                yield Dropped(row.number, str(reason))


def _answer_column(row: Row) -> str:
    return next((name for name in _ANSWERS if name in row.columns), "messages")
