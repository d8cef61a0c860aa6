import json
import logging
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from stages.errors import SepoError
from stages.models.folders import (
    embedding_rows,
    load_model,
    load_tokenizer,
    model_hash,
    resolve_model,
    save_model,
    save_model_into,
)
from stages.reporting import Quiet
from stages.tokens.fingerprint import tokenizer_hash, vocabulary_hash
from tests.conftest import CHATML, byte_level_tokenizer, tiny_llama


def test_a_folder_comes_back_as_it_was(tmp_path, chat_folder, chatml):
    model = load_model(chat_folder, trust_remote_code=False)
    save_model(model, load_tokenizer(chat_folder, trust_remote_code=False), tmp_path / "again")
    again = load_model(tmp_path / "again", trust_remote_code=False)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    tokenizer = load_tokenizer(tmp_path / "again", trust_remote_code=False)
    assert tokenizer.chat_template == chatml.chat_template
    assert tokenizer_hash(tokenizer) == tokenizer_hash(chatml)
    assert model_hash(tmp_path / "again") == model_hash(chat_folder)


def test_saving_into_a_used_folder_keeps_the_rest(tmp_path, chatml):
    (tmp_path / "metrics.jsonl").write_text("kept")
    promised = []
    names = save_model_into(tiny_llama(len(chatml)), chatml, tmp_path, promise=promised.extend)
    assert promised == names
    assert "model.safetensors" in names
    assert {path.name for path in tmp_path.iterdir()} == {*names, "metrics.jsonl"}


def test_weights_decide_the_hash(tmp_path, chatml):
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        save_model(tiny_llama(len(chatml), seed=seed), chatml, tmp_path / name)
    hashes = [model_hash(tmp_path / name) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_code_of_a_model_decides_the_hash_and_other_files_do_not(tmp_path, chat_folder):
    def hash_with(name, code, **config):
        folder = shutil.copytree(chat_folder, tmp_path / name)
        (folder / "modeling.py").write_text(code)
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(stored | config))
        return model_hash(folder)

    own = {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}
    assert hash_with("a", "x = 1", **own) == hash_with("b", "x = 1", **own) != hash_with("c", "x = 2", **own)
    assert hash_with("d", "x = 1") == hash_with("e", "x = 2") == model_hash(chat_folder)


def test_tokenizer_hashes_see_what_they_should(chatml):
    other_template = byte_level_tokenizer(CHATML + " ", eos_token="<|im_end|>", pad_token="<|im_end|>")
    other_words = byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|other|>")
    assert vocabulary_hash(other_template) == vocabulary_hash(chatml)
    assert tokenizer_hash(other_template) != tokenizer_hash(chatml)
    assert vocabulary_hash(other_words) != vocabulary_hash(chatml)


def test_dropout_is_off_even_in_training(tmp_path, chatml):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(chatml), n_embd=16, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.5)
    save_model(GPT2LMHeadModel(config), chatml, tmp_path / "m")
    model = load_model(tmp_path / "m", trust_remote_code=False).train()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no model folder"),
        (lambda folder: (folder / "config.json").unlink(), "is no model folder: it has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    ],
)
def test_a_model_folder_that_is_none(tmp_path, chat_folder, prepare, said):
    folder = tmp_path / "x.model"
    shutil.copytree(chat_folder, folder)
    prepare(folder)
    with pytest.raises(SepoError, match=said):
        resolve_model(str(folder), Quiet())


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path, chat_folder):
    folder = tmp_path / "m"
    shutil.copytree(chat_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(SepoError, match=r"lacks \d+ of its weights, such as model\.layers\.2"):
        load_model(folder, trust_remote_code=False)


def test_an_encoder_decoder_is_refused_in_words(tmp_path, chatml):
    config = T5Config(vocab_size=len(chatml), d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    save_model(T5ForConditionalGeneration(config), chatml, tmp_path / "t5")
    with pytest.raises(SepoError, match="is an encoder-decoder model; sepo needs a causal language model"):
        load_model(tmp_path / "t5", trust_remote_code=False)
    with pytest.raises(SepoError, match="is an encoder-decoder model"):
        resolve_model(str(tmp_path / "t5"), Quiet())


def test_an_image_model_is_refused_in_words(tmp_path, chatml):
    save_model(tiny_llama(len(chatml)), chatml, tmp_path / "m")
    path = tmp_path / "m/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vision_config": {"hidden_size": 8}}))
    with pytest.raises(SepoError, match="is a model of vision and text; sepo needs a causal language model of text"):
        resolve_model(str(tmp_path / "m"), Quiet())


def test_a_hub_name_while_offline_is_one_line():
    with pytest.raises(SepoError, match="there is no folder nobody/nothing, and the hub did not give it") as caught:
        resolve_model("nobody/nothing", Quiet())
    assert "\n" not in caught.value.message
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in caught.value.hint


def test_embedding_rows_may_exceed_the_tokenizer(chatml):
    assert embedding_rows(tiny_llama(len(chatml) + 64)) == len(chatml) + 64


def test_gathered_weights_are_what_is_saved(tmp_path, chat_folder, chatml):
    """As they come out of a divided model: copies, in which tied weights are no longer one tensor."""
    model = load_model(chat_folder, trust_remote_code=False)
    gathered = {name: weights + 1 for name, weights in model.state_dict().items()}
    save_model(model, chatml, tmp_path / "saved", gathered)
    saved = load_model(tmp_path / "saved", trust_remote_code=False)
    assert saved.lm_head.weight is saved.model.embed_tokens.weight
    for name, weights in saved.state_dict().items():
        assert torch.equal(weights, gathered[name]), name


@pytest.mark.parametrize("file", ["../elsewhere/model.safetensors", "/etc/passwd", "..", None, 3])
def test_an_index_that_leads_out_of_its_folder_is_refused(chat_folder, tmp_path, file):
    shutil.copytree(chat_folder, tmp_path / "model")
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(SepoError, match=r"is no file in its folder"):
        resolve_model(str(tmp_path / "model"), Quiet())


@pytest.mark.parametrize(("kind", "said"), [("mistral", 1), ("llama", 0)])
def test_what_transformers_says_of_a_tokenizer_is_shown_once(kind, said, tmp_path, chatml):
    """It knows that the pattern of some files of Mistral's gives wrong ids, and sepo keeps it quiet but for that."""
    chatml.save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"more{number}": 1000 + len(vocabulary) + number for number in range(100_001)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "transformers_version": "4.50.0"}))
    before, quiet = logging.getLogger("transformers").handlers, Quiet()
    load_tokenizer(tmp_path, trust_remote_code=False, reporter=quiet)
    assert [("fix_mistral_regex" in text) for text in quiet.warnings] == [True] * said
    assert logging.getLogger("transformers").handlers is before
