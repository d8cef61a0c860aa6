"""Official files: their exact content, the same bytes for the same answers, and what is told about odd answers."""

import json

import pytest
import tiktoken

from stages.benchmarks.registry import BENCHMARKS
from tests.benchmarks.rows import LINE_SEPARATOR, MADE_UP, answered, placed, real_rows

MODEL = "policy"
# A token a byte, as the vocabulary of gpt-4o is downloaded.
BYTES = tiktoken.Encoding(
    "bytes", pat_str="[^x]+|x+", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
)


def written(folder, name, rows=None, **how):
    """What was written of made-up answers, and the rows of the model's file."""
    benchmark = BENCHMARKS[name]
    questions = list(benchmark.questions(placed(MADE_UP[name] if rows is None else rows)))
    told = benchmark.write_files(folder, MODEL, answered(questions, **how))
    data = (folder / told.files[0]).read_bytes()
    # As strict readers do: by any line end that Python knows.
    return told, json.loads(data) if data.startswith(b"[") else [
        json.loads(line) for line in data.decode().splitlines()
    ]


def test_alpaca_eval(tmp_path):
    told, rows = written(tmp_path, "alpaca-eval")
    assert told.files == ["alpaca_eval/policy.json", "alpaca_eval/reference/gpt4_1106_preview.json"]
    assert rows[2] == {
        "dataset": "koala", "instruction": f"Say three{LINE_SEPARATOR}four.", "output": "Answer 0 to 2", "generator": MODEL,
    }  # fmt: skip
    assert [*rows[0]] == ["dataset", "instruction", "output", "generator"]
    assert json.loads((tmp_path / told.files[1]).read_bytes()) == MADE_UP["alpaca-eval"]
    # Answers of another model are no baseline of AlpacaEval 2.
    others = [row | {"generator": "text_davinci_003"} for row in MADE_UP["alpaca-eval"]]
    assert written(tmp_path, "alpaca-eval", others)[0].files == ["alpaca_eval/policy.json"]


def test_arena_hard(tmp_path, monkeypatch):
    text = "# One\n1. **bold**\n- x\n```py\n# code\n**no**\n```\n## __two__"
    monkeypatch.setattr(tiktoken, "encoding_for_model", {"gpt-4o": BYTES}.__getitem__)
    told, [first, second] = written(tmp_path, "arena-hard", text=lambda question, turn: text)
    assert told == (["data/arena-hard-v2.0/model_answer/policy.jsonl"], {}, [])
    assert [*first] == ["uid", "ans_id", "model", "messages", "tstamp", "metadata"]
    assert (first["uid"], first["model"], len(first["ans_id"])) == ("a1", MODEL, 22)
    assert first["ans_id"] != second["ans_id"]
    assert first["messages"] == [
        {"role": "user", "content": f"Add{LINE_SEPARATOR}1 and 2."},
        {"role": "assistant", "content": {"answer": text}},
    ]
    assert first["metadata"] == {
        "token_len": len(text),
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 1, "unordered": 1},
        "bold_count": {"**": 1, "__": 1},
    }


def test_arena_hard_of_the_older_version_and_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    row = {"uid": "u", "category": "arena-hard-v0.1", "cluster": "c", "prompt": "Why?"}
    told, [answer] = written(tmp_path, "arena-hard", [row])
    assert told.files == ["data/arena-hard-v0.1/model_answer/policy.jsonl"]
    assert "metadata" not in answer
    [warning] = told.warnings
    assert warning.startswith("policy: no metadata for style control: tiktoken cannot fetch its vocabulary")


def test_mt_bench(tmp_path):
    told, rows = written(tmp_path, "mt-bench")
    assert told.files == ["data/mt_bench/model_answer/policy.jsonl"]
    assert [*rows[0]] == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert [row["question_id"] for row in rows] == [81, 111]
    assert rows[1]["choices"] == [{"index": 0, "turns": ["Answer 0 to 111", "Answer 1 to 111"]}]


def test_a_second_turn_that_was_never_asked_is_empty(tmp_path):
    [first, _] = BENCHMARKS["mt-bench"].questions(placed(MADE_UP["mt-bench"]))
    cut = [next(answered([first], lambda *_: "", problem="too long"))]
    told = BENCHMARKS["mt-bench"].write_files(tmp_path, MODEL, cut)
    assert json.loads((tmp_path / told.files[0]).read_text())["choices"][0]["turns"] == ["", ""]
    assert told.counts == {"no answer": 1}


def test_ifeval(tmp_path):
    told, rows = written(tmp_path, "ifeval")
    assert told.files == ["ifeval/policy.jsonl"]
    assert rows[0] == {"prompt": f"No commas{LINE_SEPARATOR}please.", "response": "Answer 0 to 1"}


@pytest.mark.parametrize("name", [*BENCHMARKS])
def test_one_sample_goes_in_and_what_is_odd_is_told(tmp_path, name):
    told, rows = written(tmp_path / "one", name)
    more, again = written(tmp_path / "more", name, samples=3)
    asked = len(MADE_UP[name]) * (2 if name == "mt-bench" else 1)
    assert again == rows
    assert (told.counts, more.counts) == ({}, {"further samples": 2 * asked})
    assert any("further samples are not in the file" in warning for warning in more.warnings)
    empty, _ = written(tmp_path / "empty", name, text=lambda *_: " \n")
    assert empty.counts == {"empty": asked}
    assert any("answers are empty" in warning for warning in empty.warnings)


@pytest.mark.parametrize("name", [*BENCHMARKS])
def test_the_same_answers_give_the_same_bytes(tmp_path, name):
    files = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        told, rows = written(folder, name, real_rows(name))
        files.append({file: (folder / file).read_bytes() for file in told.files})
    assert files[0] == files[1]
    assert len(rows) == len(real_rows(name))
