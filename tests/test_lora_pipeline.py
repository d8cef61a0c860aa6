"""The stages with adapters: what is written, on what base, and that it is read again as what was trained."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM

from stages import train_oracle, train_policy
from stages.errors import SepoError
from stages.models import loading
from stages.models.folders import load_model, model_hash
from stages.store.scores import open_scores
from tests import reference
from tests.conftest import word_rows, write_lines
from tests.world import MODEL_FILES, files, run_oracle, run_policy, run_score, weights

LORA = {"lora_rank": 4, "learning_rate": 3e-2}
CARD = {"README.md", "curves.png"}
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"} | {
    name for name in MODEL_FILES if "token" in name or "chat" in name
}


@pytest.fixture(scope="module")
def lora_world(tmp_path_factory, chat_folder):
    """A finished run of all three stages with adapters, to look at and not to touch."""
    root = tmp_path_factory.mktemp("lora-world")
    write_lines(root / "pairs.jsonl", word_rows(40))
    run_oracle(root, chat_folder, **LORA)
    run_score(root)
    run_policy(root, chat_folder, **LORA)
    return root


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits


def test_an_oracle_is_an_adapter_on_its_reference_which_is_an_ordinary_folder(lora_world):
    assert files(lora_world / "oracle/oracle") == ADAPTER_FILES | CARD
    assert files(lora_world / "oracle/reference") == MODEL_FILES | CARD
    config = json.loads((lora_world / "oracle/oracle/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((lora_world / "oracle/reference").resolve())
    assert config["target_modules"] == sorted(config["target_modules"])


def test_scores_are_those_of_the_merged_oracle_with_one_model_in_memory(lora_world, tmp_path, monkeypatch):
    loaded, load = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda folder, **how: loaded.append(folder.name) or load(folder, **how))
    run_score(lora_world, output=tmp_path / "again")
    assert set(loaded) <= {"reference"}
    oracle, base = (
        load_model(lora_world / "oracle" / name, trust_remote_code=False) for name in ("oracle", "reference")
    )
    for row in list(open_scores(tmp_path / "again").rows())[::9]:
        ours, theirs = (
            reference.response_logps(model, row.pair.prompt_ids, row.pair.chosen_ids) for model in (oracle, base)
        )
        np.testing.assert_allclose(row.scores.chosen, reference.scores(ours, theirs), atol=3e-5)
        assert np.abs(row.scores.chosen).max() > 0.01


def test_a_policy_is_an_adapter_that_peft_loads_by_itself(lora_world, chat_folder):
    assert files(lora_world / "policy") == ADAPTER_FILES | CARD | {"metrics.jsonl", "timing.jsonl", "manifest.json"}
    assert "library_name: peft" in (lora_world / "policy/README.md").read_text()
    ours = logits(load_model(lora_world / "policy", trust_remote_code=False))
    torch.testing.assert_close(
        logits(AutoPeftModelForCausalLM.from_pretrained(lora_world / "policy")), ours, atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(ours, logits(load_model(chat_folder, trust_remote_code=False)), atol=1e-2)


def test_merged_on_request_it_is_the_same_model_in_an_ordinary_folder(lora_world, chat_folder, tmp_path):
    run_policy(lora_world, chat_folder, output=tmp_path / "policy", merge=True, **LORA)
    assert files(tmp_path / "policy") == MODEL_FILES | CARD | {"metrics.jsonl", "timing.jsonl", "manifest.json"}
    torch.testing.assert_close(weights(tmp_path / "policy"), weights(lora_world / "policy"), atol=1e-6, rtol=1e-5)
    run_oracle(lora_world, chat_folder, output=tmp_path / "oracle", merge=True, **LORA)
    assert files(tmp_path / "oracle/oracle") == MODEL_FILES | CARD
    torch.testing.assert_close(
        weights(tmp_path / "oracle/oracle"), weights(lora_world / "oracle/oracle"), atol=1e-6, rtol=1e-5
    )


def test_the_same_settings_elsewhere_give_the_same_model_which_moves_with_its_reference(
    lora_world, chat_folder, tmp_path
):
    run_oracle(lora_world, chat_folder, output=tmp_path / "before", **LORA)
    for name in ("oracle/adapter_model.safetensors", "reference/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "before" / name).read_bytes() == (lora_world / "oracle" / name).read_bytes()
    assert model_hash(tmp_path / "before/oracle") == model_hash(lora_world / "oracle/oracle")
    shutil.move(tmp_path / "before", tmp_path / "after")
    assert torch.equal(weights(tmp_path / "after/oracle"), weights(lora_world / "oracle/oracle"))


def test_an_oracle_that_is_written_but_not_judged_is_not_trained_again(lora_world, chat_folder, tmp_path, monkeypatch):
    shutil.copytree(lora_world / "oracle", tmp_path / "oracle")
    manifest = json.loads((tmp_path / "oracle/manifest.json").read_text())
    (tmp_path / "oracle/manifest.json").rename(tmp_path / "oracle/manifest.unfinished.json")
    monkeypatch.setattr(train_oracle, "fit", None)
    run_oracle(lora_world, chat_folder, output=tmp_path / "oracle", **LORA)
    assert json.loads((tmp_path / "oracle/manifest.json").read_text())["results"] == manifest["results"]


def test_a_policy_that_starts_from_an_adapter_is_merged_first(lora_world, tmp_path):
    start = lora_world / "policy"
    with pytest.raises(SepoError, match="is an adapter already, and an adapter on an adapter has no base") as found:
        run_policy(lora_world, start, output=tmp_path / "policy", **LORA)
    assert "--merge" in found.value.hint
    with pytest.raises(SepoError, match="is an adapter, which cannot be quantised"):
        run_policy(lora_world, start, output=tmp_path / "policy", quantize="4bit", merge=True, **LORA)
    run_policy(lora_world, start, output=tmp_path / "policy", merge=True, learning_rate=1e-9, lora_rank=4)
    torch.testing.assert_close(weights(tmp_path / "policy"), weights(start), atol=1e-5, rtol=1e-5)


def test_an_oracle_on_4_bits_starts_as_its_reference_and_keeps_its_log_probs_to_itself(
    lora_world, chat_folder, tmp_path
):
    """`sepo score` reads the reference in full: what the rounded one says of a pair would be noise in every score."""
    run_oracle(lora_world, chat_folder, output=tmp_path / "oracle", quantize="4bit", **LORA)
    lines = [json.loads(line) for line in (tmp_path / "oracle/metrics.jsonl").read_text().splitlines()]
    assert next(line["loss"] for line in lines if line["phase"] == "dpo") == pytest.approx(np.log(2), abs=1e-4)
    run_score(tmp_path, dataset=lora_world / "pairs.jsonl")
    base = load_model(tmp_path / "oracle/reference", trust_remote_code=False)
    row = next(open_scores(tmp_path / "scores").rows())
    theirs = reference.response_logps(base, row.pair.prompt_ids, row.pair.chosen_ids)
    np.testing.assert_allclose(row.reference.chosen, theirs, atol=3e-5)


@pytest.mark.parametrize("options", [{"objective": "tdpo"}, {"kl_weight": 2.0}])
def test_a_divergence_from_the_base_needs_no_second_model(lora_world, chat_folder, tmp_path, monkeypatch, options):
    """The base without its adapter is the reference; another folder with the same weights has to give the same."""
    loaded, load = [], train_policy.load_model
    monkeypatch.setattr(train_policy, "load_model", lambda folder, **how: loaded.append(folder) or load(folder, **how))
    common = {**LORA, **options, "merge": True}
    run_policy(lora_world, chat_folder, output=tmp_path / "one", **common)
    assert not loaded
    other = shutil.copytree(chat_folder, tmp_path / "other")
    # Another hash, the same numbers.
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "a_note": "nothing reads it"}))
    run_policy(lora_world, chat_folder, output=tmp_path / "two", reference_model=str(other), **common)
    assert loaded
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), atol=1e-6, rtol=0)
    run_policy(lora_world, chat_folder, output=tmp_path / "none", **{**common, "objective": "sepo", "kl_weight": 0.0})
    assert (weights(tmp_path / "one") - weights(tmp_path / "none")).abs().max() > 1e-4
