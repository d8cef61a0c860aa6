"""What a turn says beside its role and content: kept out of training, unusable, or named as not read; never ignored."""

import pytest

from stages.data.conversations import LONGEST_TEXT
from stages.data.layouts import look, read_conversations, read_pairs
from stages.types import Dropped, Pair
from tests.conftest import write_lines
from tests.data.turns import bot, user


def pair_of(tmp_path, **more):
    row = {"prompt": [user("why?")], "chosen": [bot("so") | more], "rejected": [bot("no")]}
    [item] = read_pairs(str(write_lines(tmp_path / "pairs.jsonl", [row])))
    return item


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("weight", 0, '"weight" leaves the answer out'),
        ("weight", 0.0, '"weight" leaves the answer out'),
        ("train", False, '"train" leaves the answer out'),
        ("loss", False, '"loss" leaves the answer out'),
        ("weight", 0.5, '"weight" of the answer is neither 0 nor 1'),
        ("weight", "0", '"weight" of the answer is neither 0 nor 1'),
        ("loss_mask", 0, '"loss_mask" leaves the answer out'),
        ("masked", True, 'a turn has "masked", which cannot be kept'),
        ("reasoning_details", [{"text": "hm"}], 'a turn has "reasoning_details", which cannot be kept'),
        ("prefix", True, 'a turn has "prefix", which cannot be kept'),
        ("images", ["x.png"], 'a turn has "images", which cannot be kept'),
        ("refusal", "I will not", 'a turn has "refusal", which cannot be kept'),
    ],
)
def test_what_would_change_the_training_makes_the_row_unusable(tmp_path, key, value, reason):
    assert pair_of(tmp_path, **{key: value}) == Dropped(0, reason)


@pytest.mark.parametrize(
    "more",
    [{"weight": 1}, {"weight": None}, {"train": True}, {"prefix": False}, {"images": []}, {"id": 7, "name": "x"}],
)
def test_what_changes_nothing_is_no_reason(tmp_path, more):
    assert pair_of(tmp_path, **more) == Pair(0, [user("why?")], "so", "no")


def test_the_weight_of_a_turn_of_the_prompt_does_not_matter(tmp_path):
    """Nor may it make two equal prompts differ, or reach the chat template."""
    prompt = [user("a"), bot("b"), user("c")]
    chosen = [user("a"), bot("b") | {"weight": 0}, user("c") | {"weight": 0}, bot("so")]
    rows = [{"chosen": chosen, "rejected": [*prompt, bot("no")]}]
    assert list(read_pairs(str(write_lines(tmp_path / "pairs.jsonl", rows)))) == [Pair(0, prompt, "so", "no")]


def test_answers_of_a_conversation_are_left_out_one_by_one(tmp_path):
    turns = [user("a"), bot("b") | {"weight": 0}, user("c"), bot("d") | {"weight": 1}]
    items = list(read_conversations(str(write_lines(tmp_path / "sft.jsonl", [{"messages": turns}]))))
    left_out = Dropped(0, '"weight" leaves the answer out')
    assert items == [left_out, Pair(0, [user("a"), bot("b"), user("c")], "d", "")]


def test_keys_that_nobody_reads_are_named(tmp_path):
    row = {
        "prompt": [user("a") | {"id": 1}],
        "chosen": [bot("b") | {"at": 2, "weight": 1}],
        "rejected": [bot("c")],
        "x": 0,
    }
    assert look(str(write_lines(tmp_path / "pairs.jsonl", [row]))).ignored == ["x", "prompt.id", "chosen.at"]


def test_a_text_that_no_model_could_read_is_counted(tmp_path):
    row = {"prompt": "why?", "chosen": "s" * LONGEST_TEXT, "rejected": "no"}
    assert list(read_pairs(str(write_lines(tmp_path / "pairs.jsonl", [row])))) == [
        Dropped(0, "more than 4,194,304 characters")
    ]
