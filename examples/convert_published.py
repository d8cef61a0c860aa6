"""Published preference data in layouts that sepo does not read, converted once.

    python examples/convert_published.py shp > pairs.jsonl

Ties are left out. Where a data set's page is a script, which `datasets` no longer runs, the hub's own conversion to
Parquet is read.
"""

import json
import sys

import datasets

CONVERTED = {"revision": "refs/convert/parquet"}


def ranked(answers, first_is_better, **more):
    chosen, rejected = answers if first_is_better else reversed(answers)
    return {**more, "chosen": chosen, "rejected": rejected}


def shp(row):
    return ranked((row["human_ref_A"], row["human_ref_B"]), row["labels"] == 1, prompt=row["history"])


def arena(row):
    if row["winner"] in ("model_a", "model_b"):
        return ranked((row["conversation_a"], row["conversation_b"]), row["winner"] == "model_a")
    return None


def arena_55k(row):
    """Texts that are JSON lists, of a question and an answer for each round; an answer may be null."""
    if row["winner_model_a"] == row["winner_model_b"]:
        return None
    sides = []
    for column in ("response_a", "response_b"):
        rounds = zip(json.loads(row["prompt"]), json.loads(row[column]), strict=True)
        turns = [turn for asked, said in rounds for turn in (("user", asked), ("assistant", said or ""))]
        sides.append([{"role": role, "content": text} for role, text in turns])
    return ranked(sides, row["winner_model_a"] == 1)


def summarize(row):
    """The text is a post, or an article where there is none."""
    prompt = (row["info"]["post"] or row["info"]["article"]) + "\n\nTL;DR:"
    return ranked([each["text"] for each in row["summaries"]], row["choice"] == 0, prompt=prompt)


def webgpt(row):
    if row["score_0"] == row["score_1"]:
        return None
    answers = row["answer_0"], row["answer_1"]
    return ranked(answers, row["score_0"] > row["score_1"], prompt=row["question"]["full_text"])


RECIPES = {
    "shp": (shp, ["stanfordnlp/SHP"], {}),
    "arena": (arena, ["lmsys/chatbot_arena_conversations"], {}),
    "arena-55k": (arena_55k, ["lmarena-ai/arena-human-preference-55k"], {}),
    "summarize": (summarize, ["openai/summarize_from_feedback"], {"data_dir": "comparisons", **CONVERTED}),
    "webgpt": (webgpt, ["openai/webgpt_comparisons"], CONVERTED),
}


def main(name):
    pair, names, options = RECIPES[name]
    for row in datasets.load_dataset(*names, split="train", **options):
        converted = pair(row)
        if converted:
            print(json.dumps(converted))


if __name__ == "__main__":
    main(sys.argv[1])
