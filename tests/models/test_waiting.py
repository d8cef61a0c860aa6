"""Models whose weights wait to be divided: what tests/test_engines.py trains, as it is before that."""

import json

import pytest
import torch

from stages.devices.engines import gather_weights
from stages.devices.parts import numbers_of, waits
from stages.errors import SepoError
from stages.logprobs.trial import trial_logps
from stages.models.adapters import put_on
from stages.models.folders import load_model, load_waiting, save_model
from tests.logprobs.zoo import tiny


@pytest.mark.parametrize("family", ["gemma3, a window of 4", "lfm2, a convolution", "qwen2"])
def test_what_waits_in_bfloat16_is_the_model_that_is_loaded_in_float32(tmp_path, family):
    """Its buffers too, such as gemma3's scale of embeddings, which in bfloat16 would be another number."""
    tiny(family).bfloat16().save_pretrained(tmp_path)
    model, exact = (load(tmp_path, trust_remote_code=False) for load in (load_waiting, load_model))
    assert waits(model)
    assert not waits(exact)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert trial_logps(model).isnan().all(), "a model that was read too early"
    buffers = dict(exact.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert [name for name, _ in model.named_buffers()] == list(buffers)
    expected = dict(exact.named_parameters())
    found = numbers_of(model)
    assert found.keys() >= expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert all(weight.source.dtype == torch.bfloat16 for weight in model.parameters())


@pytest.mark.parametrize("mixed", [False, True])
def test_files_say_what_weights_are_saved_in_and_not_the_configuration(tmp_path, mixed):
    """float32 files under a configuration of bfloat16; and norms in float32 beside layers in bfloat16."""
    model = tiny("llama").bfloat16() if mixed else tiny("llama")
    if mixed:
        model.model.norm.float().weight.data += 1e-3
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    waiting, exact = (load(tmp_path, trust_remote_code=False) for load in (load_waiting, load_model))
    found = numbers_of(waiting)
    assert all(torch.equal(found[name], weight) for name, weight in exact.named_parameters())


def test_a_model_that_waits_is_saved_as_it_is(chat_folder, chatml, tmp_path):
    """As an oracle's reference without SFT is; the head, which is the embedding, once."""
    model = load_waiting(chat_folder, trust_remote_code=False)
    weights = gather_weights(model)
    assert "lm_head.weight" not in weights, "twice would be twice its memory"
    save_model(model, chatml, tmp_path / "saved", weights)
    assert (tmp_path / "saved/model.safetensors").read_bytes() == (chat_folder / "model.safetensors").read_bytes()


def test_an_adapter_is_put_into_a_model_that_waits(chat_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    trained = get_peft_model(load_model(chat_folder, trust_remote_code=False), LoraConfig(r=2, init_lora_weights=False))
    trained.save_pretrained(tmp_path)
    model = put_on(load_waiting(chat_folder, trust_remote_code=False), tmp_path).model
    adapter = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    expected = dict(trained.get_base_model().named_parameters())
    assert adapter
    assert all(torch.equal(weight, expected[name]) for name, weight in adapter.items())
    assert waits(model)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(SepoError, match="does not fit its base"):
        put_on(load_waiting(chat_folder, trust_remote_code=False), tmp_path)
