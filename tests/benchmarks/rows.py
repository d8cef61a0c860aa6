"""Rows of the four benchmarks' files: real ones where they lie, and made-up ones of the same form; and answers to them."""

import gzip
import json

import pytest

from stages.store.answers import Answer
from tests.conftest import REAL

LINE_SEPARATOR = "\u2028"
MADE_UP = {
    "alpaca-eval": [
        {"dataset": "koala", "instruction": f"Say {word}.", "output": f"{word}!", "generator": "gpt4_1106_preview"}
        for word in ("one", "two", f"three{LINE_SEPARATOR}four")
    ],
    "arena-hard": [
        {"uid": "a1", "category": "hard_prompt", "subcategory": "math", "prompt": f"Add{LINE_SEPARATOR}1 and 2."},
        {"uid": "b2", "category": "creative_writing", "subcategory": "creative_writing", "prompt": "Tell a story."},
    ],
    "mt-bench": [
        {"question_id": 81, "category": "writing", "turns": [f"Write{LINE_SEPARATOR}a post.", "Shorter."]},
        {"question_id": 111, "category": "math", "turns": ["What is 2+2?", "And 3+3?"], "reference": ["4", "6"]},
    ],
    "ifeval": [
        {"key": 1, "prompt": f"No commas{LINE_SEPARATOR}please.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"key": 2, "prompt": "Two sentences.", "instruction_id_list": ["length_constraints:number_sentences"],
         "kwargs": [{"relation": "less than", "num_sentences": 3}]},
    ],
}  # fmt: skip
FILES = {
    "alpaca-eval": "alpaca_eval_gpt4_baseline.json.gz",
    "arena-hard": "arena_hard_v2_question.jsonl.gz",
    "mt-bench": "mt_bench_question.jsonl.gz",
    "ifeval": "ifeval_input_data.jsonl.gz",
}


def placed(rows):
    return [(f"file:{number}", row) for number, row in enumerate(rows, start=1)]


def real_rows(name):
    path = REAL / "prompts" / FILES[name]
    if not path.exists():
        pytest.skip("the published prompts are not here")
    with gzip.open(path) as file:
        text = file.read().decode()
    is_list = path.name.endswith(".json.gz")
    return json.loads(text) if is_list else [json.loads(line) for line in text.split("\n") if line]


def answered(questions, text=lambda question, turn: f"Answer {turn} to {question.question_id}", samples=1, **changed):
    """An answer to every turn of every question, in order."""
    for question in questions:
        for sample in range(samples):
            messages = question.messages
            for turn in range(1 + len(question.later_turns)):
                said = text(question, turn)
                yield Answer(
                    question=question.number, question_id=question.question_id, sample=sample, turn=turn,
                    messages=messages, text=said, ended=True, problem="", prompt_ids=None, answer_ids=None, logps=None,
                    row=question.row,
                )._replace(**changed)  # fmt: skip
                messages = [*messages, {"role": "assistant", "content": said}, *(
                    {"role": "user", "content": later} for later in question.later_turns[turn : turn + 1]
                )]  # fmt: skip
