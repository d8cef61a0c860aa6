"""A user's mistakes: each one line and a hint, exit code 1, no traceback, and nothing half-written."""

import json

import pytest

from stages.models.folders import save_model
from tests.conftest import CHATML, byte_level_tokenizer, tiny_llama, word_rows, write_lines


@pytest.fixture
def ends_well(sepo, tmp_path):
    """Run a command that must fail, check the form of its error, and give the message."""

    def run(*arguments, untouched=None):
        output = tmp_path / "out" if untouched is None else untouched
        before = snapshot(output)
        code, out, err = sepo(*arguments)
        lines = err.splitlines()
        message = next(line for line in lines if line.startswith("error: "))
        assert code == 1
        assert out == ""
        assert "Traceback" not in err
        assert lines[-1].startswith("hint:  ")
        assert len(lines[-1]) > 10
        after = snapshot(output)
        assert after == before or set(after) - set(before) == {"manifest.unfinished.json"}
        return message.removeprefix("error: ")

    return run


def snapshot(folder):
    if not folder.is_dir():
        return {}
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def oracle(chat_folder, dataset, tmp_path, *more):
    settings = ["--batch-size", 8, "--sft-epochs", 0, *more]
    return ["train-oracle", "--model", chat_folder, "--dataset", dataset, "--output-dir", tmp_path / "out", *settings]


def text(content):
    return lambda path: path.write_text(content, encoding="utf-8")


GOOD = json.dumps({"prompt": "what is it?", "chosen": "It is Paris", "rejected": "sorry"}) + "\n"


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("none.jsonl", lambda path: None, "none.jsonl: no such file"),
        ("p.jsonl", text(GOOD + '{"prompt": "a", "chosen":\n'), "p.jsonl:2: "),
        ("p.jsonl", text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n' * 3), "no pair is left: 3 rows = 0 kept + 3 dropped (3 chosen equals rejected)"),
    ],
)  # fmt: skip
def test_a_data_set_that_cannot_be_used(ends_well, chat_folder, tmp_path, name, write, said):
    write(tmp_path / name)
    message = ends_well(*oracle(chat_folder, tmp_path / name, tmp_path))
    assert said in message


def test_unusable_rows_are_dropped_counted_and_shown(sepo, chat_folder, tmp_path):
    rows = [
        *word_rows(12),
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "", "rejected": "b"},
    ]
    write_lines(tmp_path / "p.jsonl", rows)
    code, out, err = sepo(*oracle(chat_folder, tmp_path / "p.jsonl", tmp_path))
    assert code == 0
    assert "14 rows = 12 kept + 2 dropped (1 chosen equals rejected, 1 empty response)" in err
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]["dataset"]
    assert counts["dropped"] == {"chosen equals rejected": 1, "empty response": 1}
    assert "held-out accuracy" in out


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--data-fraction", "1.5", "data_fraction must be in (0, 1], got 1.5"),
        ("--data-fraction", "0", "data_fraction must be in (0, 1], got 0.0"),
        ("--eval-fraction", "1", "eval_fraction must be in [0, 1), got 1.0"),
        ("--beta", "-1", "beta must be above 0 and finite, got -1.0"),
        ("--batch-size", "0", "batch_size must be at least 1, got 0"),
        ("--num-train-epochs", "0", "num_train_epochs must be at least 1, got 0"),
        ("--warmup-ratio", "2", "warmup_ratio must be in [0, 1], got 2.0"),
        ("--lr-scheduler-type", "cosin", "lr_scheduler_type must be one of cosine, linear"),
        ("--overlong", "cut", "overlong must be one of drop, truncate, error, got 'cut'"),
        ("--columns", "prompt", "columns must be like prompt=question,chosen=good,rejected=bad, got 'prompt'"),
        ("--max-length", "1", "max_length must be at least 2, got 1"),
    ],
)
def test_an_oracle_option_out_of_range(ends_well, chat_folder, tmp_path, option, value, said):
    assert said in ends_well(*oracle(chat_folder, "any.jsonl", tmp_path, option, value))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--chosen-ratio", "1.5", "chosen_ratio must be in (0, 1], got 1.5"),
        ("--chosen-ratio", "0", "chosen_ratio must be in (0, 1], got 0.0"),
        ("--rejected-ratio", "-0.3", "rejected_ratio must be in (0, 1], got -0.3"),
        ("--gamma", "0", "gamma must be above 0 and finite, got 0.0"),
        ("--margin", "-1", "margin must be at least 0 and finite, got -1.0"),
        ("--objective", "sepp", "rrhf, regress, sft, got 'sepp' (did you mean sepo?)"),
        ("--beta", "0.1", "beta is no option of objective sepo; dpo, ipo, r-dpo, tdpo1, tdpo, cpo, orpo have it"),
        ("--threshold", "0.1", "threshold is no option of select oracle; threshold has it"),
        (
            "--reference-model",
            "m",
            "reference_model is not used by objective sepo as it is set; dpo, ipo, r-dpo, tdpo1, tdpo",
        ),
        ("--select", "best", "auto, column, got 'best'"),
    ],
)
def test_a_policy_option_out_of_range(ends_well, world, chat_folder, tmp_path, option, value, said):
    arguments = ["--model", chat_folder, "--scores", world / "scores", "--output-dir", tmp_path / "out"]
    assert said in ends_well("train-policy", *arguments, option, value)


def test_several_faults_are_told_at_once(ends_well, chat_folder, tmp_path):
    message = ends_well(*oracle(chat_folder, "any.jsonl", tmp_path, "--beta", "0", "--max-length", "0"))
    assert message == "max_length must be at least 2, got 0; beta must be above 0 and finite, got 0.0"


def test_an_oracle_and_a_reference_with_two_vocabularies(ends_well, world, tmp_path):
    other = byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|pad|>")
    save_model(tiny_llama(len(other)), other, tmp_path / "other")
    models = ["--oracle-model", world / "oracle/oracle", "--reference-model", tmp_path / "other"]
    message = ends_well("score", *models, "--dataset", world / "pairs.jsonl", "--output-dir", tmp_path / "out")
    assert "oracle and reference do not share a token->id map" in message


def test_only_pairs_that_are_too_long(ends_well, world, chat_folder, tmp_path):
    arguments = ["--model", chat_folder, "--scores", world / "scores", "--output-dir", tmp_path / "out"]
    assert "all 40 pairs are longer than 5 tokens" in ends_well("train-policy", *arguments, "--max-length", 5)
