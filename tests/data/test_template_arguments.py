"""What a row passes to the chat template beside its turns: read in every form, rendered as transformers would."""

import inspect
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.layouts import describe_layout, read_conversations, read_pairs
from stages.data.template_arguments import _TAKEN, given_arguments
from stages.errors import SepoError
from stages.tokens.chat import REFUSED
from stages.tokens.encode import CONTROL, TOOLS_NEED_TEMPLATE, Encoder
from stages.types import Dropped, Pair
from tests.conftest import CHATML, write_lines
from tests.data.turns import bot, user
from tests.tokenizers_zoo import TEMPLATES, byte_level, dress

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object", "properties": {}}},
}
ROW = {"prompt": [user("what?")], "chosen": [bot("It is")], "rejected": [bot("sorry")]}
WITH_TOOLS = "{% if tools %}{{ '<|im_start|>system\nTools: ' + tools | tojson + '<|im_end|>\n' }}{% endif %}" + CHATML
# Qwen3: the block is written where thinking is switched off, before the answer too.
SWITCHED = (
    "{% set block = '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false else '' %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (block if m['role'] == 'assistant' and loop.last else '')"
    " + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + block }}{% endif %}"
)


def read(tmp_path, *rows):
    return list(read_pairs(str(write_lines(tmp_path / "pairs.jsonl", rows))))


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
@pytest.mark.parametrize("kwargs", [{"enable_thinking": False}, '{"enable_thinking": false}'])
def test_a_value_or_its_json_is_the_same(tmp_path, tools, kwargs):
    row = ROW | {"tools": tools, "chat_template_kwargs": kwargs}
    assert read(tmp_path, row) == [
        Pair(0, [user("what?")], "It is", "sorry", {"tools": [TOOL], "enable_thinking": False})
    ]
    sft = list(read_conversations(str(tmp_path / "pairs.jsonl")))
    assert [pair.template_arguments for pair in sft] == [{"tools": [TOOL], "enable_thinking": False}]
    messages = {"messages": [user("a"), bot("b"), user("c"), bot("d")], "tools": tools}
    sft = list(read_conversations(str(write_lines(tmp_path / "sft.jsonl", [messages]))))
    assert [pair.template_arguments for pair in sft] == [{"tools": [TOOL]}] * 2


@pytest.mark.parametrize("nothing", [None, "", " \n", "null", "[]", [], {}])
def test_null_and_empty_are_none(tmp_path, nothing):
    [pair] = read(tmp_path, ROW | {"tools": nothing, "chat_template_kwargs": nothing if nothing != "[]" else "{}"})
    assert pair.template_arguments == {}


def test_parquet_gives_every_object_the_keys_of_all_and_they_go_again(tmp_path):
    other = {"type": "function", "function": {"name": "clock", "strict": True}}
    rows = [
        ROW | {"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}},
        ROW | {"tools": [other], "chat_template_kwargs": {"date": "today"}},
        ROW | {"tools": None, "chat_template_kwargs": None},
    ]
    rows[0]["tools"][0]["function"]["parameters"].pop("properties")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [pair.template_arguments for pair in read_pairs(str(tmp_path / "a.parquet"))] == [
        {"tools": [TOOL], "enable_thinking": False},
        {"tools": [other], "date": "today"},
        {},
    ]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"tools": TOOL}, '"tools" is an object, not a list of objects'),
        ({"tools": "weather"}, '"tools" is text, but not JSON'),
        ({"tools": '"weather"'}, '"tools" is text, not a list of objects'),
        ({"tools": [TOOL, "weather"]}, '"tools" item 2 is text, not an object'),
        ({"chat_template_kwargs": True}, '"chat_template_kwargs" is a boolean, not an object'),
        ({"chat_template_kwargs": "thinking"}, '"chat_template_kwargs" is text, but not JSON'),
        ({"chat_template_kwargs": "[1]"}, '"chat_template_kwargs" is a list, not an object'),
        ({"chat_template_kwargs": {"tokenize": True}}, '"chat_template_kwargs" may not set tokenize'),
        (
            {"chat_template_kwargs": {"tools": [], "a": 1, "eos_token": "x"}},
            '"chat_template_kwargs" may not set eos_token, tools',
        ),
    ],
)
def test_what_is_no_argument_is_refused_with_its_place(tmp_path, columns, problem):
    with pytest.raises(SepoError) as caught:
        read(tmp_path, ROW, ROW | columns)
    assert caught.value.message == f"{tmp_path}/pairs.jsonl:2: {problem}"
    assert caught.value.hint


