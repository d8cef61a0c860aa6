"""One pair in every layout must come out as the same pair; every unusable row must say why."""

import gzip
import itertools
import json
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.layouts import describe_layout, read_conversations, read_pairs
from stages.errors import SepoError
from stages.types import Dropped, Pair
from tests.conftest import REAL, write_lines
from tests.data.turns import bot, system, user

NAMING = "; name other columns with --columns prompt=...,chosen=...,rejected=..."
PAIR_HINT = f"each row needs prompt, chosen and rejected, or chosen and rejected as whole dialogues{NAMING}"
CONVERSATION_HINT = "each row needs messages, or prompt and completion, or the columns of preference data"
TURN_HINT = 'a turn is {"role": "user", "content": "..."}'


def pairs_of(tmp_path, *rows):
    return list(read_pairs(str(write_lines(tmp_path / "pairs.jsonl", rows))))


def conversations_of(tmp_path, *rows):
    return list(read_conversations(str(write_lines(tmp_path / "sft.jsonl", rows))))


SHORT = [user("why?")]
LONG = [user("hi"), bot("hello"), user("why?")]
LONG_TEXT = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?"
LAYOUTS = {
    "text": (SHORT, "prompt and answers as text", {"prompt": "why?", "chosen": "so", "rejected": "no"}),
    "prompt as turns": (LONG, "prompt and answers as text", {"prompt": LONG, "chosen": "so", "rejected": "no"}),
    "answers as turns": (SHORT, "prompt, answers as turns", {"prompt": "why?", "chosen": [bot("so")], "rejected": [bot("no")]}),
    "all as turns": (LONG, "prompt, answers as turns", {"prompt": LONG, "chosen": [bot("so")], "rejected": [bot("no")]}),
    "ultrafeedback": (
        SHORT,
        "prompt, answers in whole conversations",
        {
            "prompt": "why?", "prompt_id": "a1", "chosen": [user("why?"), bot("so")], "rejected": [user("why?"), bot("no")],
            "messages": [user("why?"), bot("so")], "score_chosen": 8.5, "score_rejected": 7.0,
        },
    ),
    "ultrafeedback with a system turn": (
        [system("be kind"), *SHORT],
        "prompt, answers in whole conversations",
        {"prompt": "why?", "chosen": [system("be kind"), *SHORT, bot("so")], "rejected": [system("be kind"), *SHORT, bot("no")]},
    ),
    "the prompt is the last question": (
        LONG,
        "prompt, answers in whole conversations",
        {"prompt": "why?", "chosen": [*LONG, bot("so")], "rejected": [*LONG, bot("no")]},
    ),
    "the prompt is the first question": (
        LONG,
        "prompt, answers in whole conversations",
        {"prompt": "hi\n", "chosen": [*LONG, bot("so")], "rejected": [*LONG, bot("no")]},
    ),
    "the prompt is the context": (
        LONG,
        "prompt, answers in whole conversations",
        {"prompt": LONG, "chosen": [*LONG, bot("so")], "rejected": [*LONG, bot("no")]},
    ),
    "implicit prompt": (
        LONG,
        "whole conversations, prompt is their common beginning",
        {"chosen": [*LONG, bot("so")], "rejected": [*LONG, bot("no")]},
    ),
    "hh": (
        LONG,
        "dialogues as text (HH-RLHF), prompt is their common beginning",
        {"chosen": f"{LONG_TEXT}\n\nAssistant: so", "rejected": f"{LONG_TEXT}\n\nAssistant: no"},
    ),
    "hh with a prompt": (
        LONG,
        "dialogues as text (HH-RLHF), prompt is their common beginning",
        {"prompt": f"{LONG_TEXT}\n\nAssistant:", "chosen": f"{LONG_TEXT}\n\nAssistant: so", "rejected": f"{LONG_TEXT}\n\nAssistant: no"},
    ),
    "hh prompt": (
        LONG,
        "prompt as a dialogue (HH-RLHF), answers as text",
        {"prompt": f"{LONG_TEXT}\n\nAssistant:", "chosen": " so", "rejected": "no"},
    ),
    "hh prompt with blanks after the last mark": (
        LONG,
        "prompt as a dialogue (HH-RLHF), answers as text",
        {"prompt": f"{LONG_TEXT}\n\nAssistant:  \n", "chosen": "so", "rejected": "no"},
    ),
    "hh prompt without the last mark": (
        LONG,
        "prompt as a dialogue (HH-RLHF), answers as text",
        {"prompt": LONG_TEXT, "chosen": " so", "rejected": " no"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_one_pair_gives_the_same_pair(tmp_path, layout):
    prompt, name, row = LAYOUTS[layout]
    assert pairs_of(tmp_path, row) == [Pair(0, prompt, "so", "no")]
    assert conversations_of(tmp_path, row) == [Pair(0, prompt, "so", "")]
    assert describe_layout(row) == name


def test_what_a_turn_holds_besides_role_and_content_is_left_out(tmp_path):
    row = {"prompt": [user("why?") | {"name": "Ann"}], "chosen": [bot("so") | {"score": 3}], "rejected": "no"}
    assert pairs_of(tmp_path, row) == [Pair(0, SHORT, "so", "no")]


@pytest.mark.parametrize("text", [" so ", "so\n", "\n\tso", "\n\nso\n\nAssistant: more", "Human: so"])
def test_plain_text_is_kept_exactly(tmp_path, text):
    """A mark inside a text, or one without its empty line, is no mark."""
    row = {"prompt": f"{text}?", "chosen": text, "rejected": "no"}
    assert pairs_of(tmp_path, row) == [Pair(0, [user(f"{text}?")], text, "no")]
    turns = {"prompt": [user(text)], "chosen": [bot(text)], "rejected": [bot("no")]}
    assert pairs_of(tmp_path, turns) == [Pair(0, [user(text)], text, "no")]


def test_answers_that_differ_by_a_blank_are_two_answers(tmp_path):
    row = {"prompt": "why?", "chosen": "so", "rejected": "so "}
    assert pairs_of(tmp_path, row) == [Pair(0, SHORT, "so", "so ")]


def test_marks_in_a_list_of_turns_are_text(tmp_path):
    marked = "\n\nHuman: why?\n\nAssistant:"
    row = {"prompt": [user(marked)], "chosen": [bot(marked)], "rejected": [bot("no")]}
    assert pairs_of(tmp_path, row) == [Pair(0, [user(marked)], marked, "no")]


def test_a_mark_takes_one_blank_with_it_and_no_more(tmp_path):
    row = {
        "chosen": "\n\nHuman:   two blanks stay \n\nAssistant:none\n\n\nHuman: why?\n\nAssistant: so \n",
        "rejected": "\n\nHuman:   two blanks stay \n\nAssistant:none\n\n\nHuman: why?\n\nAssistant:\nno",
    }
    prompt = [user("  two blanks stay "), bot("none\n"), user("why?")]
    assert pairs_of(tmp_path, row) == [Pair(0, prompt, "so \n", "\nno")]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":\0"), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(context=st.lists(words, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2), answers=st.lists(words, min_size=2, max_size=2, unique=True))  # fmt: skip
def test_hh_text_reads_back_what_was_written(tmp_path_factory, context, answers):
    roles = itertools.cycle(["user", "assistant"])
    prompt = [{"role": role, "content": text} for role, text in zip(roles, context, strict=False)]
    marks = {"user": "Human", "assistant": "Assistant"}
    written = "".join(f"\n\n{marks[turn['role']]}: {turn['content']}" for turn in prompt)
    row = {side: f"{written}\n\nAssistant: {text}" for side, text in zip(("chosen", "rejected"), answers, strict=True)}
    assert pairs_of(tmp_path_factory.mktemp("hh"), row) == [Pair(0, prompt, *answers)]


def text_row(prompt="why?", chosen="so", rejected="no"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


UNUSABLE = [
    ("empty prompt", text_row(prompt="")),
    ("empty prompt", text_row(prompt=[])),
    ("empty prompt", text_row(prompt=[system("be kind")])),
    ("empty prompt", {"chosen": [bot("so")], "rejected": [bot("no")]}),
    ("empty prompt", {"chosen": "\n\nHuman:\n\nAssistant: so", "rejected": "\n\nHuman:\n\nAssistant: no"}),
    ("empty response", text_row(chosen="")),
    ("empty response", text_row(rejected="\u00a0")),
    ("empty response", text_row(chosen=[bot("")], rejected=[bot("no")])),
    ("empty response", {"chosen": f"{LONG_TEXT}\n\nAssistant: ", "rejected": f"{LONG_TEXT}\n\nAssistant: no"}),
    ("chosen equals rejected", text_row(rejected="so")),
    ("chosen equals rejected", text_row(chosen=[bot("so")], rejected="so")),
    ("chosen equals rejected", {"chosen": f"{LONG_TEXT}\n\nAssistant: so", "rejected": f"{LONG_TEXT}\n\nAssistant: so"}),
    ("prompts differ", {"chosen": [user("why?"), bot("so")], "rejected": [user("how?"), bot("no")]}),
    ("prompts differ", {"chosen": [system("a"), user("why?"), bot("so")], "rejected": [system("b"), user("why?"), bot("no")]}),
    ("prompts differ", {"chosen": [system("a"), user("why?"), bot("so")], "rejected": [user("why?"), bot("no")]}),
    ("prompts differ", text_row(prompt=[user("hi"), bot("hey"), user("why?")], chosen=[*LONG, bot("so")], rejected=[*LONG, bot("no")])),
    ("prompts differ", text_row(prompt=LONG, chosen=[user("why?"), bot("so")], rejected=[user("why?"), bot("no")])),
    ("prompts differ", text_row(chosen="\n\nHuman: how?\n\nAssistant: so")),
    ("more than one turn differs", {"chosen": [user("why?"), bot("a"), user("?"), bot("so")], "rejected": [user("why?"), bot("b"), user("?"), bot("no")]}),
    ("more than one turn differs", {"chosen": [*LONG, bot("so")], "rejected": [user("hi"), bot("hello")]}),
    ("more than one turn differs", text_row(chosen=[bot("a"), user("?"), bot("so")], rejected=[bot("so")])),
    ("no assistant turn at the end", {"chosen": LONG, "rejected": [*LONG, bot("no")]}),
    ("no assistant turn at the end", {"chosen": [*LONG, bot("so")], "rejected": LONG_TEXT}),
    ("no assistant turn at the end", text_row(chosen=[], rejected=[bot("no")])),
    ("roles out of order", text_row(prompt=[user("hi"), user("why?")])),
    ("roles out of order", text_row(prompt=[user("why?"), system("be kind")])),
    ("roles out of order", text_row(prompt=[user("why?"), bot("Well,")])),
    ("roles out of order", {"chosen": [bot("hi"), user("why?"), bot("so")], "rejected": [bot("hi"), user("why?"), bot("no")]}),
    ("roles out of order", {"chosen": f"{LONG_TEXT}\n\nAssistant: a\n\nAssistant: so", "rejected": f"{LONG_TEXT}\n\nAssistant: no"}),
    ("role other than system, user and assistant", text_row(prompt=[user("why?"), {"role": "tool", "content": "4"}])),
    ("role other than system, user and assistant", {"chosen": [user("why?"), {"role": "gpt", "content": "so"}], "rejected": [user("why?"), bot("no")]}),
    ("broken Unicode", text_row(prompt="why \udc00?")),
    ("NUL character", text_row(prompt=[user("\0why?")])),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "row"), UNUSABLE)
def test_an_unusable_row_says_why(tmp_path, reason, row):
    assert pairs_of(tmp_path, row) == [Dropped(0, reason)]


def test_an_unusable_row_keeps_its_number(tmp_path):
    read = pairs_of(tmp_path, text_row(), text_row(chosen=" "), text_row())
    assert read == [Pair(0, SHORT, "so", "no"), Dropped(1, "empty response"), Pair(2, SHORT, "so", "no")]


FAULTS = [
    ('no "rejected"', PAIR_HINT, {"prompt": "why?", "chosen": "so"}),
    ('no "chosen"', PAIR_HINT, {"prompt": "why?", "rejected": "no"}),
    ("no known layout in the columns text, label", PAIR_HINT, {"text": "so", "label": 1}),
    ('no "prompt"', PAIR_HINT, {"chosen": "so", "rejected": "no"}),
    ('no "prompt"', PAIR_HINT, {"chosen": [user("why?"), bot("so")], "rejected": "no"}),
    ('"prompt" is null, not text or a list of turns', PAIR_HINT, text_row(prompt=None)),
    ('"rejected" is an object, not text or a list of turns', PAIR_HINT, text_row(rejected=bot("no"))),
    ('"chosen" is a boolean, not text or a list of turns', PAIR_HINT, text_row(chosen=True)),
    ('"prompt" turn 1 has no "role"', TURN_HINT, text_row(prompt=[{"from": "human", "value": "why?"}])),
    ('"chosen" turn 1 has no "content"', TURN_HINT, text_row(chosen=[{"role": "assistant"}])),
    ('"chosen" turn 1: "content" is null, not text', TURN_HINT, text_row(chosen=[bot(None)])),
    ('"prompt" turn 1: "role" is a number, not text', TURN_HINT, text_row(prompt=[{"role": 1, "content": "why?"}])),
]


@pytest.mark.parametrize(("problem", "hint", "row"), FAULTS)
def test_a_row_of_no_layout_stops_the_run(tmp_path, problem, hint, row):
    with pytest.raises(SepoError) as caught:
        pairs_of(tmp_path, *[text_row()] * 16, row)
    assert caught.value.message == f"{tmp_path}/pairs.jsonl:17: {problem}"
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [*SHORT, bot("so")]}, [Pair(0, SHORT, "so", "")]),
        (
            {"prompt": "hi", "prompt_id": "a1", "messages": [*LONG, bot("so")]},
            [Pair(0, [user("hi")], "hello", ""), Pair(0, LONG, "so", "")],
        ),
        (
            {"messages": [system("be kind"), *LONG, bot("so")]},
            [Pair(0, [system("be kind"), user("hi")], "hello", ""), Pair(0, [system("be kind"), *LONG], "so", "")],
        ),
        ({"messages": [user("hi"), bot(" "), user("why?"), bot("so")]}, [
            Dropped(0, "empty response"), Pair(0, [user("hi"), bot(" "), user("why?")], "so", ""),
        ]),
        ({"messages": LONG}, [Dropped(0, "no assistant turn at the end")]),
        ({"messages": []}, [Dropped(0, "no assistant turn at the end")]),
        ({"messages": [user("hi"), *SHORT, bot("so")]}, [Dropped(0, "roles out of order")]),
        ({"messages": [bot("so")]}, [Dropped(0, "empty prompt")]),
        ({"prompt": "why?", "completion": "so"}, [Pair(0, SHORT, "so", "")]),
        ({"prompt": LONG, "completion": [bot("so")]}, [Pair(0, LONG, "so", "")]),
        ({"prompt": "hi", "completion": [bot("hello"), user("why?"), bot("so")]}, [Pair(0, LONG, "so", "")]),
        ({"prompt": f"{LONG_TEXT}\n\nAssistant:", "completion": " so"}, [Pair(0, LONG, "so", "")]),
        ({"prompt": "why?", "completion": "\n"}, [Dropped(0, "empty response")]),
        ({"prompt": "", "completion": "so"}, [Dropped(0, "empty prompt")]),
        ({"prompt": "why?", "messages": [*SHORT, bot("so")], "completion": "other"}, [Pair(0, SHORT, "so", "")]),
        (text_row(chosen=[*SHORT, bot("so")], rejected="") | {"messages": LONG}, [Pair(0, SHORT, "so", "")]),
        (text_row(rejected="so"), [Pair(0, SHORT, "so", "")]),
        (text_row(chosen=""), [Dropped(0, "empty response")]),
    ],
)  # fmt: skip
def test_conversations(tmp_path, row, expected):
    assert conversations_of(tmp_path, row) == expected


