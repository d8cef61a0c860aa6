"""`sepo cut-model`: what it writes is the whole model with the rest of its layers taken out."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig

from stages import cut_model
from stages.configs import CutModelConfig
from stages.errors import SepoError
from stages.models.cut import _shortened
from stages.reporting import Quiet
from stages.tokens.fingerprint import tokenizer_hash
from tests.conftest import tiny_llama
from tests.logprobs.zoo import FAMILIES, tiny
from tests.world import run_oracle

IDS = torch.tensor([[5, 17, 3, 44, 8, 29, 31, 2]])


def cut(model, output, layers=1, reporter=None, **options):
    return cut_model.run(
        CutModelConfig(model=str(model), layers=layers, output_dir=str(output), **options), reporter or Quiet()
    )


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def without_the_rest(model, layers):
    """The model itself, with the modules behind the first layers taken out of its list."""
    whole = model.config.num_hidden_layers
    lists = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.ModuleList)}
    name, parts = next((name, each) for name, each in lists.items() if len(each) == whole)
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, parts[:layers])
    model.config.num_hidden_layers = layers
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_computes_what_the_first_layers_compute(family, chatml, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path / "whole")
    chatml.save_pretrained(tmp_path / "whole")
    layers = model.config.num_hidden_layers // 2
    before = logits(model)
    cut(tmp_path / "whole", tmp_path / "cut", layers)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").eval()
    assert again.config.num_hidden_layers == layers
    torch.testing.assert_close(logits(again), logits(without_the_rest(model, layers)))
    assert not torch.allclose(logits(again), before, atol=1e-3)


def test_lists_with_an_entry_a_layer_are_cut_and_others_are_not(chatml, tmp_path):
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, layer_types=kinds, eos_token_id=[1, 2, 3, 4],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "whole")
    chatml.save_pretrained(tmp_path / "whole")
    cut(tmp_path / "whole", tmp_path / "cut", 2)
    written = json.loads((tmp_path / "cut/config.json").read_text())
    assert written["layer_types"] == kinds[:2]
    assert written["eos_token_id"] == [1, 2, 3, 4]
    assert written["num_hidden_layers"] == 2


def test_tokenizer_template_and_precision_stay(chatml, tmp_path):
    tiny_llama(len(chatml)).to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    chatml.save_pretrained(tmp_path / "whole")
    cut(tmp_path / "whole", tmp_path / "cut")
    kept = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert tokenizer_hash(kept) == tokenizer_hash(chatml)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "cut").dtype == torch.bfloat16


def test_it_says_that_the_model_is_of_no_use_yet_and_a_second_time_has_nothing_to_do(chat_folder, tmp_path):
    reporter = Quiet()
    summary = cut(chat_folder, tmp_path / "cut", reporter=reporter)
    assert "nonsense until it is fine-tuned" in reporter.warnings[0]
    assert json.loads((tmp_path / "cut/manifest.json").read_text())["warnings"] == reporter.warnings
    assert ("layers", "1 of 2") in summary.rows
    assert cut(chat_folder, tmp_path / "cut").fresh is False


def test_a_cut_model_becomes_an_oracle(world, chat_folder, tmp_path):
    cut(chat_folder, tmp_path / "cut")
    run_oracle(tmp_path, tmp_path / "cut", dataset=world / "pairs.jsonl", max_steps=2)
    assert json.loads((tmp_path / "oracle/oracle/config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.parametrize("layers", [2, 3])
def test_no_more_layers_than_there_are(layers, chat_folder, tmp_path):
    with pytest.raises(SepoError, match=f"layers must be below the 2 that .* has, got {layers}"):
        cut(chat_folder, tmp_path / "cut", layers)
    assert not (tmp_path / "cut").exists()


def test_an_adapter_has_no_layers(chat_folder, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    named = {"peft_type": "LORA", "base_model_name_or_path": str(chat_folder)}
    (folder / "adapter_config.json").write_text(json.dumps(named))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(SepoError, match="is an adapter, which has no layers of its own"):
        cut(folder, tmp_path / "cut")


def test_a_configuration_that_contradicts_itself_once_cut_is_a_line_and_no_traceback():
    """Five layers of a model that lists the kinds of four."""
    config = Gemma3TextConfig(num_hidden_layers=4, layer_types=["full_attention"] * 4)
    with pytest.raises(SepoError, match="the configuration does not fit 5 layers"):
        _shortened(config, 5)
