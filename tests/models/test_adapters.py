"""Oracles kept as LoRA adapters: merged where one model is asked for, and beside their base without a second copy."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from stages.errors import SepoError
from stages.models import loading
from stages.models.adapters import put_on
from stages.models.folders import load_model, load_tokenizer, model_hash, resolve_model, save_model
from stages.reporting import Quiet
from stages.store.scores import open_scores
from tests.conftest import tiny_llama, word_rows, write_lines
from tests.world import run_score


@pytest.fixture
def adapter(tmp_path, chatml):
    """A base, an adapter on it with weights that matter, and the two merged by peft itself."""
    base = tiny_llama(len(chatml))
    save_model(base, chatml, tmp_path / "base")
    base = load_model(tmp_path / "base", trust_remote_code=False)
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    save_model(model.merge_and_unload(), chatml, tmp_path / "merged")
    return tmp_path / "adapter"


def test_an_adapter_loads_as_its_base_with_it(adapter):
    ids = torch.arange(12)[None]
    ours = load_model(resolve_model(str(adapter), Quiet()), trust_remote_code=False)(input_ids=ids).logits
    merged, base = (
        load_model(adapter.parent / name, trust_remote_code=False)(input_ids=ids).logits for name in ("merged", "base")
    )
    torch.testing.assert_close(ours, merged, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, base, atol=1e-2)
    assert len(load_tokenizer(adapter, trust_remote_code=False)) == len(
        load_tokenizer(adapter.parent / "base", trust_remote_code=False)
    )


def test_an_adapter_on_its_reference_is_scored_with_one_model_in_memory(adapter, tmp_path, monkeypatch):
    write_lines(tmp_path / "pairs.jsonl", word_rows(20))
    loaded = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda folder, **how: loaded.append(folder.name) or load(folder, **how))
    models = {"oracle": None, "reference_model": str(tmp_path / "base"), "noise_check": 0.0}
    run_score(tmp_path, output="a", oracle_model=str(adapter), **models)
    assert loaded == ["base"]
    run_score(tmp_path, output="b", oracle_model=str(tmp_path / "merged"), **models)
    for ours, theirs in zip(open_scores(tmp_path / "a").rows(), open_scores(tmp_path / "b").rows(), strict=True):
        np.testing.assert_allclose(ours.scores.chosen, theirs.scores.chosen, atol=3e-5)
        np.testing.assert_allclose(ours.scores.rejected, theirs.scores.rejected, atol=3e-5)
        np.testing.assert_allclose(ours.reference.chosen, theirs.reference.chosen, atol=3e-5)


def test_the_hash_of_an_adapter_knows_its_base(adapter, chatml):
    before = model_hash(adapter)
    save_model(tiny_llama(len(chatml), seed=5), chatml, adapter.parent / "base")
    assert model_hash(adapter) != before


@pytest.mark.parametrize("config", ["{broken", "[]", "{}", '{"base_model_name_or_path": 3}'])
def test_an_adapter_without_a_base_is_refused_in_words(adapter, config):
    (adapter / "adapter_config.json").write_text(config)
    with pytest.raises(SepoError, match=r"adapter_config\.json (cannot be read|names no base_model_name_or_path)"):
        resolve_model(str(adapter), Quiet())


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CPT"])
def test_an_adapter_that_adds_tokens_to_prompts_is_refused_in_words(adapter, kind):
    """Its tokens would be left out, and every score would be 0."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": kind}))
    with pytest.raises(SepoError, match=f"is an adapter of kind {kind}, which adds tokens to prompts"):
        resolve_model(str(adapter), Quiet())


def test_validate_takes_an_adapter(adapter, tmp_path):
    from stages import validate
    from stages.configs import ValidateConfig

    write_lines(tmp_path / "p.jsonl", word_rows(5))
    found = validate.run(ValidateConfig(model=str(adapter), dataset=str(tmp_path / "p.jsonl")), Quiet())
    assert found.failure is None


def test_an_adapter_of_another_base_is_refused_in_words(adapter, chatml):
    save_model(_narrow(len(chatml)), chatml, adapter.parent / "base")
    with pytest.raises(SepoError, match="does not fit its base"):
        load_model(adapter, trust_remote_code=False)


def _narrow(vocab_size):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
    )


def test_an_adapter_whose_base_is_gone_is_refused_in_words(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere/at/all"}))
    with pytest.raises(SepoError, match="there is no model folder /nowhere/at/all"):
        resolve_model(str(adapter), Quiet())


def renamed(name):
    return name.replace("base_model.model.", "base_model.model._orig_mod.")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda weights: {renamed(name): weight for name, weight in weights.items()},
            "has no place for: 8, such as .*_orig",
        ),
        (lambda weights: {n: w for n, w in weights.items() if "layers.1" not in n}, "lacks: 4, such as .*layers.1"),
        (
            lambda weights: {**weights, "base_model.model.model.extra": torch.ones(3)},
            "has no place for: 1, such as .*extra",
        ),
        (lambda weights: {}, "lacks: 8"),
    ],
    ids=["of a compiled model", "of one layer alone", "of one more", "of none"],
)
def test_weights_that_do_not_fit_are_refused_by_name(adapter, change, fault):
    """peft leaves them out and warns: every score would be 0."""
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(SepoError, match=fault):
        load_model(adapter, trust_remote_code=False)
    with pytest.raises(SepoError, match=fault):
        put_on(load_model(adapter.parent / "base", trust_remote_code=False), adapter)


def test_a_base_that_the_adapter_changes_is_a_second_model(adapter, chatml):
    """Switched off it would leave its biases, the residual of its weights, or rows of the embedding behind."""
    base = load_model(adapter.parent / "base", trust_remote_code=False)
    assert put_on(base, adapter).without is not None
    path = adapter / "adapter_model.safetensors"
    row = base.get_input_embeddings().weight.detach().clone()
    row[len(chatml) - 1] += 1e-3
    save_file({**load_file(path), "base_model.model.model.embed_tokens.weight": row}, path)
    assert put_on(load_model(adapter.parent / "base", trust_remote_code=False), adapter).without is None


def test_a_folder_of_a_model_and_an_adapter_is_refused(adapter):
    shutil.copy(adapter.parent / "base/config.json", adapter)
    with pytest.raises(SepoError, match=r"holds a model \(config.json\) and an adapter"):
        resolve_model(str(adapter), Quiet())


def test_adapters_that_are_each_other_s_base_are_refused(adapter):
    other = shutil.copytree(adapter, adapter.parent / "other")
    for folder, base in ((adapter, other), (other, adapter)):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    with pytest.raises(SepoError, match="is in the end its own base"):
        resolve_model(str(adapter), Quiet())
    with pytest.raises(SepoError, match="is in the end its own base"):
        model_hash(other)
