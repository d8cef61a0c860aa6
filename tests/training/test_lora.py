"""Adapters in training: the same steps as peft's own forward gives, on weights that stay as they are."""

import json
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stages.configs import OptimizerConfig
from stages.devices.extras import refuse_without
from stages.errors import SepoError
from stages.logprobs.batches import collate, whole
from stages.logprobs.logps import Forward, weighted_logps
from stages.logprobs.paths import find_paths
from stages.models.adapters import put_on
from stages.models.quantization import load_trainable
from stages.reporting import Quiet
from stages.store.checksums import FILE as SEAL
from stages.store.files import hash_file
from stages.training.loop import fit
from stages.training.lora import Trainee, make_trainee, refuse_useless_lora
from stages.training.optimizers import make_optimizer, refuse_useless_optimizer
from stages.training.training_mode import training_mode
from tests.conftest import random_pairs, tiny_gpt2, tiny_llama
from tests.logprobs.zoo import tiny
from tests.training.fits import SETTINGS, Killed, KilledAfter, objective

LORA = {**SETTINGS, "lora_rank": 4}
CPU = torch.device("cpu")
EXAMPLES = [whole(pair) for pair in random_pairs(10, 50)]


def trainee_of(model=None, **settings):
    config = OptimizerConfig(**{**LORA, **settings})
    return make_trainee(model or tiny_llama(50), config, "base", Quiet(), merged=False), config


def train(folder, *, model=None, reporter=None, **settings):
    folder.mkdir(exist_ok=True)
    trainee, config = trainee_of(model, **settings)
    fit(trainee.model, EXAMPLES, objective, config, phase="test", folder=folder, reporter=reporter or Quiet())
    return trainee


