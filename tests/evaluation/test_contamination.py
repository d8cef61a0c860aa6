"""Held-out pairs that a model was trained on are counted."""

import json
import shutil
from types import SimpleNamespace

import pytest

from stages.configs import EvaluateConfig
from stages.evaluation.contamination import TrainedOn, training_history, training_pairs
from stages.evaluation.held_out import hashes_of
from stages.reporting import Quiet
from stages.store.scores import open_scores
from stages.tokens.fingerprint import tokenizer_hash
from tests.evaluation.conftest import Ear
from tests.world import run_oracle, run_policy


def test_pairs_that_were_trained_on_are_counted(run, world):
    """The oracle held out a fifth of its 40 pairs; the policy was trained on all that were scored."""
    ear = Ear()
    run(ear, dataset=str(world / "pairs.jsonl"), samples=0)
    trained = json.loads((world / "oracle/manifest.json").read_text())["counts"]["train"]
    assert 0 < trained < 40
    assert (
        f"oracle was trained on {trained} of the 40 pairs ({trained / 40:.1%}): what they say of it is too good"
        in ear.warnings
    )
    assert "policy was trained on 40 of the 40 pairs (100.0%): what they say of it is too good" in ear.warnings


@pytest.mark.parametrize("options", [{}, {"max_length": 22}])
def test_pairs_that_a_policy_held_out_were_not_trained_on(run, world, chat_folder, tmp_path, options):
    """It is trained on those of the pairs short enough for it that its split did not hold out."""
    run_policy(tmp_path, chat_folder, scores_dir=str(world / "scores"), eval_fraction=0.25, **options)
    counts = json.loads((tmp_path / "policy/manifest.json").read_text())["counts"]
    trained = counts["kept"] - counts["held_out"]
    assert 0 < trained < counts["kept"] <= 40
    ear = Ear()
    run(ear, models=[tmp_path / "policy"], reference_model=None, dataset=str(world / "pairs.jsonl"), samples=0)
    [said] = [warning for warning in ear.warnings if "trained on" in warning]
    assert said.startswith(f"policy was trained on {trained} of the 40 pairs")


def test_fresh_pairs_are_no_overlap(run):
    ear = Ear()
    run(ear, samples=0)
    assert not [warning for warning in ear.warnings if "trained on" in warning]


@pytest.mark.parametrize("source", ["oracle", "oracle/manifest.json", "scores", "policy", "pairs.jsonl"])
def test_training_data_can_be_named(run, world, chat_folder, source):
    ear = Ear()
    run(
        ear, models=[f"start={chat_folder}"], reference_model=None, samples=0,
        dataset=str(world / "pairs.jsonl"), training_data=(str(world / source),),
    )  # fmt: skip
    expected = json.loads((world / "oracle/manifest.json").read_text())["counts"]["train"] if "oracle" in source else 40
    assert any(warning.startswith(f"start was trained on {expected} of the 40 pairs") for warning in ear.warnings)


def test_where_a_model_comes_from(world):
    """The policy from the scores and, as its start was the untrained model, from nothing else."""
    assert names_of(world / "policy") == [str(world / "scores")]
    assert names_of(world / "oracle/oracle") == [str(world / "oracle")]
    assert names_of(world / "oracle/reference") == [str(world / "oracle")]


def test_a_reference_that_was_taken_as_it_is_has_seen_nothing(world, chat_folder, tmp_path):
    run_oracle(tmp_path, chat_folder, dataset=world / "pairs.jsonl", sft_epochs=0, max_steps=1)
    assert names_of(tmp_path / "oracle/reference") == []
    assert names_of(tmp_path / "oracle/oracle") == [str(tmp_path / "oracle")]


def test_training_data_in_other_ids_or_gone_is_told(run, world, chatml, tmp_path):
    def found(tokenizer):
        held_out = SimpleNamespace(tokenizer_hash=tokenizer)
        return training_pairs(TrainedOn(str(world / "scores")), held_out, EvaluateConfig(), Quiet())

    hashes = hashes_of([row.pair for row in open_scores(world / "scores").rows()])
    assert set(found(tokenizer_hash(chatml))) == set(hashes)
    assert found("another") == "its tokenizer or chat template is another one"
    shutil.copytree(world / "policy", tmp_path / "policy")
    manifest = json.loads((tmp_path / "policy/manifest.json").read_text())
    manifest["input_names"]["scores"] = str(tmp_path / "gone")
    (tmp_path / "policy/manifest.json").write_text(json.dumps(manifest))
    ear = Ear()
    run(ear, models=[tmp_path / "policy"], samples=0)
    assert any(f"policy: whether {tmp_path / 'gone'} overlaps the data set is unknown" in each for each in ear.warnings)


def test_a_snapshot_of_a_policy_was_trained_on_the_same(run, world, tmp_path):
    place = tmp_path / "policy/snapshots/step-00000002"
    shutil.copytree(world / "policy", tmp_path / "policy")
    shutil.copytree(world / "policy", place, ignore=shutil.ignore_patterns("manifest.json"))
    assert names_of(place) == [str(world / "scores")]
    ear = Ear()
    run(ear, models=[place], reference_model=None, dataset=str(world / "pairs.jsonl"), samples=0)
    assert any(each.startswith("step-00000002 was trained on 40 of the 40 pairs") for each in ear.warnings)


def names_of(model):
    return [source.name for source in training_history(model)[0]]


@pytest.fixture
def moved(world, tmp_path):
    """A run made inside of `home`, as its relative names say; another folder has scores of the same name."""
    for part in ("oracle", "scores", "policy"):
        shutil.copytree(world / part, tmp_path / "home/runs" / part)
    shutil.copytree(world / "scores", tmp_path / "other/runs/scores")
    manifest = tmp_path / "other/runs/scores/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "another"}))
    manifest = tmp_path / "home/runs/policy/manifest.json"
    record = json.loads(manifest.read_text())
    record["input_names"] |= {"scores": "runs/scores", "model": "runs/oracle/oracle"}
    manifest.write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize("folder", ["home", "home/runs", "other", "."])
def test_relative_names_are_found_from_anywhere(moved, monkeypatch, folder):
    monkeypatch.chdir(moved / folder)
    found = [moved / "home" / name for name in ("runs/scores", "runs/oracle")]
    recorded, _ = training_history(moved / "home/runs/policy")
    assert [(moved / folder / each.name).resolve() for each in recorded] == found
    assert not any(each.lost for each in recorded)


def test_scores_that_are_others_now_are_told(run, moved, monkeypatch):
    monkeypatch.chdir(moved / "other")
    shutil.rmtree(moved / "home/runs/scores")
    ear = Ear()
    run(ear, models=[moved / "home/runs/policy"], reference_model=None, samples=0)
    said = "policy: whether runs/scores overlaps the data set is unknown: it is not there, or holds other scores now"
    assert said in ear.warnings


def test_where_the_walk_ends_is_told(run, world, chat_folder):
    ear = Ear()
    run(ear, samples=0)
    words = f"nothing is known of what {chat_folder} was trained on (behind reference, policy, oracle)"
    assert f"{words}; --training-data names it" in ear.said
    assert training_history(chat_folder) == ([], str(chat_folder))
    ear = Ear()
    run(ear, samples=0, training_data=(str(world / "scores"),))
    assert not [each for each in ear.said if "nothing is known" in each]
