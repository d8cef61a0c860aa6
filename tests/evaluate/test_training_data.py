"""Held-out pairs that a model was trained on are counted."""

import json
import shutil

import pytest

from stages.data.training import hashes_of, recorded_sources, trained_on
from stages.model.folders import tokenizer_hash
from stages.store.scores import open_scores
from tests.evaluate.conftest import Ear
from tests.world import run_oracle


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


def test_fresh_pairs_are_no_overlap(run):
    ear = Ear()
    run(ear, samples=0)
    assert not [warning for warning in ear.warnings if "trained on" in warning]
    assert "reference: nothing is known of its training pairs; --training-data names them" not in ear.said


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
    assert recorded_sources(world / "policy") == [str(world / "scores")]
    assert recorded_sources(world / "oracle/oracle") == [str(world / "oracle")]
    assert recorded_sources(world / "oracle/reference") == [str(world / "oracle")]


def test_a_reference_that_was_taken_as_it_is_has_seen_nothing(world, chat_folder, tmp_path):
    run_oracle(tmp_path, chat_folder, dataset=world / "pairs.jsonl", sft_epochs=0, max_steps=1)
    assert recorded_sources(tmp_path / "oracle/reference") == []
    assert recorded_sources(tmp_path / "oracle/oracle") == [str(tmp_path / "oracle")]


def test_training_data_in_other_ids_or_gone_is_told(run, world, chatml, tmp_path):
    hashes = hashes_of([row.pair for row in open_scores(world / "scores").rows()])
    [found] = trained_on(str(world / "scores"), tokenizer_hash(chatml), list)
    assert set(found.hashes) == set(hashes)
    [found] = trained_on(str(world / "scores"), "another", list)
    assert (found.hashes, found.why_not) == (None, "its tokenizer or chat template is another one")
    shutil.copytree(world / "policy", tmp_path / "policy")
    manifest = json.loads((tmp_path / "policy/manifest.json").read_text())
    manifest["input_names"]["scores"] = str(tmp_path / "gone")
    (tmp_path / "policy/manifest.json").write_text(json.dumps(manifest))
    ear = Ear()
    run(ear, models=[tmp_path / "policy"], samples=0)
    assert any(f"policy: whether {tmp_path / 'gone'} overlaps the data set is unknown" in each for each in ear.warnings)