def adapter_weights(trainee):
    return torch.cat([each.detach().flatten() for each in trainee.model.parameters() if each.requires_grad])


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with layers large enough for moments in 8 bits (4,096 weights), whose widths fit blocks of 64."""
    folder = tmp_path_factory.mktemp("base")
    model = tiny_llama(50)
    config = type(model.config)(
        **{**model.config.to_dict(), "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    )
    torch.manual_seed(0)
    type(model)(config).save_pretrained(folder)
    return folder


def held(folder, **settings):
    return load_trainable(folder, OptimizerConfig(**{**LORA, **settings}), CPU)


@pytest.mark.parametrize("modules", [None, "q_proj, down_proj", "lm_head"])
def test_two_steps_are_adamw_on_peft_s_own_forward(tmp_path, modules):
    """On packed rows and in chunks, or, where the head has an adapter too, by the model's own head.

    Two, because B is 0 in the first one, and A has no gradient then.
    """
    more = {"batch_size": 10, "max_tokens_per_device": 60, "lr_scheduler_type": "constant"}
    ours = train(tmp_path, lora_target_modules=modules, **more)
    names, model = modules.split(", ") if modules else "all-linear", tiny_llama(50)
    torch.manual_seed(42)
    plain = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM"))
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    batch = collate(EXAMPLES, CPU)
    for _ in range(2):
        optimizer.zero_grad()
        objective(weighted_logps(Forward(plain), batch), batch).loss_B.mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    torch.testing.assert_close(adapter_weights(ours), adapter_weights(Trainee(plain, plain)), atol=5e-5, rtol=1e-3)
    forward = find_paths(ours.model, Quiet())
    assert (forward.packs, forward.chunked) == (True, modules != "lm_head")


def test_the_weights_of_the_model_stay_as_they_are(tmp_path):
    before = dict(tiny_llama(50).named_parameters())
    trainee = train(tmp_path)
    for name, after in trainee.model.named_parameters():
        if not after.requires_grad:
            assert torch.equal(after, before[name.replace(".base_layer", "")]), name
    optimizer = make_optimizer(trainee.model, OptimizerConfig(**LORA))
    assert {"lora_A", "lora_B"} == {
        name.split(".")[-3] for name, each in trainee.model.named_parameters() if each.requires_grad
    }
    count = sum(each.numel() for group in optimizer.param_groups for each in group["params"])
    assert count == len(adapter_weights(trainee))


def test_an_adapter_starts_as_its_model():
    assert torch.equal(logits(trainee_of()[0].model), logits(tiny_llama(50)))


@pytest.mark.parametrize(
    "option",
    [{"lora_rank": 2}, {"lora_alpha": 1.0}, {"lora_target_modules": "q_proj,v_proj"}, {"seed": 7}],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_what_is_learnt(tmp_path, option):
    assert not torch.equal(logits(train(tmp_path / "a").model), logits(train(tmp_path / "b", **option).model))


def test_alpha_is_twice_the_rank_where_nothing_is_said(tmp_path):
    ours, same = train(tmp_path / "a"), train(tmp_path / "b", lora_alpha=8.0)
    assert torch.equal(adapter_weights(ours), adapter_weights(same))


def test_a_new_adapter_is_drawn_from_the_seed_alone():
    first = trainee_of()[0]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    model = tiny_llama(50)
    torch.set_rng_state(state)
    second = trainee_of(model)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(adapter_weights(first), adapter_weights(second))


@pytest.mark.parametrize("steps", [3, 5])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, steps):
    untouched = train(tmp_path / "a", save_steps=2)
    with pytest.raises(Killed):
        train(tmp_path / "b", save_steps=2, reporter=KilledAfter(steps))
    [checkpoint] = (tmp_path / "b/checkpoints").iterdir()
    assert all("lora_" in name for name in torch.load(checkpoint / "pytorch_model.bin", weights_only=True))
    resumed = train(tmp_path / "b", save_steps=2)
    assert torch.equal(adapter_weights(resumed), adapter_weights(untouched))
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_a_checkpoint_of_other_weights_is_not_gone_on_from(tmp_path):
    """accelerate would leave out what does not fit, and train on from nothing."""
    with pytest.raises(Killed):
        train(tmp_path, save_steps=2, reporter=KilledAfter(3))
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    weights = torch.load(checkpoint / "pytorch_model.bin", weights_only=True)
    renamed = {name.replace("lora_A", "lora_C"): weight for name, weight in weights.items()}
    torch.save(renamed, checkpoint / "pytorch_model.bin")
    sums = json.loads((checkpoint / SEAL).read_text())
    sums["files"]["pytorch_model.bin"] = hash_file(checkpoint / "pytorch_model.bin")
    (checkpoint / SEAL).write_text(json.dumps(sums))
    with pytest.raises(SepoError, match=r"cannot go on from .*Missing key.*lora_A"):
        train(tmp_path, save_steps=2)


def test_a_merged_adapter_is_an_ordinary_model_that_says_the_same(tmp_path):
    trainee = train(tmp_path)
    expected = logits(trainee.model)
    merged = trainee.finished(merged=True, aside=tmp_path / "aside")
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    assert set(merged.state_dict()) == set(tiny_llama(50).state_dict())


def test_a_family_that_stores_its_matrices_the_other_way_round(tmp_path):
    trainee = train(tmp_path, model=tiny_gpt2(50))
    expected = logits(trainee.model)
    assert not torch.allclose(expected, logits(tiny_gpt2(50)), atol=1e-3)
    torch.testing.assert_close(
        logits(trainee.finished(merged=True, aside=tmp_path / "aside")), expected, atol=1e-5, rtol=1e-5
    )


def test_layers_that_the_model_does_not_have_are_refused_with_those_it_has():
    with pytest.raises(SepoError, match="lora_target_modules c_attn does not fit LlamaForCausalLM") as found:
        trainee_of(lora_target_modules="c_attn")
    assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in found.value.hint


@pytest.mark.parametrize(("quantize", "off"), [("4bit", 1.0), ("8bit", 0.2)])
def test_weights_in_few_bits_are_trained_on_and_merged_as_they_are(tmp_path, folder, quantize, off):
    """What comes out is the model that was trained, in ordinary weights."""
    exact, rounded = logits(held(folder)), logits(held(folder, quantize=quantize))
    assert 1e-3 < (exact - rounded).abs().mean() < off
    model = held(folder, quantize=quantize)
    assert model.model.layers[0].mlp.down_proj.weight.dtype == {"4bit": torch.uint8, "8bit": torch.int8}[quantize]
    trainee = train(tmp_path, model=model, quantize=quantize)
    expected = logits(trainee.model)
    assert (expected - rounded).abs().mean() > 0.1
    merged = trainee.finished(merged=True, aside=tmp_path / "aside")
    assert {each.dtype for each in merged.parameters()} == {torch.float32}
    assert not hasattr(merged.config, "quantization_config")
    # In 8 bits the products round their activations too, which ordinary weights do not.
    tolerance = {"4bit": 1e-4, "8bit": 0.2}[quantize]
    assert (logits(merged) - expected).abs().mean() < tolerance
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(held(tmp_path / "merged")), logits(merged))


def test_a_killed_run_on_4_bits_goes_on_to_the_same_bits(tmp_path, folder):
    settings = {"quantize": "4bit", "optim": "adamw-8bit", "save_steps": 2}
    untouched = train(tmp_path / "a", model=held(folder, quantize="4bit"), **settings)
    with pytest.raises(Killed):
        train(tmp_path / "b", model=held(folder, quantize="4bit"), reporter=KilledAfter(3), **settings)
    resumed = train(tmp_path / "b", model=held(folder, quantize="4bit"), **settings)
    assert torch.equal(adapter_weights(resumed), adapter_weights(untouched))


def test_products_with_4_bits_take_the_type_of_mixed_precision_while_they_train(tmp_path):
    """As near to float32 as bfloat16 is; before and after it they are float32, and the biases keep their bits."""
    tiny_llama(50, attention_bias=True, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    with torch.no_grad():
        model = held(tmp_path, quantize="4bit")
        layer, x_TH = model.model.layers[0].self_attn.q_proj, torch.randn(9, 64)
        layer.bias.normal_()
        exact = layer(x_TH)
        for precision, least, most in (("no", 0.0, 0.0), ("bf16", 1e-4, 1e-2)):
            with training_mode(model, OptimizerConfig(**{**LORA, "mixed_precision": precision})):
                apart = (layer(x_TH) - exact).norm() / exact.norm()
            assert least <= apart <= most
        assert torch.equal(layer(x_TH), exact)


def test_4_bits_take_the_fast_paths(folder):
    forward = find_paths(held(folder, quantize="4bit"), Quiet())
    assert forward.packs
    assert forward.chunked


def test_evaluation_does_not_change_weights_in_4_bits(folder):
    model = held(folder, quantize="4bit").train()
    before = model(input_ids=torch.arange(12)[None]).logits
    logits(model)
    assert torch.equal(model.train()(input_ids=torch.arange(12)[None]).logits, before)


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word")
def test_a_merge_of_tied_weights_is_refused_before_training(tmp_path):
    """It would change the embedding with the head."""
    tied, config = tiny_llama(50, tie_word_embeddings=True), OptimizerConfig(**LORA, lora_target_modules="lm_head")
    with pytest.raises(SepoError, match="lm_head shares its weights with another layer"):
        make_trainee(tied, config, "base", Quiet(), merged=True)
    trainee = train(tmp_path, model=tiny_llama(50, tie_word_embeddings=True), lora_target_modules="lm_head")
    with pytest.raises(SepoError, match="is not the model that was trained") as found:
        trainee.finished(merged=True, aside=tmp_path / "aside")
    assert str(tmp_path / "aside") in found.value.hint
    kept = put_on(tiny_llama(50, tie_word_embeddings=True), tmp_path / "aside")
    again = train(tmp_path / "again", model=tiny_llama(50, tie_word_embeddings=True), lora_target_modules="lm_head")
    assert torch.equal(logits(kept.model), logits(again.model))


def test_a_rank_that_no_layer_has_is_refused():
    with pytest.raises(SepoError, match="lora_rank 33 is above the highest rank of a layer, 32"):
        trainee_of(lora_rank=33)


def test_experts_that_an_adapter_does_not_reach_are_said():
    ears, attention = Quiet(), OptimizerConfig(**LORA, lora_target_modules="q_proj")
    make_trainee(tiny("mixtral, experts"), attention, "base", ears, merged=False)
    assert "layers.0.mlp.experts.gate_up_proj" in ears.warnings[0]
    for model, layers in ((tiny("mamba, a state space"), "in_proj"), (tiny_llama(50), None)):
        make_trainee(model, OptimizerConfig(**LORA, lora_target_modules=layers), "base", ears, merged=False)
    assert len(ears.warnings) == 1


def test_what_is_not_installed_is_refused_by_the_name_of_its_extra(monkeypatch, tmp_path):
    tiny_llama(50).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SepoError, match="quantize 4bit needs bitsandbytes, which is not installed") as found:
        refuse_useless_lora(OptimizerConfig(lora_rank=4, quantize="4bit"), tmp_path, keeps_base=True)
    assert found.value.hint == "pip install 'sepo[qlora]'"
    with pytest.raises(SepoError, match="optim adamw-8bit needs bitsandbytes, which is not installed"):
        refuse_useless_optimizer(OptimizerConfig(optim="adamw-8bit"), CPU)
    refuse_useless_optimizer(OptimizerConfig(), CPU)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SepoError, match="lora_rank needs peft") as found:
        refuse_useless_lora(OptimizerConfig(lora_rank=4), tmp_path, keeps_base=True)
    assert found.value.hint == "pip install 'sepo[lora]'"
    refuse_useless_lora(OptimizerConfig(), tmp_path, keeps_base=True)
    refuse_without("torch", "everything", "none")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_alpha": 8.0}, "lora_alpha needs lora_rank"),
        ({"lora_target_modules": "q_proj"}, "lora_target_modules needs lora_rank"),
        ({"quantize": "4bit"}, "quantize needs lora_rank"),
        ({"merge": True}, "merge needs lora_rank"),
        ({"lora_rank": -1}, "lora_rank must be at least 0"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "lora_alpha must be above 0"),
        ({"lora_rank": 4, "lora_target_modules": "q_proj,"}, "lora_target_modules must be names of layers"),
        ({"lora_rank": 4, "quantize": "2bit"}, "quantize must be one of 4bit, 8bit"),
        ({"optim": "sgd"}, "optim must be one of adamw"),
        ({"adam_beta1": 1.0}, "adam_beta1 must be in"),
        ({"adam_beta2": -0.1}, "adam_beta2 must be in"),
        ({"adam_epsilon": 0.0}, "adam_epsilon must be above 0"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(settings, said):
    with pytest.raises(SepoError, match=said):
        OptimizerConfig(**settings)
