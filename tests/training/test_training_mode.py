import shutil

import pytest
import torch

from stages.configs import OptimizerConfig
from stages.errors import SepoError
from stages.logprobs.batches import whole
from stages.logprobs.head import find_head, head_logps
from stages.logprobs.logps import Forward, attention_for, weighted_logps
from stages.logprobs.packing import pack
from stages.models.quantization import load_trainable
from stages.training.training_mode import refuse_impossible, training_mode
from tests.conftest import Listens, random_pairs, tiny_gpt2, tiny_llama
from tests.training.fits import SETTINGS, train, weights


def forwards(folder, make, **settings):
    """A trained model, and how often its first layer was computed."""
    model, calls = make(50), []
    layers = model.model.layers if make is tiny_llama else model.transformer.h
    layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    train(folder, model=model, max_tokens_per_device=40, **settings)
    return model, len(calls)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_checkpointing_computes_layers_twice_and_gives_the_same_weights(tmp_path, make):
    plain, once = forwards(tmp_path / "a", make)
    again, twice = forwards(tmp_path / "b", make, gradient_checkpointing=True)
    torch.testing.assert_close(weights(again), weights(plain), atol=1e-6, rtol=1e-5)
    # Some forwards are those of the trial that finds the ways a model can take.
    assert once < twice < 2 * once
    assert not again.is_gradient_checkpointing


def test_a_model_that_cannot_checkpoint_is_refused():
    model = tiny_llama(50)
    model.supports_gradient_checkpointing = False
    with (
        pytest.raises(SepoError, match=r"gradient_checkpointing: .* does not support"),
        training_mode(model, OptimizerConfig(gradient_checkpointing=True)),
    ):
        pass


def test_half_precision_products_change_little_and_leave_float32_weights(tmp_path):
    exact, half = train(tmp_path / "a"), train(tmp_path / "b", mixed_precision="bf16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert not torch.equal(weights(half), weights(exact))
    start = weights(tiny_llama(50))
    moved, apart = weights(exact) - start, weights(half) - weights(exact)
    assert apart.norm() < 0.5 * moved.norm()
    assert torch.get_float32_matmul_precision() == "highest"


def test_autocast_leaves_the_logits_in_float32():
    model = tiny_llama(50)
    hidden_NH, targets_N = torch.randn(7, 32), torch.randint(0, 50, (7,))
    expected_N = head_logps(find_head(model), hidden_NH, targets_N)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head_logps(find_head(model), hidden_NH, targets_N), expected_N)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_layers_have_the_same_gradients():
    model = tiny_llama(50)
    del model.model.layers[1:]
    forward = Forward(model, packs=True, chunked=True)
    batch = pack([whole(pair) for pair in random_pairs(3, 50)], torch.device("cpu"))

    def gradients(**settings):
        model.zero_grad()
        with training_mode(model, OptimizerConfig(**settings)), attention_for(forward, batch):
            weighted_logps(forward, batch).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    torch.testing.assert_close(gradients(compile=True), gradients(), atol=2e-5, rtol=1e-4)


def test_layers_are_compiled_while_they_train_and_not_after_that():
    model = tiny_llama(50)
    with training_mode(model, OptimizerConfig(compile=True)):
        assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
        assert model.training
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)
    assert not model.training


def test_fp16_needs_a_gpu():
    with pytest.raises(SepoError, match="mixed_precision fp16 needs a GPU"):
        refuse_impossible(OptimizerConfig(mixed_precision="fp16"), torch.device("cpu"))


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_a_model_trains_by_the_attention_that_was_asked_for(chat_folder, tmp_path, name):
    models, said = [], []
    for number, chosen in enumerate((None, name)):
        config = OptimizerConfig(**{**SETTINGS, "attn_implementation": chosen})
        model, reporter = load_trainable(chat_folder, config, torch.device("cpu")), Listens()
        train(tmp_path / str(number), model=model, reporter=reporter, attn_implementation=chosen)
        models.append(model)
        said.append([text for text in reporter.said if "attends by" in text])
    assert said == [[], [f"LlamaForCausalLM: attends by {name}; every response has a padded row of its own"]]
    ours, theirs = map(weights, models)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
    assert not torch.equal(ours, theirs)
    with pytest.raises(SepoError, match="attn_implementation must be one of sdpa, eager, got 'flash_attention_2'"):
        OptimizerConfig(attn_implementation="flash_attention_2")
