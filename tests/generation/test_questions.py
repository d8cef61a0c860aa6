"""Prompts of any file: which columns are asked, and what is refused, in one line, before a model loads."""

import tracemalloc

import pytest

from stages import generate
from stages.configs import GenerateConfig
from stages.errors import SepoError
from stages.generation.questions import Question, count_questions, read_questions
from stages.models import loading
from stages.reporting import Quiet
from tests.conftest import REAL, byte_level_tokenizer, tiny_llama, write_lines

USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("row", "messages", "later"),
    [
        ({"prompt": "u"}, [USER], ()),
        ({"prompt": [SYSTEM, USER], "chosen": "c", "rejected": "r"}, [SYSTEM, USER], ()),
        ({"prompt": "\n\nHuman: u\n\nAssistant: a\n\nHuman: u\n\nAssistant:"}, [USER, ASSISTANT, USER], ()),
        ({"prompt": "u", "messages": [SYSTEM, USER, ASSISTANT]}, [USER], ()),
        ({"instruction": "u", "input": "", "output": "o"}, [USER], ()),
        ({"turns": ["u", "v", "w"]}, [USER], ("v", "w")),
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, [USER, ASSISTANT, USER], ()),
        ({"messages": [USER], "system": "s"}, [SYSTEM, USER], ()),
    ],
)
def test_what_a_row_asks(row, messages, later, tmp_path):
    [question] = read_questions(str(write_lines(tmp_path / "p.jsonl", [row])))
    assert (question.messages, question.later_turns, question.row) == (messages, later, row)


@pytest.mark.parametrize("column", ["id", "prompt_id", "question_id", "uid", "key"])
def test_ids_are_the_rows_own(column, tmp_path):
    file = write_lines(
        tmp_path / "p.jsonl", [{"prompt": "a", column: 81}, {"prompt": "b", column: "x"}, {"prompt": "c"}]
    )
    assert [question.question_id for question in read_questions(str(file))] == ["81", "x", "2"]
    assert [question.number for question in read_questions(f"{file}[1:]")] == [1, 2]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "u"}, "p.jsonl:2: nothing to ask; its columns are text"),
        ({"prompt": " "}, "p.jsonl:2: empty prompt"),
        ({"prompt": 7}, 'p.jsonl:2: "prompt" is a number, not text or a list of turns'),
        ({"prompt": []}, "p.jsonl:2: the prompt has no turn"),
        ({"prompt": [USER, ASSISTANT]}, "p.jsonl:2: roles out of order"),
        ({"prompt": "\ud800"}, "p.jsonl:2: broken Unicode"),
        ({"instruction": ["u"]}, 'p.jsonl:2: "instruction" is a list, not text'),
        ({"instruction": "u", "input": "v"}, 'p.jsonl:2: "input" is not asked with'),
        ({"prompt": "u", "tools": [{"type": "function"}]}, 'p.jsonl:2: "tools" is not asked with'),
        ({"turns": []}, 'p.jsonl:2: "turns" is an empty list'),
        ({"turns": ["u", ""]}, "p.jsonl:2: turn 2 of 2 is empty"),
        ({"turns": ["u", None]}, "p.jsonl:2: turn 2 of 2 is null, not text"),
        ({"messages": []}, "p.jsonl:2: the prompt has no turn"),
        ({"messages": [{"role": "user"}]}, 'p.jsonl:2: "messages" turn 1 has no "content"'),
        ({"prompt": "u", "id": "\udc80"}, "row 1 (from 0) of the prompts: broken Unicode"),
        ({"turns": ["u", "\udc80"]}, "row 1 (from 0) of the prompts: broken Unicode"),
        ({"prompt": "u", "id": 1.5}, 'p.jsonl:2: "id" is a number, and no id'),
        ({"prompt": "u", "id": "one"}, "rows 0 and 1 (from 0) have the same id 'one'"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(row, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines("p.jsonl", [{"prompt": "u", "id": "one"}, row])
    with pytest.raises(SepoError) as caught:
        count_questions(lambda: read_questions("p.jsonl"), 64)
    assert caught.value.message.startswith(problem)
    assert "\n" not in caught.value.message + caught.value.hint


def test_questions_are_counted_by_shard(tmp_path):
    rows = [{"turns": ["u"] * (1 + number % 3)} for number in range(7)]
    file = str(write_lines(tmp_path / "p.jsonl", rows))
    counts = count_questions(lambda: read_questions(file), 3)
    assert counts[:4] == (7, [6, 6, 1], 1, 0)
    assert count_questions(lambda: read_questions(file), 1).answers == [1, 2, 3, 1, 2, 3, 1]


def test_many_prompts_need_no_more_memory_than_their_hashes():
    def questions():
        text = "x" * 10_000
        return (Question(n, str(n), [{"role": "user", "content": f"{n} {text}"}], (), None, {}) for n in range(20_000))

    tracemalloc.start()
    try:
        assert count_questions(questions, 64).questions == 20_000
        assert tracemalloc.get_traced_memory()[1] < 50 * 20_000
    finally:
        tracemalloc.stop()


def config(folder, **options):
    settings = {"prompts": str(folder / "p.jsonl"), "output_dir": str(folder / "out"), **options}
    return GenerateConfig(**settings)


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        (("a=M", "a=M"), "two models are named 'a'"),
        (("../x=M",), "the model name '../x' cannot be the name of a file"),
        (("a b=M",), "the model name 'a b' cannot be"),
        (("-n=M",), "the model name '-n' cannot be"),
        (("data=M",), "the model name 'data' is the name of what else lies in the output folder"),
        (("mt_bench=M",), "the model name 'mt_bench' is the name"),
        (("arena_hard=M",), "the model name 'arena_hard' is the name"),
        (("manifest.json=M",), "the model name 'manifest.json' is the name"),
        (("next-steps.sh=M",), "the model name 'next-steps.sh' is the name"),
        (("a=./nowhere",), "there is no model folder ./nowhere"),
    ],
)
def test_models_need_names_for_their_files(models, problem, tmp_path, chat_folder):
    write_lines(tmp_path / "p.jsonl", [{"prompt": "u"}])
    with pytest.raises(SepoError) as caught:
        generate.run(config(tmp_path, models=tuple(item.replace("M", str(chat_folder)) for item in models)), Quiet())
    assert caught.value.message.startswith(problem)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"base_url": "http://x"}, "base_url is no option of engine transformers; openai has it"),
        ({"concurrency": 2}, "concurrency is no option of engine transformers; openai has it"),
        ({"engine": "openai"}, "engine openai needs base_url"),
        ({"engine": "openai", "base_url": "u", "precision": "bfloat16"}, "precision is no option of engine openai"),
        ({"engine": "openai", "base_url": "u", "trust_remote_code": True}, "trust_remote_code is no option of"),
        ({"engine": "vllm", "max_tokens_per_device": 9}, "max_tokens_per_device is no option of engine vllm"),
        ({"engine": "vllm", "device_map": "tensor-parallel"}, "device_map is no option of engine vllm"),
        ({"temperature": 0.0, "samples": 2}, "temperature 0 gives the same answer every time: 2 samples"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, problem, tmp_path):
    with pytest.raises(SepoError, match=problem):
        config(tmp_path, models=("m",), **options)


