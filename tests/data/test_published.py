"""One hand-written row of every published layout must come out as the same pair, and no row may be mistaken."""

import csv
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.layouts import describe_layout, read_conversations, read_pairs
from stages.data.published import PUBLISHED
from stages.errors import SepoError
from stages.types import Dropped, Pair
from tests.conftest import write_lines
from tests.data.turns import bot, system, user

HINT = "compare with the published columns; other columns are named by --columns prompt=...,chosen=...,rejected=..."
MIXED_HINT = "give each layout a file of its own"


def said(speaker, text):
    return {"from": speaker, "value": text}


def pairs_of(tmp_path, *rows, columns=None):
    return list(read_pairs(str(write_lines(tmp_path / "pairs.jsonl", rows)), columns))


def error_of(tmp_path, *rows, columns=None, read=read_pairs):
    with pytest.raises(SepoError) as caught:
        list(read(str(write_lines(tmp_path / "pairs.jsonl", rows)), columns))
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value.message.removeprefix(f"{tmp_path}/pairs.jsonl:"), caught.value.hint


SHORT = [user("why?")]
LONG = [user("hi"), bot("hello"), user("why?")]
ALPACA = {"instruction": "why?", "input": "", "chosen": "so", "rejected": "no"}
SHAREGPT = {
    "conversations": [said("human", "hi"), said("gpt", "hello"), said("human", "why?")],
    "chosen": said("gpt", "so"),
    "rejected": said("gpt", "no"),
}
SWIFT = {"messages": [*LONG, bot("so")], "rejected_response": "no"}
SWIFT_MESSAGES = {"messages": [*LONG, bot("so")], "rejected_messages": [*LONG, bot("no")]}
NEMO = {
    "context": LONG,
    "completions": [{"rank": 1, "completion": [bot("no")]}, {"rank": 0, "completion": [bot("so")]}],
    "task_name": "math",
}
LAYOUTS = {
    "alpaca": (SHORT, "LLaMA-Factory alpaca: instruction, chosen, rejected", ALPACA),
    "alpaca without input": (SHORT, "LLaMA-Factory alpaca: instruction, chosen, rejected", {"instruction": "why?", "chosen": "so", "rejected": "no"}),
    "alpaca with all": (
        [system("be kind"), user("hi"), bot("hello"), user("why?\nthe sky")],
        "LLaMA-Factory alpaca: instruction, chosen, rejected, with a system column",
        ALPACA | {"input": "the sky", "system": "be kind", "history": [["hi", "hello"]]},
    ),
    "alpaca with nulls": (SHORT, "LLaMA-Factory alpaca: instruction, chosen, rejected, with a system column", ALPACA | {"input": None, "system": None, "history": None}),
    "sharegpt": (LONG, "LLaMA-Factory sharegpt: conversations, chosen, rejected", SHAREGPT),
    "sharegpt with a system column": ([system("be kind"), *LONG], "LLaMA-Factory sharegpt: conversations, chosen, rejected, with a system column", SHAREGPT | {"system": "be kind"}),
    "sharegpt with a system turn": ([system("be kind"), *SHORT], "LLaMA-Factory sharegpt: conversations, chosen, rejected", SHAREGPT | {"conversations": [said("system", "be kind"), said("human", "why?")]}),
    "swift": (LONG, "ms-swift: messages, rejected_response", SWIFT),
    "swift with messages": (LONG, "ms-swift: messages, rejected_messages", SWIFT_MESSAGES),
    "nemo": (LONG, "NeMo: context, completions", NEMO),
    "nemo, three": (LONG, "NeMo: context, completions", NEMO | {"completions": [{"rank": rank, "completion": [bot(text)]} for rank, text in [(2, "meh"), (3, "no"), (1, "so"), (3, "no!"), (1, "so!")]]}),
    "text with a system column": ([system("be kind"), *SHORT], "prompt and answers as text, with a system column", {"prompt": "why?", "chosen": "so", "rejected": "no", "system": "be kind"}),
    "turns with the same system twice": (
        [system("be kind"), *SHORT],
        "whole conversations, prompt is their common beginning, with a system column",
        {"chosen": [system("be kind"), *SHORT, bot("so")], "rejected": [*SHORT, bot("no")], "system": "be kind"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_pair_in_every_layout(tmp_path, layout):
    prompt, words, row = LAYOUTS[layout]
    assert describe_layout(row) == words
    assert pairs_of(tmp_path, row) == [Pair(0, prompt, "so", "no")]
    told = []
    assert list(read_conversations(str(tmp_path / "pairs.jsonl"), on_layout=told.append)) == [Pair(0, prompt, "so", "")]
    assert told == [words]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert list(read_pairs(str(tmp_path / "a.parquet"))) == [Pair(0, prompt, "so", "no")]


def test_every_published_layout_has_a_row_here(tmp_path):
    described = {words.removesuffix(", with a system column") for _, words, _ in LAYOUTS.values()}
    assert {layout.name for layout in PUBLISHED} <= described


def test_a_flat_layout_in_csv(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ALPACA)
        writer.writeheader()
        writer.writerow(ALPACA)
    assert list(read_pairs(str(tmp_path / "a.csv"))) == [Pair(0, SHORT, "so", "no")]


NAMES = {
    "LLaMA-Factory alpaca": ALPACA, "LLaMA-Factory sharegpt": SHAREGPT, "ms-swift": SWIFT, "NeMo": NEMO,
}  # fmt: skip


@pytest.mark.parametrize(("first", "second"), itertools.combinations(NAMES, 2))
def test_a_row_of_two_layouts_is_refused_whichever_they_are(tmp_path, first, second):
    row = NAMES[second] | NAMES[first]
    message, hint = error_of(tmp_path, row)
    assert message.startswith("1: two layouts at once, ")
    assert f"{first}: " in message
    assert f"{second}: " in message
    assert hint.startswith("say which by naming its columns: --columns ")
    assert describe_layout(row) == message.removeprefix("1: ")
    assert error_of(tmp_path, row, read=read_conversations) == (message, hint)


def test_the_columns_that_are_named_decide_between_two_layouts(tmp_path):
    row = ALPACA | {"instruction": "other", "prompt": "why?"}
    message, hint = error_of(tmp_path, row)
    assert (
        message
        == "1: two layouts at once, LLaMA-Factory alpaca: instruction, chosen, rejected and prompt, chosen, rejected"
    )
    assert hint == "say which by naming its columns: --columns chosen=chosen,prompt=prompt,rejected=rejected"
    named = {name: name for name in ("prompt", "chosen", "rejected")}
    assert pairs_of(tmp_path, row, columns=named) == [Pair(0, SHORT, "so", "no")]
    named = {name: name for name in ("instruction", "chosen", "rejected")}
    assert pairs_of(tmp_path, row, columns=named) == [Pair(0, [user("other")], "so", "no")]


UNUSABLE = [
    ("tie", NEMO | {"completions": [{"rank": 1, "completion": [bot("so")]}, {"rank": 1, "completion": [bot("no")]}]}),
    ("fewer than two answers", NEMO | {"completions": NEMO["completions"][:1]}),
    ("fewer than two answers", NEMO | {"completions": []}),
    ("empty prompt", NEMO | {"context": []}),
    ("prompts differ", SWIFT_MESSAGES | {"rejected_messages": [user("how?"), bot("no")]}),
    ("no assistant turn at the end", SWIFT | {"messages": LONG}),
    ("no assistant turn at the end", SHAREGPT | {"chosen": said("human", "so")}),
    ("roles out of order", SHAREGPT | {"conversations": [said("human", "hi"), said("gpt", "hello")]}),
    ("role other than system, user and assistant", SHAREGPT | {"conversations": [said("observation", "4")]}),
    ("system column and system turn differ", {"chosen": [system("a"), *SHORT, bot("so")], "rejected": [system("a"), *SHORT, bot("no")], "system": "b"}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "row"), UNUSABLE)
def test_an_unusable_row_says_why(tmp_path, reason, row):
    assert pairs_of(tmp_path, row) == [Dropped(0, reason)]


FAULTS = [
    ('"chosen" is a list, not text', ALPACA | {"chosen": [bot("so")]}),
    ('"history" is text, not a list of [question, answer]', ALPACA | {"history": "hi"}),
    ('"history" item 2 is not [question, answer]', ALPACA | {"history": [["hi", "hello"], ["hm"]]}),
    ('"completions" is an object, not a list', NEMO | {"completions": {}}),
    ('"completions item 1" is not an object with rank and completion', NEMO | {"completions": [{"rank": 1}]}),
    ('"completions item 1 rank" is text, not a number', NEMO | {"completions": [{"rank": "best", "completion": [bot("so")]}]}),
    ('"rejected_response" is null, not text', SWIFT | {"rejected_response": None}),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "row"), FAULTS)
def test_a_row_that_breaks_its_layout_stops_the_run(tmp_path, problem, row):
    assert error_of(tmp_path, row) == (f"1: {problem}", HINT)


@pytest.mark.parametrize(
    ("expected", "row"),
    [
        (('1: "conversations" turn 1 has no "from"', 'a turn is {"from": "human", "value": "..."}'), SHAREGPT | {"conversations": SHORT}),
        (('1: "chosen" turn 1 is text, not an object', 'a turn is {"from": "human", "value": "..."}'), SHAREGPT | {"chosen": "so"}),
        (('1: "system" is a list, not text', "give a text, or drop the column"), ALPACA | {"system": ["be kind"]}),
    ],
)  # fmt: skip
def test_other_faults(tmp_path, expected, row):
    assert error_of(tmp_path, row) == expected


TEXT = {"prompt": "why?", "chosen": "so", "rejected": "no"}
TURNS = {"prompt": "why?", "chosen": [bot("so")], "rejected": [bot("no")]}
WHOLE = {"chosen": [*SHORT, bot("so")], "rejected": [*SHORT, bot("no")]}
HH = {side: f"\n\nHuman: why?\n\nAssistant: {text}" for side, text in (("chosen", "so"), ("rejected", "no"))}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([TEXT, TEXT, TURNS], "3: mixed layouts, this row is prompt, chosen, rejected as turns, the first row is prompt, chosen, rejected as text"),
        ([TURNS, WHOLE], "2: mixed layouts, this row is chosen, rejected as turns, the first row is prompt, chosen, rejected as turns"),
        ([HH, WHOLE], "2: mixed layouts, this row is chosen, rejected as turns, the first row is chosen, rejected as dialogues"),
        ([TEXT, TEXT | {"prompt": "\n\nHuman: why?\n\nAssistant:"}], "2: mixed layouts, this row is prompt, chosen, rejected as dialogues, the first row is prompt, chosen, rejected as text"),
        ([ALPACA, TEXT], "2: mixed layouts, this row is prompt, chosen, rejected as text, the first row is LLaMA-Factory alpaca: instruction, chosen, rejected"),
        ([NEMO | {"completions": []}, SWIFT], "2: mixed layouts, this row is ms-swift: messages, rejected_response, the first row is NeMo: context, completions"),
    ],
)  # fmt: skip
def test_mixed_layouts_are_refused_at_the_first_row_that_differs(tmp_path, rows, message):
    assert error_of(tmp_path, *rows, rows[0]) == (message, MIXED_HINT)


