import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import make_demo
from stages.configs import DemoConfig
from stages.demo.language import VOCABULARY, draw_splits
from stages.demo.model import BEGIN, END_OF_TURN, build_demo_model
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_hash
from stages.types import Pair

CONVERSATION = [
    {"role": "system", "content": "say something"},
    {"role": "user", "content": "describe the cat and the dog ."},
    {"role": "assistant", "content": "the cat is old and sees the dog ."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "model"
    build_demo_model(folder, VOCABULARY, seed=3)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_every_word_is_one_token_and_comes_back(tokenizer):
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in VOCABULARY]
    assert all(len(of_word) == 1 for of_word in ids)
    assert len({of_word[0] for of_word in ids}) == len(VOCABULARY)
    assert [tokenizer.decode(of_word) for of_word in ids] == list(VOCABULARY)


def test_foreign_word_is_unknown(tokenizer):
    assert tokenizer("the zebra", add_special_tokens=False)["input_ids"][1] == tokenizer.unk_token_id


def test_responses_decode_to_their_own_text(tokenizer):
    for row in draw_splits(50, 0, seed=3)[0]:
        for text in row.values():
            ids = tokenizer(f"{text}{END_OF_TURN}", add_special_tokens=False)["input_ids"]
            assert len(ids) == len(text.split()) + 1
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_conversation_has_one_bos_and_an_end_for_each_turn(tokenizer):
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert text == (
        "<s><|system|>say something<|end|><|user|>describe the cat and the dog .<|end|>"
        "<|assistant|>the cat is old and sees the dog .<|end|>"
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 3
    assert tokenizer.unk_token_id not in ids


def test_generation_prompt_ends_where_the_answer_begins(tokenizer):
    prompt = tokenizer.apply_chat_template(CONVERSATION[:2], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert whole == prompt + CONVERSATION[2]["content"] + END_OF_TURN


def test_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "the cat"}], tokenize=False)


def test_plain_text_gets_a_bos(tokenizer):
    """The trap that makes a double BOS visible: special tokens are added unless one asks not to."""
    assert tokenizer.convert_ids_to_tokens(tokenizer("the cat")["input_ids"]) == [BEGIN, "the", "cat"]


def test_pipeline_encodes_a_row_word_by_word(tokenizer):
    row = draw_splits(1, 0, seed=3)[0][0]
    prompt = [{"role": "user", "content": row["prompt"]}]
    pair = Encoder(tokenizer).encode(Pair(0, prompt, row["chosen"], row["rejected"]))
    assert tokenizer.convert_ids_to_tokens(pair.chosen_ids.tolist()) == [*row["chosen"].split(), END_OF_TURN]
    assert tokenizer.convert_ids_to_tokens(pair.rejected_ids.tolist()) == [*row["rejected"].split(), END_OF_TURN]
    assert pair.prompt_ids.tolist().count(tokenizer.bos_token_id) == 1


def test_model_is_a_small_float32_llama(model, tokenizer):
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 80_000 < model.num_parameters() < 120_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.max_position_embeddings >= 256
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == len(VOCABULARY) + 7


def test_special_tokens_agree_between_tokenizer_and_model(model, tokenizer):
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(set(tokens)) == 3
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == tokens


def test_same_seed_gives_the_same_bytes(folder, tmp_path):
    state = torch.random.get_rng_state()
    build_demo_model(tmp_path / "again", VOCABULARY, seed=3)
    build_demo_model(tmp_path / "other", VOCABULARY, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    files = {name: _files(path) for name, path in (("one", folder), ("two", tmp_path / "again"))}
    assert files["one"] == files["two"]
    assert _files(tmp_path / "other")["model.safetensors"] != files["one"]["model.safetensors"]


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_small_oracle_beside_the_model_changes_nothing_else(tmp_path):
    few = {"train_pairs": 4, "test_pairs": 2, "seed": 3}
    for name, size in (("one", "same"), ("two", "small")):
        make_demo.run(DemoConfig(output_dir=str(tmp_path / name), oracle_size=size, **few), Quiet())
    assert not (tmp_path / "one/oracle-model").exists()
    for name in ("model/model.safetensors", "model/tokenizer.json", "train.jsonl", "test.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    weak, strong = (AutoModelForCausalLM.from_pretrained(tmp_path / "two" / name) for name in ("oracle-model", "model"))
    assert weak.num_parameters() < strong.num_parameters() / 4
    assert (weak.config.num_hidden_layers, weak.config.hidden_size) == (1, 32)
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / "two" / name) for name in ("oracle-model", "model")]
    assert tokenizer_hash(tokenizers[0]) == tokenizer_hash(tokenizers[1])
    manifest = json.loads((tmp_path / "two/manifest.json").read_text())
    assert "oracle-model/config.json" in manifest["files"]
    with pytest.raises(SepoError, match="oracle_size must be one of same, small, got 'tiny'"):
        DemoConfig(output_dir="d", oracle_size="tiny")
