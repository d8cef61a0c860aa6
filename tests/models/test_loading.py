"""A model divided by `--device-map auto` says what the whole one says.

Here the only device is the CPU; where there is no room for a model in memory, accelerate leaves its layers on the disk
and fetches them for every batch by the same hooks that move them between GPUs.
"""

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from stages.configs import PairConfig, ScoreConfig
from stages.devices.placement import input_device
from stages.errors import SepoError
from stages.logprobs.decode import DecodeRequest, decode
from stages.logprobs.decode_trial import find_decoding
from stages.logprobs.logps import response_kl, response_logps
from stages.logprobs.paths import find_paths
from stages.models.adapters import put_on
from stages.models.folders import load_model
from stages.models.loading import Loading, refuse_unloadable
from stages.reporting import Quiet
from stages.store.scores import open_scores
from tests.conftest import Listens, random_pairs, tiny_gpt2, tiny_llama, word_rows, write_lines
from tests.logprobs.zoo import tiny
from tests.world import manifest, run_score

CPU = torch.device("cpu")
PAIRS = random_pairs(6, 50)


def leave_room(monkeypatch, megabytes):
    """A machine that has no more memory free, as accelerate sees it."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(megabytes * 1e6)))


def loaded(folder, device_map=None, reporter=None):
    return find_paths(Loading(CPU, reporter or Quiet(), device_map=device_map).load(folder), Quiet())


def logps(forward):
    [found] = response_logps([forward], PAIRS, max_tokens=60, device=CPU, task=Quiet())
    return np.concatenate([side for each in found for side in each])


def answers(forward):
    asked = [
        DecodeRequest(pair.prompt_ids, 1.0, 1.0, room, room) for pair, room in zip(PAIRS, range(3, 9), strict=True)
    ]
    found = dict(decode(find_decoding(forward, Quiet()), asked, ends=(), max_tokens=10**6))
    return [found[index].answer_ids.tolist() for index in range(len(asked))]


@pytest.mark.parametrize(
    ("model", "megabytes"),
    [(tiny_llama(50), 0.05), (tiny_llama(50, tie_word_embeddings=True), 0.02), (tiny_gpt2(50), 0.05)],
    ids=["llama", "tied", "gpt2"],
)
def test_a_divided_model_says_what_the_whole_one_says(model, megabytes, tmp_path, monkeypatch):
    """To the bit, by the same fast paths, whether the embeddings have room or not."""
    model.save_pretrained(tmp_path)
    other = find_paths(tiny_llama(50, seed=3), Quiet())
    whole, ear = loaded(tmp_path), Listens()
    expected = logps(whole), answers(whole), response_kl(whole, other, PAIRS, max_tokens=60, device=CPU, task=Quiet())
    leave_room(monkeypatch, megabytes)
    divided = loaded(tmp_path, "auto", ear)
    assert "on disk" in ear.said[-1]
    assert {weight.device.type for weight in divided.model.parameters()} >= {"meta"}
    assert input_device(divided.model) == CPU
    assert divided._replace(model=None) == whole._replace(model=None)
    np.testing.assert_array_equal(logps(divided), expected[0])
    assert answers(divided) == expected[1]
    kl_N2 = response_kl(divided, other, PAIRS, max_tokens=60, device=CPU, task=Quiet())
    np.testing.assert_array_equal(kl_N2, expected[2])
    np.testing.assert_allclose(
        response_kl(other, divided, PAIRS, max_tokens=60, device=CPU, task=Quiet()),
        response_kl(other, whole, PAIRS, max_tokens=60, device=CPU, task=Quiet()),
        rtol=1e-6,
    )


def test_layers_stay_whole(tmp_path, monkeypatch):
    tiny_llama(50, num_hidden_layers=6).save_pretrained(tmp_path)
    leave_room(monkeypatch, 0.15)
    model = loaded(tmp_path, "auto").model
    places = {name: place for name, place in model.hf_device_map.items() if ".layers." in name}
    assert {name.count(".") for name in places} == {2}
    assert set(places.values()) == {"cpu", "disk"}


def test_scores_by_a_device_map_are_the_same_bytes(world, tmp_path, monkeypatch):
    """With the noise check, which loads both models once more."""
    models = {f"{name}_model": str(world / "oracle" / name) for name in ("oracle", "reference")}
    given = {"oracle": None, "noise_check": 1.0, "dataset": write_lines(tmp_path / "p.jsonl", word_rows(4)), **models}
    run_score(world, output=tmp_path / "whole", **given)
    leave_room(monkeypatch, 0.05)
    ear = Listens()
    run_score(world, ear, output=tmp_path / "divided", device_map="auto", **given)
    assert sum("on disk" in line for line in ear.said) == 4
    for shard in (tmp_path / "whole").glob("*.parquet"):
        assert (tmp_path / "divided" / shard.name).read_bytes() == shard.read_bytes()


def scores(folder):
    return np.concatenate([side for row in open_scores(folder).rows() for side in row.scores])


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_scores_in_few_bits_are_those_of_a_rounded_model_and_the_noise_says_so(bits, world, tmp_path):
    given = {"noise_check": 1.0, "dataset": write_lines(tmp_path / "p.jsonl", word_rows(4))}
    for name, quantize in (("exact", None), ("few", bits)):
        run_score(world, output=tmp_path / name, quantize=quantize, oracle=str(world / "oracle"), **given)
    apart = abs(scores(tmp_path / "few") - scores(tmp_path / "exact"))
    assert manifest(tmp_path / "few")["settings"]["quantize"] == bits
    assert manifest(tmp_path / "few")["results"]["noise"]["mean"] == pytest.approx(apart.mean(), rel=0.01)
    assert apart.mean() > 1e-3


@pytest.fixture
def adapter(tmp_path):
    tiny_llama(50).save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base", trust_remote_code=False)
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_in_a_model_whose_weights_wait_elsewhere(adapter):
    """As they do on a machine with one small GPU: with the adapter and without it, what it says in one piece."""
    loading = Loading(CPU, Quiet())
    whole = loading.load_adapted(adapter.parent / "base", adapter)
    expected = logps(find_paths(whole.model, Quiet()))
    cpu_offload(whole.model)
    assert {weight.device.type for weight in whole.model.parameters()} == {"meta"}
    forward = find_paths(whole.model, Quiet())
    np.testing.assert_array_equal(logps(forward), expected)
    without = logps(forward._replace(context=whole.without))
    np.testing.assert_array_equal(without, logps(loaded(adapter.parent / "base")))
    assert abs(without - expected).max() > 0.1


def test_an_adapter_on_few_bits_is_not_rounded_with_them(adapter):
    """Merged, it would be: it stays beside them."""
    few = Loading(CPU, Quiet(), quantize="4bit")
    base, beside = few.load(adapter.parent / "base"), few.load(adapter)
    assert any("lora" in name for name, _ in beside.named_parameters())
    expected = logps(find_paths(put_on(base, adapter).model, Quiet()))
    np.testing.assert_array_equal(logps(find_paths(beside, Quiet())), expected)


def test_an_adapter_is_merged_before_it_is_divided(adapter, monkeypatch):
    np.testing.assert_array_equal(logps(loaded(adapter, "auto")), logps(loaded(adapter)))
    adapted = Loading(CPU, Quiet(), device_map="auto").load_adapted(adapter.parent / "base", adapter)
    np.testing.assert_allclose(logps(find_paths(adapted.model, Quiet())), logps(loaded(adapter)), atol=1e-5)
    leave_room(monkeypatch, 0.05)
    with pytest.raises(SepoError, match="with its adapter does not fit into the memory of the devices and the host"):
        loaded(adapter, "auto")


def options(**given):
    return ScoreConfig(dataset="d", output_dir="o", oracle="x", **given)


def test_what_processes_cannot_hold_together_is_refused_before_its_weights_are_read(tmp_path, adapter):
    tiny_llama(50).config.save_pretrained(tmp_path)
    one, two, four = (SimpleNamespace(num_processes=count, device=CPU) for count in (1, 2, 4))
    together = options(device_map="tensor-parallel")
    refuse_unloadable(together, two, [tmp_path])
    with pytest.raises(SepoError, match="divides a model among several processes, but one was started"):
        refuse_unloadable(together, one, [tmp_path])
    with pytest.raises(SepoError, match="num_key_value_heads 2, which 4 processes cannot divide evenly"):
        refuse_unloadable(together, four, [tmp_path])
    with pytest.raises(SepoError, match="cannot divide weights held in 4bit"):
        refuse_unloadable(options(device_map="tensor-parallel", quantize="4bit"), two, [tmp_path])
    with pytest.raises(SepoError, match="is an adapter, which --device-map tensor-parallel cannot put on") as caught:
        refuse_unloadable(together, two, [adapter])
    assert "merge it" in caught.value.hint
    for family in ("gpt2, absolute positions", "lfm2, a convolution"):
        tiny(family).config.save_pretrained(tmp_path)
        with pytest.raises(SepoError, match="has no plan of its layers in transformers"):
            refuse_unloadable(together, two, [tmp_path])


def test_what_cannot_be_divided_is_refused_before_its_weights_are_read(tmp_path, adapter):
    """Of most of these there are no weights at all."""
    config = OpenAIGPTConfig(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    config.architectures = [OpenAIGPTLMHeadModel.__name__]
    config.save_pretrained(tmp_path)
    one, two = (SimpleNamespace(num_processes=count, device=CPU) for count in (1, 2))
    refuse_unloadable(options(), two, [tmp_path])
    with pytest.raises(SepoError, match="OpenAIGPTLMHeadModel does not say what its layers are"):
        refuse_unloadable(options(device_map="auto"), one, [tmp_path])
    with pytest.raises(SepoError, match="device_map gives one process all devices, but 2 were started"):
        refuse_unloadable(options(device_map="auto"), two, [])
    config.quantization_config = {"load_in_4bit": True, "quant_method": "bitsandbytes"}
    config.save_pretrained(tmp_path)
    with pytest.raises(SepoError, match=r"holds its weights in 4 bits \(bitsandbytes\) already"):
        refuse_unloadable(options(quantize="8bit"), one, [tmp_path])
    refuse_unloadable(options(quantize="8bit"), two, [adapter])
    with pytest.raises(SepoError, match="an adapter, which cannot be put on a model that is quantized and divided"):
        refuse_unloadable(options(quantize="8bit", device_map="auto"), one, [adapter])
    with pytest.raises(SepoError, match="device_map must be one of auto, tensor-parallel, got 'cuda:1'"):
        options(device_map="cuda:1")
    with pytest.raises(SepoError, match="device_map changes nothing without an oracle"):
        PairConfig(answers="a", output="o.jsonl", verifier="ifeval", device_map="auto")
