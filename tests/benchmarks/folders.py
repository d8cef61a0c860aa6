"""Folders as `sepo generate` leaves them, with answers written by hand, and what official tools write of them."""

import json
from pathlib import Path

import numpy as np

from stages.store.answers import Answer, answers_name, write_answers
from stages.store.place import place_of


def answer(number, text, row, *, question_id=None, sample=0, turn=0, ended=True, problem="", tokens=3):
    ids = None if tokens is None else np.arange(tokens + ended, dtype=np.int32)
    return Answer(number, question_id or str(number), sample, turn, [], text, ended, problem, None, ids, None, row)


def write_folder(folder, benchmark, models):
    """`models` has the answers of each by its name."""
    files = []
    for name, answers in models.items():
        (folder / name).mkdir(parents=True)
        write_answers(place_of(folder / name), answers_name(0), answers, "mine")
        files.append(f"{name}/{answers_name(0)}")
    first = next(iter(models.values()))
    counts = {"questions": len({each.question for each in first}), "samples": 1}
    manifest = {"format": 1, "stage": "generate", "fingerprint": "mine", "benchmark": benchmark, "counts": counts}
    manifest |= {"models": {name: {} for name in models}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_rows(path, rows):
    """JSON Lines, or a list for .json."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(json.dumps(rows, indent=2) if path.suffix == ".json" else lines)
    return path


def alpaca_rows(name, preferences, outputs=None, judge="gpt", glm=None):
    rows = []
    for number, preference in enumerate(preferences):
        row = {"dataset": "koala", "instruction": f"do {number}", "output_1": "b", "generator_1": "base"}
        row |= {"output_2": outputs[number] if outputs else "a" * (number + 1), "generator_2": name, "annotator": judge}
        rows.append(row | {"preference": preference} | ({"glm_preference": glm[number]} if glm else {}))
    return rows


def arena_rows(name, games, category="arena-hard-v0.1", judge="gpt"):
    """`games` has the verdicts of both games of each prompt."""
    rows = []
    for number, verdicts in enumerate(games):
        played = [verdict and {"score": verdict, "judgment": {"answer": "..."}} for verdict in verdicts]
        row = {"uid": f"u{number}", "category": category, "judge": judge, "model": name, "baseline": "base"}
        rows.append(row | {"games": played})
    return rows


def single_rows(name, scores, judge="gpt-4"):
    """`scores` has those of both turns of each question."""
    return [
        {"question_id": 81 + number, "model": name, "judge": [judge, f"single-{turn}"], "score": score, "turn": turn}
        for number, both in enumerate(scores)
        for turn, score in enumerate(both, start=1)
    ]
