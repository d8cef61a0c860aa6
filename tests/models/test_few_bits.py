"""Checkpoints whose weights are in few bits already: read as what they are, and trained only by adapters."""

import json
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from stages.configs import OptimizerConfig
from stages.errors import SepoError
from stages.logprobs.trial import trial_logps
from stages.models.folders import load_model
from stages.models.quantization import bits_of, load_trainable, quantized
from stages.reporting import Quiet
from stages.training.lora import make_trainee, refuse_useless_lora
from tests.conftest import tiny_llama, word_rows, write_lines
from tests.world import manifest, run_policy, run_score

CPU = torch.device("cpu")
HOW = {
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "8bit": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, chatml):
    """A model in full, and the same in 4 and in 8 bits, by name; weights in 4 bits compute in bfloat16, as most do."""
    root = tmp_path_factory.mktemp("few-bits")
    tiny_llama(len(chatml), hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(root / "full")
    chatml.save_pretrained(root / "full")
    for name, how in HOW.items():
        held = {"quantization_config": BitsAndBytesConfig(**how), "device_map": {"": "cpu"}}
        AutoModelForCausalLM.from_pretrained(root / "full", **held).save_pretrained(root / name)
        chatml.save_pretrained(root / name)
    return root


@pytest.mark.parametrize("name", HOW)
def test_training_all_weights_or_fewer_bits_is_refused_before_loading(folders, name):
    with pytest.raises(SepoError, match=f"holds its weights in {name[0]} bits .*, which cannot be trained") as found:
        refuse_useless_lora(OptimizerConfig(), folders / name, keeps_base=False)
    assert "--lora-rank" in found.value.hint
    with pytest.raises(SepoError, match=f"in {name[0]} bits .* already, and cannot be held in 8bit"):
        refuse_useless_lora(OptimizerConfig(lora_rank=4, quantize="8bit"), folders / name, keeps_base=False)
    refuse_useless_lora(OptimizerConfig(lora_rank=4), folders / name, keeps_base=False)
    refuse_useless_lora(OptimizerConfig(), folders / "full", keeps_base=False)


def gradient(model):
    trainee = make_trainee(model, OptimizerConfig(lora_rank=4), "base", Quiet(), merged=False)
    trainee.model.train()
    ids = torch.arange(40)[None]
    trainee.model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([weight.grad.flatten() for weight in trainee.model.parameters() if weight.grad is not None])


@pytest.mark.parametrize("name", HOW)
def test_gradients_are_those_of_the_weights_that_the_checkpoint_holds(folders, name, monkeypatch):
    """Also on a CPU that packs weights anew whenever it evaluates, with constants in bfloat16."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True, raising=False)
    held = load_trainable(folders / name, OptimizerConfig(lora_rank=4), CPU)
    packed = [module.support_avx512bf16_for_cpu for module in held.modules() if hasattr(module, "compute_dtype")]
    assert len(packed) == (14 if name == "4bit" else 0)
    assert not any(packed)
    trial_logps(held)
    exact = load_model(folders / name, trust_remote_code=False).dequantize()
    close = 1e-4 if name == "4bit" else 0.2
    torch.testing.assert_close(trial_logps(held), trial_logps(exact), atol=close, rtol=close)
    cosine = torch.cosine_similarity(gradient(held), gradient(exact), dim=0)
    assert cosine > (0.99999 if name == "4bit" else 0.999)


def test_scores_of_rounded_weights_say_so_and_an_adapter_on_them_is_merged_in_full(folders, tmp_path):
    write_lines(tmp_path / "pairs.jsonl", word_rows(4))
    models = {"oracle": None, "oracle_model": str(folders / "4bit"), "reference_model": str(folders / "full")}
    run_score(tmp_path, **models)
    [warning] = [each for each in manifest(tmp_path / "scores")["warnings"] if "bits" in each]
    assert warning.startswith("the oracle's weights are in 4 bits (bitsandbytes)")
    run_policy(tmp_path, folders / "4bit", lora_rank=4, merge=True, learning_rate=1e-9)
    assert quantized(tmp_path / "policy") is None
    model, start = (load_model(path, trust_remote_code=False) for path in (tmp_path / "policy", folders / "4bit"))
    torch.testing.assert_close(trial_logps(model), trial_logps(start), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("held", "said", "needs"),
    [
        ({"quant_method": "gptq", "bits": 4}, "4 bits (gptq)", "cannot load .* (optimum|gptqmodel)"),
        ({"quant_method": "awq", "w_bit": 4}, "4 bits (awq)", "cannot load .* gptqmodel"),
        ({"quant_method": "hqq"}, "few bits (hqq)", "(?i)cannot load .* hqq"),
        ({"quant_method": "compressed-tensors"}, "few bits (compressed-tensors)", "cannot load .* compressed-tensors"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "8 bits (bitsandbytes)", None),
    ],
    ids=str,
)
def test_other_ways_to_hold_weights_are_known_and_what_they_need_is_named(held, said, needs, folders, tmp_path):
    config = json.loads((folders / "full/config.json").read_text())
    assert bits_of(config | {"quantization_config": held}) == said
    assert bits_of(config | {"text_config": {"quantization_config": held}}) == said
    assert bits_of(config) is None
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folders / "full" / name)
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": held}))
    with pytest.raises(SepoError, match=needs) if needs else nullcontext():
        load_trainable(tmp_path, OptimizerConfig(lora_rank=4), CPU)