def test_mixed_conversations_are_refused(tmp_path):
    rows = [{"messages": [*SHORT, bot("so")]}, {"prompt": "why?", "completion": "so"}]
    message = "2: mixed layouts, this row is completion as text, the first row is messages as turns"
    assert error_of(tmp_path, *rows, read=read_conversations) == (message, MIXED_HINT)


def test_answers_alone_and_whole_conversations_may_alternate(tmp_path):
    rows = [TURNS, WHOLE | {"prompt": "why?"}]
    assert pairs_of(tmp_path, *rows) == [Pair(number, SHORT, "so", "no") for number in (0, 1)]


def test_a_rejected_answer_that_runs_on_like_a_dialogue_does_not_stop_the_run(tmp_path):
    runs_on = TEXT | {"rejected": "\n\nHuman: how?\n\nAssistant: no"}
    assert pairs_of(tmp_path, TEXT, runs_on) == [Pair(0, SHORT, "so", "no"), Dropped(1, "prompts differ")]


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("written", [json.dumps(SHORT), str(SHORT), json.dumps([said("human", "why?")], indent=1)])
def test_turns_that_became_text_are_refused(tmp_path, column, written):
    assert error_of(tmp_path, TEXT | {column: written}) == (
        f'1: "{column}" is a list of turns written as text', "store turns as lists, in JSON Lines or Parquet"
    )  # fmt: skip


