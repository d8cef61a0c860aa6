"""Stages that are run again: finished, killed, with other settings, on other inputs, or with files lost."""

import json
import shutil

import pytest

from stages.errors import SepoError
from stages.models.folders import save_model
from stages.reporting import Quiet
from stages.store.manifest import FINISHED
from stages.training.metrics import read_times
from tests.conftest import tiny_llama, word_rows, write_lines
from tests.faults.harness import assert_one_line, outcome, unharmed
from tests.training.fits import Killed, KilledIn
from tests.world import files, manifest, repeatable, run_oracle, run_policy, run_score


def test_a_rerun_with_the_same_seed_gives_the_same_bytes(world, chat_folder, tmp_path):
    run_oracle(world, chat_folder, output=tmp_path / "oracle")
    run_score(tmp_path, dataset=world / "pairs.jsonl")
    run_policy(tmp_path, chat_folder)
    for stage in ("oracle", "scores", "policy"):
        for name in repeatable(world / stage):
            assert (tmp_path / stage / name).read_bytes() == (world / stage / name).read_bytes(), name
        assert manifest(tmp_path / stage)["fingerprint"] == manifest(world / stage)["fingerprint"]


def test_a_finished_stage_is_not_redone(world, chat_folder):
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()}
    summaries = [run_oracle(world, chat_folder), run_score(world), run_policy(world, chat_folder)]
    assert not any(summary.fresh for summary in summaries)
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()} == before


def test_a_different_setting_is_refused_by_name(world, chat_folder):
    with pytest.raises(SepoError, match=r"holds another run: beta is 0\.5 there and 0\.2 here$"):
        run_oracle(world, chat_folder, beta=0.2)
    with pytest.raises(SepoError, match=r"holds another run: max_length is 128 there and 64 here$"):
        run_score(world, max_length=64)
    with pytest.raises(
        SepoError, match=r"chosen_ratio is 0\.3 there and 0\.5 here; gamma is 2\.1 there and 1\.0 here$"
    ):
        run_policy(world, chat_folder, chosen_ratio=0.5, gamma=1.0)


def test_another_data_set_under_the_same_name_is_noticed(world, chat_folder, tmp_path):
    run_score(world, output=tmp_path / "scores", dataset=write_lines(tmp_path / "p.jsonl", word_rows(20)))
    write_lines(tmp_path / "p.jsonl", word_rows(20, seed=1))
    with pytest.raises(SepoError, match=r"the dataset differs$"):
        run_score(world, output=tmp_path / "scores", dataset=tmp_path / "p.jsonl")


def test_settings_that_do_not_decide_the_content_may_change(world, chat_folder):
    assert not run_oracle(world, chat_folder, save_steps=1, logging_steps=3, max_tokens_per_device=512).fresh


def test_stages_share_what_was_tokenised(world, chat_folder, tmp_path, monkeypatch):
    write_lines(tmp_path / "p.jsonl", word_rows(12))
    run_oracle(tmp_path, chat_folder, dataset=tmp_path / "p.jsonl", max_steps=1)
    monkeypatch.setattr("stages.tokens.encode.Encoder.encode_all", None)
    run_score(tmp_path, dataset=tmp_path / "p.jsonl")


@pytest.mark.parametrize(("title", "after"), [("reference", 0), ("oracle, held-out pairs", 0)])
def test_a_killed_oracle_run_ends_like_an_untouched_one(world, chat_folder, tmp_path, title, after):
    with pytest.raises(Killed):
        run_oracle(world, chat_folder, KilledIn(title, after), output=tmp_path / "o", save_steps=2)
    assert not (tmp_path / "o/manifest.json").exists()
    run_oracle(world, chat_folder, output=tmp_path / "o", save_steps=2)
    assert files(tmp_path / "o") == files(world / "oracle")
    for name in repeatable(world / "oracle"):
        assert (tmp_path / "o" / name).read_bytes() == (world / "oracle" / name).read_bytes(), name


