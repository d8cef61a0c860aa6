"""A model that would not be the same one is refused, or put right: other kinds, surplus weights, noise, later tokens."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel, MixtralConfig, MixtralForCausalLM

from stages.errors import SepoError
from stages.logprobs.batches import whole
from stages.logprobs.logps import Forward, _logits, attention_for, make_batch
from stages.logprobs.paths import find_paths
from stages.logprobs.trial import trial_logps
from stages.models.folders import load_model, resolve_model, resolve_without_weights
from stages.reporting import Quiet
from stages.training.training_mode import refuse_noise, train_without_noise
from tests.conftest import random_pairs, tiny_llama
from tests.logprobs.zoo import tiny


@pytest.mark.parametrize("kind", [LlamaForSequenceClassification, LlamaModel])
def test_a_model_of_another_kind_is_refused(tmp_path, kind):
    config = LlamaConfig(**{**tiny_llama(50).config.to_dict(), "tie_word_embeddings": True})
    kind(config).save_pretrained(tmp_path)
    with pytest.raises(SepoError, match=f"is a {kind.__name__}"):
        resolve_model(str(tmp_path), Quiet())


def with_weight(folder, name):
    tiny_llama(50).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, name: torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["v_head.summary.weight", "model.layers.9.mlp.up_proj.weight"])
def test_weights_that_the_model_does_not_take_are_refused(tmp_path, name):
    with pytest.raises(SepoError, match=f"holds 1 weights that a LlamaForCausalLM does not take, such as {name}"):
        load_model(with_weight(tmp_path, name), trust_remote_code=False)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.layers.0.weight"])
def test_tables_and_further_heads_are_harmless(tmp_path, name):
    load_model(with_weight(tmp_path, name), trust_remote_code=False)


def changed(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_other_sizes_and_impossible_depths_are_one_line(tmp_path):
    tiny_llama(50).save_pretrained(tmp_path)
    changed(tmp_path, vocab_size=51)
    with pytest.raises(SepoError, match=r"of another size: .* config\.json makes it \[51, 32\]"):
        load_model(tmp_path, trust_remote_code=False)
    changed(tmp_path, num_hidden_layers=10_000_000)
    with pytest.raises(SepoError, match="has num_hidden_layers 10,000,000"):
        resolve_model(str(tmp_path), Quiet())
    # Nor is there an end to building them for an estimate, which needs no weights.
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(SepoError, match="has num_hidden_layers 10,000,000"):
        resolve_without_weights(str(tmp_path), Quiet())


def test_two_matrices_are_said_to_be_two(tmp_path):
    tiny_llama(50, tie_word_embeddings=False).save_pretrained(tmp_path)
    changed(tmp_path, tie_word_embeddings=True)
    assert load_model(tmp_path, trust_remote_code=False).config.tie_word_embeddings is False


def test_a_model_that_sees_later_tokens_is_refused():
    model = tiny("llama")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    model.model.config.is_causal = False
    with pytest.raises(SepoError, match="sees later tokens"):
        find_paths(model, Quiet())


def test_jitter_is_off_in_training_and_what_is_left_is_refused():
    torch.manual_seed(0)
    settings = {**tiny("mixtral, experts").config.to_dict(), "router_jitter_noise": 0.1, "attention_dropout": 0.0}
    model = MixtralForCausalLM(MixtralConfig(**settings))
    before = torch.get_rng_state()
    refuse_noise(model)
    assert torch.equal(torch.get_rng_state(), before)
    expected = trial_logps(model.eval())
    train_without_noise(model)
    assert torch.equal(trial_logps(model), expected)
    hook = model.model.register_forward_hook(
        lambda module, _, out: out if not module.training else out.__class__(out[0] + 0.1 * torch.randn_like(out[0]))
    )
    with pytest.raises(SepoError, match="other log-probs in train mode"):
        refuse_noise(model)
    hook.remove()


@pytest.mark.parametrize("packs", [True, False])
def test_logits_of_a_models_own_head_are_float32_under_autocast(packs):
    """Each of them, not a bfloat16 that was made longer: the head's products leave autocast."""
    model = tiny_llama(50)
    batch = make_batch([whole(pair) for pair in random_pairs(2, 50)], torch.device("cpu"), packs=packs)
    forward = Forward(model, packs=packs, chunked=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), attention_for(forward, batch):
        logits = _logits(forward, batch).values_NX
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    assert "forward" not in vars(model.lm_head)