def refusal(config):
    with pytest.raises(SepoError) as caught:
        generate.run(config, Quiet())
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value.message, caught.value.hint


def test_what_is_not_to_be_had_is_said_before_anything_is_written(tmp_path, chat_folder):
    write_lines(tmp_path / "p.jsonl", [{"turns": ["u", "v"]}])
    asks = {"models": (f"m={chat_folder}",)}
    message, hint = refusal(config(tmp_path, engine="vllm", **asks))
    assert message == "--engine vllm needs vllm, which is not installed"
    message, hint = refusal(config(tmp_path, prompts=None, benchmark="ifeval", **asks))
    assert message.startswith("cannot fetch the prompts of IFEval from the hub")
    assert "--prompts FILE" in hint
    message, _ = refusal(config(tmp_path, benchmark="mt-bench", **asks))
    assert "no column" in message
    if (REAL / "prompts").is_dir():
        questions = str(REAL / "prompts/mt_bench_question.jsonl.gz")
        message, hint = refusal(config(tmp_path, prompts=questions, benchmark="alpaca-eval", **asks))
        assert (message.partition(": ")[2], hint) == (
            "a row of mt-bench, not of alpaca-eval",
            "give --benchmark mt-bench",
        )
        asks["samples"] = 2
        message, _ = refusal(config(tmp_path, prompts=ifeval(), benchmark="ifeval", **asks))
        assert message == "2 samples at temperature 0, which is usual for ifeval, would be alike"
    assert not (tmp_path / "out").exists()


def ifeval():
    return str(REAL / "prompts/ifeval_input_data.jsonl.gz")


def test_a_model_without_a_chat_template_is_refused_before_its_weights_are_read(tmp_path, monkeypatch):
    tokenizer = byte_level_tokenizer(None, eos_token="<|im_end|>")
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    monkeypatch.setattr(loading, "load_model", None)
    write_lines(tmp_path / "p.jsonl", [{"prompt": "u"}, {"turns": ["u", "v"]}])
    message, _ = refusal(config(tmp_path, models=(str(tmp_path / "m"),)))
    assert message == "m has no chat template, and row 1 of the prompts has several turns"
