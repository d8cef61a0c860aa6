"""Model folders in which something is wrong: read as it is, or refused in one line."""

import json
import shutil
import struct

import pytest
from peft import LoraConfig, get_peft_model

from stages.models.folders import load_model
from stages.tokens import rendering
from tests.conftest import tiny_llama, word_rows, write_lines
from tests.faults.harness import assert_can_go_on, assert_one_line, assert_right_or_one_line, outcome, unharmed
from tests.faults.mutations import WHOLE, mutate


@pytest.fixture(scope="module")
def sound(tmp_path_factory, chat_folder, chatml):
    """A model, the same in shards, an adapter on it, and a data set."""
    root = tmp_path_factory.mktemp("sound")
    shutil.copytree(chat_folder, root / "model")
    model = tiny_llama(len(chatml))
    model.save_pretrained(root / "sharded", max_shard_size="20KB")
    chatml.save_pretrained(root / "sharded")
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(chat_folder, trust_remote_code=False), settings).save_pretrained(root / "adapter")
    config = json.loads((root / "adapter/adapter_config.json").read_text())
    (root / "adapter/adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(root / "model")})
    )
    write_lines(root / "pairs.jsonl", word_rows(2))
    return root


@pytest.fixture
def use(sound, tmp_path):
    """Make a copy of a sound folder wrong, and give it to a command, the cheapest that reads what is wrong."""

    def run(kind, spoil, command="evaluate", must_fail=False):
        bad, output = tmp_path / "bad", tmp_path / "out"
        shutil.copytree(sound / kind, bad)
        print(spoil(bad))
        data = ("--dataset", sound / "pairs.jsonl")
        arguments = {
            "evaluate": ("--model", bad, *data, "--samples", 0),
            "validate": ("--model", bad, *data),
            "cut-model": ("--model", bad, "--layers", 1, "--output-dir", output),
            "score": ("--oracle-model", bad, "--reference-model", sound / "model", *data, "--output-dir", output),
            "train-oracle": ("--model", bad, *data, "--output-dir", output, "--sft-epochs", 0, "--eval-fraction", 0),
        }
        with unharmed(bad, sound):
            found = outcome(command, *arguments[command])
        assert_right_or_one_line(found)
        if found.code:
            assert_can_go_on(output)
        assert found.code or not must_fail, found
        return found

    return run


@pytest.mark.parametrize("number", range(30))
def test_one_value_of_a_configuration(use, number):
    command = ("evaluate", "cut-model", "evaluate", "validate", "score")[number % 5]
    use("model", lambda bad: mutate(bad / "config.json", number), command)


@pytest.mark.parametrize("number", range(12))
def test_one_value_of_a_tokenizers_configuration(use, number):
    use("model", lambda bad: mutate(bad / "tokenizer_config.json", number))


@pytest.mark.parametrize("number", range(15))
def test_one_value_of_a_tokenizer(use, number):
    use("model", lambda bad: mutate(bad / "tokenizer.json", number))


@pytest.mark.parametrize("number", range(6))
def test_one_value_of_how_to_generate(use, number):
    use("model", lambda bad: mutate(bad / "generation_config.json", number), "cut-model")


@pytest.mark.parametrize("number", range(12))
def test_one_value_of_an_adapters_configuration(use, number):
    use("adapter", lambda bad: mutate(bad / "adapter_config.json", number))


@pytest.mark.parametrize("number", range(10))
def test_one_value_of_an_index_of_shards(use, number):
    use("sharded", lambda bad: mutate(bad / "model.safetensors.index.json", number))


@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize(
    ("kind", "name"), [("model", "config.json"), ("model", "tokenizer.json"), ("adapter", "adapter_config.json")]
)
def test_a_file_of_something_else(use, kind, name, content):
    use(kind, lambda bad: (bad / name).write_bytes(content), must_fail=True)


CONFIGURATIONS = {
    "unknown type": {"model_type": "nothing"},
    "unknown activation": {"hidden_act": "nothing"},
    "heads that do not divide": {"num_attention_heads": 5, "head_dim": None},
    "more heads of keys": {"num_key_value_heads": 3},
    "a vocabulary of another size": {"vocab_size": 7},
    "a vast vocabulary": {"vocab_size": 10**12},
    "no layer": {"num_hidden_layers": 0},
    "more layers": {"num_hidden_layers": 3},
    "vast layers": {"hidden_size": 10**9},
    "no width": {"hidden_size": 0},
    "negative width": {"intermediate_size": -1},
    "code of its own": {"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}, "model_type": "own"},
    "an encoder": {"is_encoder_decoder": True},
    "another class": {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
    "rope of no kind": {"rope_parameters": {"rope_type": "nothing", "rope_theta": 1.0}},
    "rope without its factor": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}},
    **{
        f"quantised by {method}": {"quantization_config": {"quant_method": method, "bits": 4}}
        for method in ("gptq", "awq", "bitsandbytes", "hqq", "compressed-tensors", "quanto", "fp8", "mxfp4", "nothing", "torchao")
    },
    "quantised by a text": {"quantization_config": "4bit"},
    "quantised by nothing": {"quantization_config": {}},
}  # fmt: skip