def test_an_oracle_from_other_inputs_is_another_run(world, chatml, tmp_path):
    """The content decides, under whatever name."""
    data = {"dataset": tmp_path / "p.jsonl", "sft_dataset": tmp_path / "s.jsonl"}
    given = {"dataset": data["dataset"], "sft_dataset": str(data["sft_dataset"]), "max_steps": 1}
    for file in data.values():
        write_lines(file, word_rows(20))
    save_model(tiny_llama(len(chatml)), chatml, tmp_path / "m")
    run_oracle(world, tmp_path / "m", output=tmp_path / "o", **given)
    for changed, file in data.items():
        write_lines(file, word_rows(20, seed=1))
        with pytest.raises(SepoError, match=f"the {changed} differs$"):
            run_oracle(world, tmp_path / "m", output=tmp_path / "o", **given)
        write_lines(file, word_rows(20))
    save_model(tiny_llama(len(chatml), seed=1), chatml, tmp_path / "m")
    with pytest.raises(SepoError, match=r"the model differs$"):
        run_oracle(world, tmp_path / "m", output=tmp_path / "o", **given)


def test_a_tokenizer_that_cuts_text_otherwise_makes_another_run(world, chatml, tmp_path):
    """With the vocabulary and the template as they were: what is finished must not be taken for what it would be now."""
    for name in ("a", "b"):
        save_model(tiny_llama(len(chatml), seed=ord(name)), chatml, tmp_path / name)
    models = {"oracle": None, "oracle_model": str(tmp_path / "a"), "reference_model": str(tmp_path / "b")}
    run_score(world, output=tmp_path / "s", **models)
    for name in ("a", "b"):
        file = tmp_path / name / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(SepoError, match=r"the tokenization differs$"):
        run_score(world, output=tmp_path / "s", **models)


def test_scores_and_policies_from_other_models_are_other_runs(world, chatml, tmp_path):
    for name in ("a", "b", "p"):
        save_model(tiny_llama(len(chatml), seed=ord(name)), chatml, tmp_path / name)
    models = {"oracle": None, "oracle_model": str(tmp_path / "a"), "reference_model": str(tmp_path / "b")}
    run_score(world, output=tmp_path / "s", **models)
    run_policy(tmp_path, tmp_path / "p", scores="s", output="r", max_steps=1)
    save_model(tiny_llama(len(chatml), seed=5), chatml, tmp_path / "p")
    with pytest.raises(SepoError, match=r"the model differs$"):
        run_policy(tmp_path, tmp_path / "p", scores="s", output="r", max_steps=1)
    save_model(tiny_llama(len(chatml), seed=6), chatml, tmp_path / "a")
    with pytest.raises(SepoError, match=r"the oracle differs$"):
        run_score(world, output=tmp_path / "s", **models)
    run_score(world, output=tmp_path / "s", overwrite=True, **models)
    save_model(tiny_llama(len(chatml), seed=ord("p")), chatml, tmp_path / "p")
    with pytest.raises(SepoError, match=r"the scores differs$"):
        run_policy(tmp_path, tmp_path / "p", scores="s", output="r", max_steps=1)


def test_a_lost_picture_does_not_reopen_a_run(world, chat_folder, tmp_path):
    run_oracle(world, chat_folder, output=tmp_path / "o", max_steps=1)
    for name in ("oracle/curves.png", "reference/README.md"):
        (tmp_path / "o" / name).unlink()
    assert not run_oracle(world, chat_folder, output=tmp_path / "o", max_steps=1).fresh