def test_all_answers_of_a_row_bear_its_number(tmp_path):
    read = conversations_of(tmp_path, {"messages": LONG}, {"messages": [*LONG, bot("so")]}, {"messages": LONG})
    assert [item.pair_id for item in read] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("problem", "hint", "row"),
    [
        ("no known layout in the columns text", CONVERSATION_HINT, {"text": "so"}),
        ('no "prompt"', CONVERSATION_HINT, {"completion": "so"}),
        ('"messages" is null, not a list of turns', CONVERSATION_HINT, {"messages": None}),
        ('"messages" is text, not a list of turns', CONVERSATION_HINT, {"messages": "so"}),
        ('"messages" turn 1 has no "role"', TURN_HINT, {"messages": [{"content": "why?"}]}),
    ],
)
def test_a_row_of_no_conversation_stops_the_run(tmp_path, problem, hint, row):
    with pytest.raises(SepoError) as caught:
        conversations_of(tmp_path, row)
    assert (caught.value.message, caught.value.hint) == (f"{tmp_path}/sft.jsonl:1: {problem}", hint)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "hi", "messages": LONG}, "conversations, every assistant turn is an answer"),
        ({"prompt": "hi", "completion": "hello"}, "prompt and completion"),
        ({"chosen": "so", "rejected": "no"}, "no known layout"),
        ({"text": "so"}, "no known layout"),
    ],
)
def test_other_layouts_have_names_too(row, name):
    assert describe_layout(row) == name