def test_columns_under_other_names(tmp_path):
    row = {"question": "why?", "good": "so", "bad": "no", "system": "be kind", "prompt": 3, "id": "x"}
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert pairs_of(tmp_path, row, columns=columns) == [Pair(0, [system("be kind"), *SHORT], "so", "no")]
    told = []
    path = str(write_lines(tmp_path / "a.jsonl", [row]))
    assert list(read_conversations(path, columns, on_layout=told.append)) == [
        Pair(0, [system("be kind"), *SHORT], "so", "")
    ]
    assert told == ["prompt and answers as text, with a system column"]
    half = {"question": "why?", "chosen": "so", "rejected": "no"}
    assert pairs_of(tmp_path, half, columns={"prompt": "question"}) == [Pair(0, SHORT, "so", "no")]
    # Under its new name a column no longer tells of the layout it was part of.
    renamed = {"instruction": "why?", "input": "more", "chosen": "so", "rejected": "no"}
    assert pairs_of(tmp_path, renamed, columns={"prompt": "instruction"}) == [Pair(0, SHORT, "so", "no")]
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    assert pairs_of(tmp_path, TEXT, columns=swapped) == [Pair(0, SHORT, "no", "so")]
    assert list(
        read_conversations(
            str(write_lines(tmp_path / "b.jsonl", [{"talk": [*SHORT, bot("so")]}])), {"messages": "talk"}
        )
    ) == [Pair(0, SHORT, "so", "")]


def test_a_mapping_to_nothing(tmp_path):
    assert error_of(tmp_path, TEXT, columns={"prompt": "question"}) == (
        '1: no column "question"',
        "the columns are prompt, chosen, rejected",
    )
    late = [TEXT | {"question": "why?"}, TEXT]
    assert error_of(tmp_path, *late, columns={"prompt": "question"})[0] == '2: no column "question"'
    message, hint = error_of(tmp_path, TEXT, columns={"promt": "prompt"})
    assert message == "columns: nothing reads a column called promt"
    assert hint.startswith("name one of chat_template_kwargs, chosen, completion, completions, context, ")


def test_the_layout_is_told_once_and_before_the_first_row_fails(tmp_path):
    told = []
    path = str(write_lines(tmp_path / "a.jsonl", [TEXT | {"chosen": 3}]))
    with pytest.raises(SepoError):
        list(read_pairs(path, on_layout=told.append))
    assert len(told) == 1
    told.clear()
    assert len(list(read_pairs(str(write_lines(tmp_path / "b.jsonl", [TEXT] * 3)), on_layout=told.append))) == 3
    assert told == ["prompt and answers as text"]