@pytest.mark.parametrize("change", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_configuration_that_does_not_fit(use, change):
    def spoil(bad):
        config = json.loads((bad / "config.json").read_text())
        (bad / "config.json").write_text(json.dumps(config | change))

    use("model", spoil)


def tensors(**changes):
    """A safetensors file with a changed header."""

    def spoil(bad):
        path = bad / "model.safetensors"
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        first = next(name for name in header if name != "__metadata__")
        header[first] |= changes
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return spoil


def raw(change):
    def spoil(bad):
        path = bad / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
WEIGHTS = {
    "no bytes": raw(lambda data: b""),
    "seven bytes": raw(lambda data: data[:7]),
    "cut in the header": raw(lambda data: data[:100]),
    "cut in the weights": raw(lambda data: data[:-5]),
    "more than its weights": raw(lambda data: data + b"1234"),
    "header of 2^64 bytes": raw(lambda data: b"\xff" * 8 + data[8:]),
    "header of 2^40 bytes": raw(lambda data: struct.pack("<Q", 1 << 40) + data[8:]),
    "header of no bytes": raw(lambda data: bytes(8) + data[8:]),
    "header is no JSON": raw(lambda data: data[:8] + b"?" + data[9:]),
    "a page of the web": raw(lambda data: b"<!DOCTYPE html><html><body>404</body></html>"),
    "a pointer to the large file": raw(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    "a key twice": raw(lambda data: struct.pack("<Q", 2 * len(ONE) + 3) + b"{" + ONE + b"," + ONE + b"}" + bytes(4)),
    "overlapping": tensors(data_offsets=[4, 8]),
    "backwards": tensors(data_offsets=[8, 4]),
    "beyond the file": tensors(data_offsets=[0, 1 << 62]),
    "negative": tensors(data_offsets=[-4, 4]),
    "no offsets": tensors(data_offsets=None),
    "a vast shape": tensors(shape=[1 << 40, 1 << 40]),
    "another shape": tensors(shape=[3]),
    "an unknown type": tensors(dtype="F3"),
    "another type": tensors(dtype="I32"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_weights(use, spoil):
    use("model", spoil, must_fail=spoil is not WEIGHTS["another type"])


TEMPLATES = {
    "does not end": "{% for m in messages %}",
    "no tag": "{% nothing %}",
    "no filter": "{{ messages | nothing }}",
    "an unknown name": "{{ nothing.at_all }}",
    "no syntax": "{{ }}",
    "raises": "{{ raise_exception('no') }}",
    "empty": "",
    "says nothing": "hello",
    "a forbidden attribute": "{{ messages.__class__.__mro__ }}",
    "not utf-8": b"\xff\xfe",
    "divides by zero": "{{ 1 / 0 }}",
    "calls itself": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "has no end": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_template_that_fails(use, monkeypatch, template):
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    data = template if isinstance(template, bytes) else template.encode()
    use("model", lambda bad: (bad / "chat_template.jinja").write_bytes(data), must_fail=bool(data))


TOKENIZERS = {
    "a rust panic": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "no model": {"model": {"type": "Nothing"}},
    "a broken pattern": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}},
    "ids that repeat": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
    "a negative id": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    "a vast id": {"model": {"type": "BPE", "vocab": {"a": 2**31}, "merges": []}},
    "an unknown merge": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
    "no tokens": {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []},
    "an added token beyond": {"added_tokens": [{"id": 10**9, "content": "<x>", "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}]},
    "no decoder of that kind": {"decoder": {"type": "Nothing"}},
}  # fmt: skip


@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_cannot_be(use, change):
    def spoil(bad):
        tokenizer = json.loads((bad / "tokenizer.json").read_text())
        (bad / "tokenizer.json").write_text(json.dumps(tokenizer | change))

    use("model", spoil)


@pytest.mark.parametrize("value", ["text", [], {}, "1e9"])
def test_a_tokenizer_that_fails_on_its_first_text(use, value):
    def spoil(bad):
        config = json.loads((bad / "tokenizer_config.json").read_text())
        (bad / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": value}))

    message = assert_one_line(use("model", spoil, must_fail=True))
    assert "holds no tokenizer that transformers can load" in message


def test_code_of_its_own_is_named_with_the_option_that_runs_it(use):
    def spoil(bad):
        config = json.loads((bad / "config.json").read_text())
        (bad / "config.json").write_text(json.dumps(config | CONFIGURATIONS["code of its own"]))

    assert "--trust-remote-code" in use("model", spoil, must_fail=True).err