def test_no_argument_of_transformers_is_left_open():
    """But `documents`, which it hands to the template as it is."""
    own = set(inspect.signature(byte_level_chatml().apply_chat_template).parameters) - {"kwargs", "documents"}
    assert own <= _TAKEN


def byte_level_chatml():
    return dress(byte_level(), "chatml")


def test_the_layout_says_that_the_columns_are_there():
    assert describe_layout(ROW | {"tools": []}) == "prompt, answers as turns, with a tools column"
    assert describe_layout(ROW | {"chat_template_kwargs": {}, "system": ""}).endswith(
        ", with a system and a chat_template_kwargs column"
    )


def encode(template, arguments, prompt="what?"):
    tokenizer = dress(byte_level(), template)
    pair = Encoder(tokenizer).encode(Pair(0, [user(prompt)], "It is", "sorry", arguments))
    return pair.reason if isinstance(pair, Dropped) else [tokenizer.decode(ids) for ids in pair[1:]]


@pytest.mark.parametrize(
    ("template", "arguments"),
    [(WITH_TOOLS, {"tools": [TOOL]}), (SWITCHED, {"enable_thinking": False}), (SWITCHED, {"enable_thinking": True})],
)
def test_the_prompt_is_what_transformers_renders(template, arguments):
    expected = dress(byte_level(), template).apply_chat_template(
        [user("what?")], tokenize=False, add_generation_prompt=True, **arguments
    )
    assert encode(template, arguments) == [expected, "It is<|im_end|>", "sorry<|im_end|>"]


def test_a_block_that_an_argument_puts_into_the_generation_prompt_alone():
    """What a template does is learnt anew for the arguments: without them, this one has no block."""
    old = SWITCHED.replace("(block if m['role'] == 'assistant' and loop.last else '')", "''")
    prompt, chosen, _ = encode(old, {"enable_thinking": False})
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert chosen == "It is<|im_end|>"
    assert encode(old, {})[0].endswith("<|im_start|>assistant\n")


def test_many_different_arguments_are_no_burden():
    encoder = Encoder(dress(byte_level(), SWITCHED))
    for number in range(600):
        pair = encoder.encode(Pair(0, [user("what?")], "It is", "sorry", {"number": number}))
        assert len(pair.chosen_ids)
    assert len(encoder._template._formats) <= 256


def test_a_tool_cannot_end_a_turn():
    for tool in ({"name": "so <|im_end|>"}, {"<|im_end|>": 1}, {"a": [{"b": "<|im_start|>"}]}):
        assert encode(WITH_TOOLS, {"tools": [tool]}) == CONTROL
    assert encode(CHATML, {"style": "<|im_end|>"}) == CONTROL


def test_without_a_template_nothing_takes_tools():
    assert encode(None, {"tools": [TOOL]}) == TOOLS_NEED_TEMPLATE
    assert encode(None, {"enable_thinking": False})[1] == "It is</s>"


def test_an_argument_that_the_template_trips_over_drops_the_row():
    assert encode("{% if n %}{{ n + 1 }}{% endif %}" + CHATML, {"n": "one"}) == REFUSED
    assert encode("{% if n %}{{ raise_exception('no') }}{% endif %}" + CHATML, {"n": 1}) == REFUSED


def test_a_template_says_whether_it_shows_tools():
    assert Encoder(dress(byte_level(), WITH_TOOLS)).shows_tools
    assert not Encoder(dress(byte_level(), CHATML)).shows_tools
    assert not Encoder(dress(byte_level(), None)).shows_tools
    assert encode(CHATML, {"tools": [TOOL]}) == encode(CHATML, {})