@pytest.mark.skipif(not REAL.exists(), reason="shared/real is not here")
@pytest.mark.parametrize(
    ("name", "kept", "dropped"),
    [("hh_harmless", 1492, {"empty response": 4, "roles out of order": 4}), ("ultrafeedback_shaped", 1590, {})],
)
def test_counts_of_real_data(name, kept, dropped):
    """The counts were found a second time by a script that shares no code with the reader."""
    read = list(read_pairs(str(REAL / f"{name}.jsonl.gz")))
    assert Counter(item.reason for item in read if isinstance(item, Dropped)) == dropped
    assert sum(isinstance(item, Pair) for item in read) == kept


@pytest.mark.skipif(not REAL.exists(), reason="shared/real is not here")
def test_real_dialogues_lose_nothing_but_their_marks():
    """Writing the marks back must give the published text, byte for byte."""
    source = REAL / "hh_harmless.jsonl.gz"
    published = [json.loads(line) for line in gzip.decompress(source.read_bytes()).splitlines()]
    marks = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    for pair in read_pairs(str(source)):
        if isinstance(pair, Pair):
            context = "".join(marks[turn["role"]] + turn["content"] for turn in pair.prompt)
            row = published[pair.pair_id]
            assert context + marks["assistant"] + pair.chosen == row["chosen"]
            assert context + marks["assistant"] + pair.rejected == row["rejected"]


