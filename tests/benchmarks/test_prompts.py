"""Prompt files: what they hold is taken as it is, and what is wrong with them is said in a line."""

import pytest

from stages.benchmarks.benchmark import SIGNATURES
from stages.benchmarks.registry import BENCHMARKS
from stages.errors import SepoError
from stages.generation.questions import count_questions
from tests.benchmarks.rows import LINE_SEPARATOR, MADE_UP, placed, real_rows

SIZES = {"alpaca-eval": 805, "arena-hard": 750, "mt-bench": 80, "ifeval": 541}


def refused(name, rows):
    with pytest.raises(SepoError) as caught:
        list(BENCHMARKS[name].questions(placed(rows)))
    return f"{caught.value.message} | {caught.value.hint}"


def deviation(name, questions):
    return BENCHMARKS[name].deviation(count_questions(lambda: questions, 128))


@pytest.mark.parametrize("name", [*BENCHMARKS])
def test_the_published_prompts_are_read_whole(name):
    rows = real_rows(name)
    questions = list(BENCHMARKS[name].questions(placed(rows)))
    assert len(questions) == SIZES[name]
    assert [question.row for question in questions] == rows
    assert deviation(name, questions) == ""
    assert f"40 of the {SIZES[name]} prompts" in deviation(name, questions[:40])


def test_alpacas_prompts_in_another_order_are_told_apart():
    questions = list(BENCHMARKS["alpaca-eval"].questions(placed(real_rows("alpaca-eval")[::-1])))
    assert "not in their order" in deviation("alpaca-eval", questions)


def test_questions_keep_what_makes_them_that_benchmarks():
    [write, add] = BENCHMARKS["mt-bench"].questions(placed(MADE_UP["mt-bench"]))
    assert (write.question_id, write.temperature, write.later_turns) == ("81", 0.7, ("Shorter.",))
    assert write.messages == [{"role": "user", "content": f"Write{LINE_SEPARATOR}a post."}]
    assert (add.question_id, add.temperature, add.number) == ("111", 0.0, 1)
    [hard, story] = BENCHMARKS["arena-hard"].questions(placed(MADE_UP["arena-hard"]))
    assert (hard.question_id, hard.temperature, story.later_turns) == ("a1", None, ())
    [stem, own] = BENCHMARKS["mt-bench"].questions(placed([
        {"question_id": 1, "category": "stem", "turns": ["a", "b"]},
        {"question_id": 2, "category": "stem", "turns": ["a", "b"], "required_temperature": 0.4},
    ]))  # fmt: skip
    assert (stem.temperature, own.temperature) == (0.1, 0.4)


@pytest.mark.parametrize("name", [*BENCHMARKS])
@pytest.mark.parametrize("other", [*BENCHMARKS])
def test_a_file_of_another_benchmark_is_called_by_its_name(name, other):
    if other != name:
        assert f"file:1: a row of {other}, not of {name} | give --benchmark {other}" in refused(name, MADE_UP[other])
    assert SIGNATURES[name] <= {*MADE_UP[name][0]}


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("mt-bench", {"turns": ["only one"]}, "file:2: 1 turn, not 2"),
        ("mt-bench", {"turns": ["one", " "]}, "file:2: turns holds an empty turn"),
        ("mt-bench", {"turns": "one"}, "file:2: turns is text, not a list of 2 texts"),
        ("mt-bench", {"question_id": 81}, "file:2: the same id as in file:1"),
        ("mt-bench", {"question_id": None}, "file:2: question_id is null, not text"),
        ("alpaca-eval", {"instruction": "Say one."}, "file:2: the same instruction as in file:1"),
        ("alpaca-eval", {"instruction": ""}, "file:2: instruction is empty"),
        ("arena-hard", {"uid": "a1"}, "file:2: the same id as in file:1"),
        ("arena-hard", {"category": "poems"}, "file:2: category must be one of arena-hard-v0.1, hard_prompt"),
        ("arena-hard", {"category": "arena-hard-v0.1"}, "uid a1 is of arena-hard-v2.0, uid b2 of arena-hard-v0.1"),
        ("ifeval", {"kwargs": []}, "file:2: 1 instructions, but kwargs of 0"),
        ("ifeval", {"kwargs": {}}, "file:2: kwargs is an object, not a list"),
        ("ifeval", {"key": 1}, "file:2: the same key as in file:1"),
    ],
)
def test_unfit_rows(name, changed, said):
    first, second, *_ = MADE_UP[name]
    assert said in refused(name, [first, second | changed])


def test_a_file_of_nobody_names_its_columns():
    said = refused("ifeval", [{"question": "x", "bad\x1bname": 1}])
    assert "no column instruction_id_list" in said
    assert "question, bad\\x1bname" in said
    assert "ifeval_input_data.jsonl of the dataset google/IFEval" in said


@pytest.mark.parametrize("name", [*BENCHMARKS])
def test_without_a_network_the_file_to_give_is_named(name):
    published = BENCHMARKS[name].published
    with pytest.raises(SepoError, match="cannot fetch the prompts of") as caught:
        BENCHMARKS[name].prompts()
    assert (
        caught.value.hint
        == f"give --prompts FILE, with {published.file} of the {published.repo_type} {published.repository}"
    )
