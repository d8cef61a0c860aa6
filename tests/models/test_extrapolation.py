"""`sepo extrapolate`: weights on the line through a model and its reference."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import extrapolate
from stages.configs import ExtrapolateConfig
from stages.errors import SepoError
from stages.evaluation.contamination import training_history
from stages.reporting import Quiet
from stages.tokens.fingerprint import tokenizer_hash
from tests.conftest import CHATML, byte_level_tokenizer, tiny_llama
from tests.world import MODEL_FILES, files, manifest, weights


def extrapolated(model, reference, output, scale):
    config = ExtrapolateConfig(model=str(model), reference_model=str(reference), scale=scale, output_dir=str(output))
    extrapolate.run(config, Quiet())
    return output


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.0, 3.0])
def test_weights_are_moved_along_the_line(world, chat_folder, tmp_path, scale):
    """Embedding and head, which are one matrix here, once."""
    start, end = weights(chat_folder), weights(world / "policy")
    output = extrapolated(world / "policy", chat_folder, tmp_path / "m", scale)
    torch.testing.assert_close(weights(output), start + scale * (end - start), rtol=1e-5, atol=1e-7)
    distance = manifest(output)["results"]["distance"]
    assert distance == pytest.approx(abs(scale) * (end - start).double().norm().item(), rel=1e-4)
    assert files(output) == MODEL_FILES | {"manifest.json"}
    assert training_history(output) == training_history(world / "policy")


def folder_of(path, model, tokenizer):
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_tokenizer_and_precision_stay_and_the_sum_is_float32(chatml, tmp_path):
    models = [tiny_llama(len(chatml), seed).to(torch.bfloat16) for seed in (1, 2)]
    ours, theirs = (folder_of(tmp_path / str(n), model, chatml) for n, model in enumerate(models))
    output = extrapolated(ours, theirs, tmp_path / "m", 1.5)
    found = AutoModelForCausalLM.from_pretrained(output)
    assert found.dtype == torch.bfloat16
    end, start = (model.model.layers[0].mlp.up_proj.weight.float() for model in models)
    expected = (start + 1.5 * (end - start)).to(torch.bfloat16)
    assert torch.equal(found.model.layers[0].mlp.up_proj.weight, expected)
    assert tokenizer_hash(AutoTokenizer.from_pretrained(output)) == tokenizer_hash(chatml)


def test_models_that_do_not_belong_together_are_refused_before_they_load(chat_folder, chatml, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.extrapolate.load_model", None)
    wide = folder_of(tmp_path / "wide", tiny_llama(len(chatml), hidden_size=64, tie_word_embeddings=True), chatml)
    with pytest.raises(
        SepoError, match=r"differ in the shape of 20 weights \(model.embed_tokens.weight: \(.*, 32\) and"
    ):
        extrapolated(chat_folder, wide, tmp_path / "m", 2.0)
    named = []
    for token in ("one", "other"):
        tokenizer = byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")
        tokenizer.add_tokens([token])
        named.append(folder_of(tmp_path / token, tiny_llama(len(tokenizer), tie_word_embeddings=True), tokenizer))
    with pytest.raises(SepoError, match=r"one and .*other do not share a token->id map"):
        extrapolated(*named, tmp_path / "m", 2.0)


def test_weights_that_leave_their_precision_are_not_written(world, chat_folder, tmp_path):
    with pytest.raises(SepoError, match=r"with scale 1e\+42 the weights .* are not finite"):
        extrapolated(world / "policy", chat_folder, tmp_path / "m", 1e42)
    assert not files(tmp_path / "m") & MODEL_FILES