def test_a_template_of_its_own_for_tools():
    tokenizer = dress(byte_level())
    tokenizer.chat_template = {"default": CHATML, "tool_use": WITH_TOOLS}
    encoder = Encoder(tokenizer)
    pair = encoder.encode(Pair(0, [user("what?")], "It is", "sorry", {"tools": [TOOL]}))
    assert tokenizer.decode(pair.prompt_ids).startswith("<|im_start|>system\nTools: [")
    assert encoder.shows_tools
    pair = encoder.encode(Pair(0, [user("what?")], "It is", "sorry"))
    assert tokenizer.decode(pair.prompt_ids).startswith("<|im_start|>user")


CALL = {"type": "function", "function": {"name": "weather", "arguments": {}}}
ROLE = "role other than system, user and assistant"
CALLS = "a turn calls a tool"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([user("a"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "4"}, bot("so")], CALLS),
        ([user("a"), {"role": "assistant", "content": None, "tool_calls": [CALL]}], CALLS),
        ([user("a"), bot("so") | {"tool_calls": [CALL]}], CALLS),
        ([user("a"), bot("so") | {"function_call": {"name": "f"}}], CALLS),
        ([user("a"), {"role": "tool", "content": {"degrees": 4}}, bot("so")], ROLE),
        ([user("a"), {"role": "tool", "content": None}, bot("so")], ROLE),
        ([user("a"), {"role": "observation", "content": "4"}, bot("so")], ROLE),
    ],
)
def test_a_row_that_uses_tools_is_dropped_and_counted(tmp_path, turns, reason):
    assert read(tmp_path, {"chosen": turns, "rejected": [user("a"), bot("no")]}) == [Dropped(0, reason)]
    sft = write_lines(tmp_path / "sft.jsonl", [{"messages": turns}])
    assert list(read_conversations(str(sft))) == [Dropped(0, reason)]


def test_a_turn_that_could_call_a_tool_and_does_not_is_any_other(tmp_path):
    turns = [user("a"), bot("so") | {"tool_calls": None}]
    assert read(tmp_path, {"chosen": turns, "rejected": [user("a"), bot("no") | {"tool_calls": []}]}) == [
        Pair(0, [user("a")], "so", "no")
    ]


def test_the_zoo_takes_arguments_that_it_does_not_know():
    for name in TEMPLATES:
        if name != "asks_for_thoughts":
            assert encode(name, {"style": "brief"}) == encode(name, {})


@pytest.mark.parametrize("own", [{}, {"enable_thinking": True}, {"style": "short"}])
def test_what_is_given_for_all_rows_is_the_column_of_every_row_that_says_nothing_else(own):
    tokenizer, given = dress(byte_level(), SWITCHED), {"enable_thinking": False}
    pair = Pair(0, [user("what?")], "It is", "sorry", own)
    found = Encoder(tokenizer, given).encode(pair)
    wanted = Encoder(tokenizer).encode(pair._replace(template_arguments=given | own))
    assert [part.tolist() for part in found[1:]] == [part.tolist() for part in wanted[1:]]


def test_what_is_given_for_all_rows_makes_another_encoder():
    tokenizer = dress(byte_level(), SWITCHED)
    prints = [
        Encoder(tokenizer, given).fingerprint for given in ({"enable_thinking": False}, {"enable_thinking": True})
    ]
    assert len({*prints, Encoder(tokenizer).fingerprint}) == 3
    assert Encoder(tokenizer, {}).fingerprint == Encoder(tokenizer).fingerprint


def test_a_name_that_the_template_does_not_know_is_said():
    tokenizer = dress(byte_level(), SWITCHED)
    assert Encoder(tokenizer, {"enable_thinking": False}).ignored_arguments == []
    assert Encoder(tokenizer, {"enable_thinking": False, "thinkng": False}).ignored_arguments == ["thinkng"]
    assert Encoder(dress(byte_level(), None), {"style": 1}).ignored_arguments == ["style"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"tools": []}', "may not set tools"),
        ('{"a": "\\ud800"}', "broken Unicode"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "more than 100 deep"),
    ],
)
def test_what_no_template_can_be_given_is_refused(text, reason):
    with pytest.raises(SepoError, match=reason):
        given_arguments(text)


def test_what_is_given_for_all_rows_cannot_end_a_turn():
    with pytest.raises(SepoError, match=CONTROL):
        Encoder(dress(byte_level(), SWITCHED), {"enable_thinking": "<|im_end|>"})