@pytest.mark.parametrize(
    ("names", "grades", "remark"),
    [
        (("score_chosen", "score_rejected"), (1, 2), "score_chosen is below score_rejected"),
        (("chosen-rating", "rejected-rating"), (3.0, 3), "chosen-rating equals rejected-rating"),
        (("chosen_reward", "rejected_reward"), ("-1", "0.5"), "chosen_reward is below rejected_reward"),
        (("score_chosen", "score_rejected"), (2, 1), None),
        (("score_chosen", "score_rejected"), (math.nan, 1), None),
        (("score_chosen", "score_rejected"), (None, 1), None),
        (("score_chosen", "score_rejected"), ([1], {"a": 1}), None),
        (("score_chosen", "rejected_score"), (1, 2), None),
    ],
)
def test_a_grade_that_says_the_opposite_is_remarked_upon_and_kept(tmp_path, names, grades, remark):
    row = {"prompt": "why?", "chosen": "so", "rejected": "no"} | dict(zip(names, grades, strict=True))
    remarks = []
    path = write_lines(tmp_path / "pairs.jsonl", [row])
    pairs = list(read_pairs(str(path), on_remark=lambda words, number: remarks.append((words, number))))
    assert pairs == [Pair(0, [user("why?")], "so", "no")]
    assert remarks == ([(remark, 0)] if remark else [])
