"""Two rows of every published layout that has a recipe, by their cards: the better answer is the chosen one."""

import runpy
from pathlib import Path

import datasets
import pytest

from stages.data.layouts import read_pairs
from stages.types import Pair
from tests.data.turns import bot, user

RECIPES = runpy.run_path(str(Path(__file__).parents[2] / "examples/convert_published.py"))
SHP = {"post_id": "a1", "domain": "askbaking_train", "history": "why?", "seconds_difference": 5.0, "score_ratio": 2.0}
ARENA = {
    "question_id": "58210e39",
    "model_a": "chatglm-6b",
    "model_b": "koala-13b",
    "judge": "arena_user_973",
    "turn": 1,
}
KAGGLE = {"id": 30192, "model_a": "gpt-4-1106-preview", "model_b": "gpt-4-0613", "prompt": '["hi","why?"]'}
INFO = {"id": "t3_1", "post": "why?", "title": "a title", "subreddit": "tifu", "site": None, "article": None}
SUMMARIES = [{"text": text, "policy": "sup2", "note": None} for text in ("so", "no")]
QUESTION = {"dataset": "eli5", "id": "1jtx", "full_text": "why?"}
WEBGPT = {"question": QUESTION, "quotes_0": {"title": ["t"], "extract": ["e"]}, "answer_0": "so", "answer_1": "no"}


def sides(good, bad):
    return {"a": [user("why?"), bot(good)], "b": [user("why?"), bot(bad)]}


def arena(good, bad, winner):
    return ARENA | {f"conversation_{name}": turns for name, turns in sides(good, bad).items()} | {"winner": winner}


def kaggle(good, bad, *winner):
    said = {"response_a": f'["hello","{good}"]', "response_b": f'["hello","{bad}"]'}
    return KAGGLE | said | dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), winner, strict=True))


def summaries(choice, **info):
    return {
        "info": INFO | info,
        "summaries": SUMMARIES[:: 1 - 2 * choice],
        "choice": choice,
        "worker": "w",
        "batch": "b",
    }


ROWS = {
    "shp": [
        SHP | {"human_ref_A": "so", "human_ref_B": "no", "labels": 1},
        SHP | {"human_ref_A": "no", "human_ref_B": "so", "labels": 0},
    ],
    "arena": [arena("so", "no", "model_a"), arena("no", "so", "model_b"), arena("so", "no", "tie (bothbad)")],
    "arena-55k": [kaggle("so", "no", 1, 0, 0), kaggle("no", "so", 0, 1, 0), kaggle("no", "so", 0, 0, 1)],
    "summarize": [summaries(0), summaries(1, post=None, article="why?")],
    "webgpt": [
        WEBGPT | {"score_0": 1.0, "score_1": -1.0},
        WEBGPT | {"answer_0": "no", "answer_1": "so", "score_0": -0.5, "score_1": 0.5},
        WEBGPT | {"score_0": 0.0, "score_1": 0.0},
    ],
}
PROMPTS = {"arena-55k": [user("hi"), bot("hello"), user("why?")], "summarize": [user("why?\n\nTL;DR:")]}


@pytest.mark.parametrize("name", RECIPES["RECIPES"])
def test_a_recipe_gives_pairs(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: datasets.Dataset.from_list(ROWS[name]))
    RECIPES["main"](name)
    (tmp_path / "pairs.jsonl").write_text(capsys.readouterr().out)
    prompt = PROMPTS.get(name, [user("why?")])
    assert list(read_pairs(str(tmp_path / "pairs.jsonl"))) == [Pair(number, prompt, "so", "no") for number in (0, 1)]