@pytest.mark.parametrize("stage", ["oracle", "score"])
def test_a_data_set_that_changes_between_its_hash_and_its_reading_is_refused(world, chat_folder, tmp_path, stage):
    """The manifest would name one data set, and the work be done on another."""
    write_lines(tmp_path / "p.jsonl", word_rows(20))

    class Changes(Quiet):
        def say(self, text):
            if text.endswith("prompt and answers as text"):
                write_lines(tmp_path / "p.jsonl", word_rows(20, seed=1))

    run = {"oracle": lambda **given: run_oracle(world, chat_folder, **given), "score": lambda **given: run_score(world, **given)}  # fmt: skip
    with pytest.raises(SepoError, match=r"p\.jsonl was written to while it was read$"):
        run[stage](reporter=Changes(), output=tmp_path / "out", dataset=tmp_path / "p.jsonl")
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize("command", ["score", "train-oracle", "evaluate"])
def test_a_finished_run_that_dropped_rows_is_refused_by_strict(world, tmp_path, command):
    write_lines(tmp_path / "pairs.jsonl", [*word_rows(8), {"prompt": "what?", "chosen": "It is", "rejected": "It is"}])
    one, other = world / "oracle/reference", world / "oracle/oracle"
    given = {
        "score": ("--oracle-model", other, "--reference-model", one, "--output-dir", tmp_path / "out"),
        "train-oracle": ("--model", one, "--sft-epochs", 0, "--eval-fraction", 0, "--output-dir", tmp_path / "out"),
        "evaluate": ("--model", one, "--samples", 0, "--output", tmp_path / "out.json"),
    }[command]
    run = (command, *given, "--dataset", tmp_path / "pairs.jsonl")
    assert outcome(*run).code == 0
    assert "nothing to do" in outcome(*run).out
    with unharmed(tmp_path):
        assert "1 of 9 rows" in assert_one_line(outcome(*run, "--strict"))


def test_a_policy_is_not_trained_again_for_its_card_its_log_or_its_logps(world, chat_folder, tmp_path):
    options = {"objective": "dpo", "select": "confidence", "max_steps": 1, "save_steps": 1}
    options["reference_model"] = str(world / "oracle/oracle")
    run_policy(world, chat_folder, output=tmp_path / "p", **options)
    kept = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    kept |= {"generation_config.json", FINISHED}
    lost = {path.name for path in (tmp_path / "p").iterdir()} - kept
    assert {"README.md", "metrics.jsonl", "reference-logps.parquet", "start-logps.parquet"} <= lost
    before = (tmp_path / "p/model.safetensors").stat().st_ino
    for name in lost:
        (tmp_path / "p" / name).unlink()
    assert not run_policy(world, chat_folder, output=tmp_path / "p", **options).fresh
    assert (tmp_path / "p/model.safetensors").stat().st_ino == before
    (tmp_path / "p/model.safetensors").unlink()
    assert run_policy(world, chat_folder, output=tmp_path / "p", **options).fresh


def test_an_oracle_stays_finished_without_its_log_and_makes_its_logps_anew(world, chat_folder, tmp_path):
    """Those tell which pairs it was trained on, and spare `sepo score` their computation."""
    shutil.copytree(world / "oracle", tmp_path / "oracle")
    (tmp_path / "oracle/metrics.jsonl").unlink()
    again = {"root": world, "model": chat_folder, "output": tmp_path / "oracle"}
    assert not run_oracle(**again).fresh
    models = {path: path.stat().st_ino for path in (tmp_path / "oracle").glob("*/model.safetensors")}
    (tmp_path / "oracle/reference-logps.parquet").unlink()
    assert run_oracle(**again).fresh
    assert {path: path.stat().st_ino for path in models} == models
    logps = [folder / "oracle/reference-logps.parquet" for folder in (tmp_path, world)]
    assert logps[0].read_bytes() == logps[1].read_bytes()
    assert not run_oracle(**again).fresh


@pytest.mark.parametrize(("run", "phase", "lines"), [(run_policy, "sepo", 4), (run_oracle, "dpo", 8)])
def test_the_seconds_of_a_run_are_those_of_all_its_lives(world, chat_folder, tmp_path, run, phase, lines):
    """The first life's log is made to say that every step took 1000 seconds; of its last step there is no checkpoint."""
    options = {"output": tmp_path / "out", "max_steps": 4, "save_steps": 3, "logging_steps": 1}
    with pytest.raises(Killed):
        run(world, chat_folder, reporter=KilledIn(phase, 3), **options)
    long = [line | {"seconds": 1000.0} for line in read_times(tmp_path / "out")]
    assert len(long) == lines
    (tmp_path / "out/timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in long))
    run(world, chat_folder, **options)
    made_by = json.loads((tmp_path / "out/manifest.json").read_text())["made_by"]
    assert lines * 1000 < made_by["seconds"] < lines * 1000 + 900
    assert made_by["peak_host_memory_mb"] > 50
