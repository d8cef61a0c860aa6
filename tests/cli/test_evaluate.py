"""`sepo evaluate` as a program: what it shows, what it writes, and how it refuses."""

import json
import shutil

import pytest

from tests.conftest import word_rows, write_lines


@pytest.fixture
def run(sepo, tmp_path):
    def run(*options, models=(), dataset=None, rows=None):
        rows = word_rows(31, seed=9) if rows is None else rows
        dataset = dataset or write_lines(tmp_path / "held-out.jsonl", rows)
        named = [part for model in models for part in ("--model", model)]
        return sepo("evaluate", *named, "--dataset", dataset, "--max-length", 128, "--max-new-tokens", 4, *options)

    return run


@pytest.fixture
def refused(run):
    """Run what must fail, check the form of its error, and give message and hint."""

    def refused(*options, code=1, **given):
        found, out, err = run(*options, **given)
        assert (found, out) == (code, "")
        assert "Traceback" not in err
        message, hint = err.splitlines()[-2:]
        return message.removeprefix("error: "), hint.removeprefix("hint:  ")

    return refused


def test_one_model(run, world):
    code, out, err = run("--samples", 0, models=[world / "policy"])
    assert code == 0
    assert out.startswith("evaluation\n")
    assert "| policy | 1.000 [1.000, 1.000] | " in out
    for absent in ("KL from the reference", "samples of each model, at", "Differences"):
        assert absent not in out
    assert "error" not in err


@pytest.mark.parametrize("spelling", ["--model", "--compare"])
def test_several_models(run, world, tmp_path, spelling):
    code, out, _ = run(
        spelling, world / "policy", spelling, f"dpo={world / 'oracle/oracle'}",
        "--reference-model", world / "oracle/reference", "--samples", 3, "--output", tmp_path / "e.json",
    )  # fmt: skip
    assert code == 0
    for words in (
        "share of 31 held-out pairs (95% bootstrap interval)",
        "| reference | 0.500 [0.500, 0.500] |",
        "3 samples of each model, at temperature 1",
        "| dpo - policy | ",
        "not corrected for 3 comparisons",
        "dpo vs reference ",
        "3 samples are few",
    ):
        assert words in out
    report = json.loads((tmp_path / "e.json").read_text())
    assert list(report["models"]) == ["reference", "policy", "dpo"]
    assert list(report["files"]) == ["e.pairs.parquet", "e.samples.parquet"]
    assert report["made_by"]["versions"]["torch"]
    assert {path.name for path in tmp_path.iterdir()} == {"held-out.jsonl", "e.json", *report["files"]}


def test_models_in_a_configuration_file(sepo, run, world, tmp_path):
    dataset = write_lines(tmp_path / "p.jsonl", word_rows(31, seed=9))
    (tmp_path / "c.yaml").write_text(
        f"model: [a={world / 'policy'}]\ndataset: {dataset}\nsamples: 0\ntraining-data: {world / 'scores'}\n"
    )
    code, out, _ = sepo("evaluate", "--config", tmp_path / "c.yaml")
    assert code == 0
    assert "| a | 1.000 [1.000, 1.000] | " in out


def test_what_is_missing(sepo, world):
    code, _, err = sepo("evaluate")
    assert code == 2
    assert "sepo evaluate needs --model, --dataset (or --demo)" in err
    assert sepo("evaluate", "--model", world / "policy")[2].count("needs --dataset (or --demo)") == 1


def test_two_models_of_one_name(refused, world, tmp_path):
    shutil.copytree(world / "oracle/oracle", tmp_path / "policy")
    message, hint = refused(models=[world / "policy", tmp_path / "policy"])
    assert message == "two models are named 'policy'"
    assert "--model NAME=FOLDER" in hint


def test_one_model_twice(refused, world):
    message, _ = refused(models=[f"a={world / 'policy'}", f"b={world / 'policy'}"])
    assert message == "a and b are one and the same model"


def test_a_model_that_only_says_it_is_the_reference(refused, world):
    given = ["--reference-model", world / "oracle/reference"]
    message, _ = refused(*given, models=[f"reference={world / 'policy'}"])
    assert message.startswith("a model is named 'reference' and is not the reference")


def test_the_folder_of_an_oracle_is_no_model(refused, world):
    message, hint = refused(models=[world / "oracle"])
    assert message.endswith("oracle is no model folder: it has no config.json")
    assert (
        hint == f"it is a folder of `sepo train-oracle`: give {world / 'oracle/oracle'} or {world / 'oracle/reference'}"
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], ": no rows"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}] * 3, "no pair is left: 3 rows = 0 kept + 3 dropped"),
        ([row | {"prompt": "a"} for row in word_rows(3)], "3 pairs of one prompt are too few"),
        (word_rows(1), "1 pair is too few: an interval needs at least 2 prompts (1 row = 1 kept + 0 dropped)"),
    ],
)
def test_too_little_data(refused, world, rows, said):
    message, _ = refused(models=[world / "policy"], rows=rows)
    assert "held-out.jsonl" in message
    assert said in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--samples", 1], "samples must be 0 (none) or at least 2, got 1"),
        (["--max-new-tokens", 0], "max_new_tokens must be at least 1, got 0"),
        (
            ["--samples", 0, "--demo", "d"],
            "demo tells the true reward of samples: samples must be at least 2 with it, got 0",
        ),
    ],
)
def test_an_option_out_of_range(refused, options, said):
    assert refused(*options, models=["m"])[0] == said


def test_strict(refused, world):
    rows = [*word_rows(9), {"prompt": "a", "chosen": "b", "rejected": "b"}]
    assert "1 of 10 rows would be dropped" in refused("--strict", models=[world / "policy"], rows=rows)[0]


def test_columns(run, world):
    rows = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in word_rows(3)]
    given = ["--columns", "prompt=q,chosen=good,rejected=bad", "--samples", 0]
    assert run(*given, models=[world / "policy"], rows=rows)[0] == 0


def test_what_is_no_demo(refused, world):
    assert refused("--demo", world / "scores", models=[world / "policy"])[0].endswith("not by `sepo make-demo`")


def test_training_data_that_is_none(refused, world, demo_folder, tmp_path):
    assert "no such file" in refused("--training-data", tmp_path / "none.jsonl", models=[world / "policy"])[0]
    message, _ = refused("--training-data", demo_folder, models=[world / "policy"])
    assert message == f"{demo_folder} holds no pairs that a model was trained on"


@pytest.fixture
def demo_folder(sepo, tmp_path):
    assert sepo("make-demo", "--output-dir", tmp_path / "demo", "--train-pairs", 2, "--test-pairs", 2)[0] == 0
    return tmp_path / "demo"
