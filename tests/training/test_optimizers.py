"""The optimisers that are not PyTorch's own; `tests/training/test_loop.py` holds the default to torch.optim.AdamW."""

import pytest
import torch

from stages.configs import OptimizerConfig
from stages.errors import SepoError
from stages.training.optimizers import make_optimizer, refuse_useless_optimizer
from tests.conftest import tiny_llama
from tests.training.fits import train, weights

EIGHT = {"optim": "adamw-8bit"}


def wide():
    """Matrices of 4,096 weights, from which on bitsandbytes keeps moments in 8 bits."""
    model = tiny_llama(50)
    torch.manual_seed(0)
    settings = {**model.config.to_dict(), "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    return type(model)(type(model.config)(**settings))


@pytest.mark.parametrize(
    "option", [{"adam_beta1": 0.5}, {"adam_beta2": 0.5}, {"adam_epsilon": 1e-2}, EIGHT], ids=lambda option: next(iter(option))
)  # fmt: skip
def test_every_option_changes_the_result(tmp_path, option):
    default, other = train(tmp_path / "a", model=wide()), train(tmp_path / "b", model=wide(), **option)
    assert not torch.equal(weights(default), weights(other))


def test_moments_in_8_bits_take_nearly_the_same_steps(tmp_path):
    start = weights(wide())
    exact = weights(train(tmp_path / "a", model=wide())) - start
    rounded = weights(train(tmp_path / "b", model=wide(), **EIGHT)) - start
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.9
    assert 0.9 < rounded.norm() / exact.norm() < 1.1


def test_moments_of_embeddings_and_small_tensors_stay_in_32_bits():
    model = wide()
    optimizer = make_optimizer(model, OptimizerConfig(**EIGHT))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kinds = {name: optimizer.state[each]["state1"].dtype for name, each in model.named_parameters()}
    assert kinds["model.layers.0.mlp.down_proj.weight"] == torch.uint8
    assert kinds["model.norm.weight"] == torch.float32


def test_an_embedding_of_any_size_keeps_its_moments_in_32_bits():
    embedding = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 100))
    optimizer = make_optimizer(embedding, OptimizerConfig(**EIGHT))
    for parameter in embedding.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.state[embedding[0].weight]["state1"].dtype == torch.float32
    assert optimizer.state[embedding[1].weight]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("optim", ["adamw-paged", "adamw-8bit-paged"])
def test_paging_is_refused_where_there_is_nothing_to_page(optim):
    with pytest.raises(SepoError, match=f"optim {optim} moves its state between a CUDA device and the host") as found:
        refuse_useless_optimizer(OptimizerConfig(optim=optim), torch.device("cpu"))
    assert found.value.hint == f"use --optim {optim.removesuffix('-paged')}"
    refuse_useless_optimizer(OptimizerConfig(optim=optim), torch.device("cuda"))


def test_what_bitsandbytes_steps_is_not_divided():
    for optim in ("adamw-8bit", "adamw-paged", "adamw-8bit-paged"):
        with pytest.raises(SepoError, match=f"optim {optim} cannot step weights that FSDP2 divides"):
            refuse_useless_optimizer(OptimizerConfig(optim=optim), torch.device("cuda"), divided=True)
    refuse_useless_optimizer(OptimizerConfig(), torch.device("cuda"), divided=True)
