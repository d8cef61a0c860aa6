"""The token budget that training chooses by itself."""

from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from stages.configs import OptimizerConfig
from stages.errors import SepoError
from stages.logprobs.batches import whole
from stages.logprobs.head import kl_from_reference
from stages.logprobs.logps import Reference, WeightedLogps, attention_for, make_batch
from stages.logprobs.paths import find_paths
from stages.reporting import Quiet
from stages.training.budget import (
    budget_in_room,
    bytes_kept,
    measured_budget,
    measured_kept,
    memory_of,
    standing,
    tokens_in_room,
)
from stages.training.loop import fit
from tests.conftest import Listens, tiny_gpt2, tiny_llama, token_pair

CPU = torch.device("cpu")


def example_of(tokens):
    """A pair whose packed row has so many tokens."""
    return whole(token_pair(0, *(np.arange(part) % 50 for part in (tokens - 20, 10, 10))))


def measured(model, config=None, *, tokens=100, reference=None, ears=None):
    forward = find_paths(model, Quiet())
    module = WeightedLogps(forward)
    examples = [example_of(30), example_of(tokens)]
    # Accelerators of one process share a state; after a training in bfloat16 this one would measure bfloat16.
    AcceleratorState._reset_state()
    return measured_budget(
        Accelerator(cpu=True), module, forward, reference, config or OptimizerConfig(), examples, ears or Listens()
    )


def test_room_by_hand():
    """Half of 1,000 bytes, a fifth of it overhead: 400, of which 100 are taken; a token keeps 3."""
    assert tokens_in_room("cpu", 1000, 100, 3) == 100
    assert tokens_in_room("cuda", 1000, 120, 3) == 200
    assert tokens_in_room("xpu", 1000, 100, 3) == 100
    assert tokens_in_room("cpu", 100, 100, 3) < 0


@pytest.mark.parametrize(
    ("device", "room", "tokens"),
    [
        ("cpu", -5, 256),
        ("cpu", 511, 256),
        ("cpu", 512, 512),
        ("cpu", 1e9, 2048),
        ("cuda", 1e9, 16_384),
        ("mps", 1e9, 2048),
    ],
)
def test_the_largest_power_of_two_within_bounds(device, room, tokens):
    assert budget_in_room(device, room) == tokens


class Squares(torch.nn.Module):
    """Keeps its input for the weight's gradient, the product for the square's, and the weight, which is not counted."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 5))

    def forward(self, values_NI):
        return (values_NI @ self.weight).square()


def test_bytes_kept_by_hand():
    assert bytes_kept(Squares(), torch.ones(7, 3)) == 4 * (7 * 3 + 7 * 5)


def test_what_is_kept_is_counted_once_and_grows_with_the_tokens():
    forward = find_paths(tiny_llama(50), Quiet())

    def kept(tokens):
        batch = make_batch([example_of(tokens)], CPU, packs=forward.packs)
        with attention_for(forward, batch):
            return bytes_kept(WeightedLogps(forward), batch)

    short, long = kept(100), kept(200)
    # Two layers; at least each layer's input, query, key, value, gate, up and their product.
    assert short > 100 * 4 * 2 * (4 * 32 + 3 * 48)
    assert 1.8 * short < long < 2.2 * short


def test_standing_bytes_by_hand():
    trained, frozen = torch.nn.Linear(3, 5), torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    assert standing([trained], "adamw") == (80, 80, 160)
    assert standing([trained], "adamw-8bit") == (80, 80, 40)
    assert standing([trained], "adamw-paged") == (80, 80, 0)
    assert standing([trained, trained, frozen], "adamw") == (80 + 16, 80, 160)


def test_tied_weights_count_once():
    tied, untied = (tiny_llama(50, tie_word_embeddings=tie) for tie in (True, False))
    assert sum(standing([untied], "adamw")) - sum(standing([tied], "adamw")) == 16 * 50 * 32


def with_memory(monkeypatch, size):
    monkeypatch.setattr("stages.training.budget.memory_of", lambda device: size)


def memory_for(tokens, model, kept_by_token):
    return 2 * 1.25 * (sum(standing([model], "adamw")) + tokens * kept_by_token)


def kept_by_token(model, tokens=100):
    forward = find_paths(model, Quiet())
    batch = make_batch([example_of(tokens)], CPU, packs=forward.packs)
    with attention_for(forward, batch):
        return bytes_kept(WeightedLogps(forward), batch) / tokens


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_budget_follows_the_memory(make, monkeypatch):
    model, ears = make(50), Listens()
    for tokens in (512, 1024):
        with_memory(monkeypatch, memory_for(tokens + 1, model, kept_by_token(model)))
        assert measured(model, ears=ears) == tokens
    assert ears.said[0].startswith("micro-batches of up to 512 tokens: of 0.0")
    assert not ears.warnings


def test_checkpointing_makes_room(monkeypatch):
    model = tiny_llama(50)
    with_memory(monkeypatch, memory_for(600, model, kept_by_token(model)))
    assert measured(model) == 512
    assert measured(model, OptimizerConfig(gradient_checkpointing=True)) == 1024


def test_weights_that_autocast_casts_are_no_tokens():
    """Two bytes for every weight of a layer's products, once; a pair of any length then keeps the same a token."""
    model = tiny_llama(50)
    forward = find_paths(model, Quiet())
    half = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    short, long = (
        measured_kept(WeightedLogps(forward), forward, example_of(tokens), autocast=half) for tokens in (60, 240)
    )
    cast = 2 * sum(weight.numel() for name, weight in model.named_parameters() if "_proj" in name)
    assert cast == pytest.approx(short.fixed, rel=0.05)
    assert cast == pytest.approx(long.fixed, rel=0.2)
    assert short.a_token == pytest.approx(long.a_token, rel=0.02)
    assert long.a_token < 0.8 * measured_kept(WeightedLogps(forward), forward, example_of(240)).a_token


def test_smaller_moments_make_room(monkeypatch):
    model = tiny_llama(50)
    with_memory(monkeypatch, memory_for(510, model, kept_by_token(model)))
    assert [measured(model, OptimizerConfig(optim=optim)) for optim in ("adamw", "adamw-8bit")] == [256, 512]


def test_a_second_model_takes_room(monkeypatch):
    model, other = tiny_llama(50), tiny_llama(50, seed=1).requires_grad_(False)
    reference = Reference(find_paths(other, Quiet()), kl_from_reference)
    with_memory(monkeypatch, memory_for(513, model, kept_by_token(model)))
    assert measured(model) == 512
    assert measured(model, reference=reference) == 256


def test_a_pair_that_hardly_fits_is_warned_of(monkeypatch):
    model, ears = tiny_llama(50), Listens()
    with_memory(monkeypatch, memory_for(90, model, kept_by_token(model)))
    assert measured(model, ears=ears) == 256
    [warning] = ears.warnings
    assert warning.startswith("the longest pair is a micro-batch of 100 tokens, and about 90 fit")
    with_memory(monkeypatch, 1000)
    measured(model, ears=ears)
    assert "about 0 fit" in ears.warnings[1]


def test_measuring_leaves_no_trace():
    model = tiny_gpt2(50)
    before = torch.get_rng_state()
    measured(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_of_one_computer_share_its_memory(monkeypatch):
    alone = memory_of(CPU)
    assert 1e8 < alone < 1e13
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_of(CPU) == alone // 4


def test_training_without_a_budget_uses_the_measured_one(tmp_path, monkeypatch):
    def hungry(logps_RW, batch):
        raise MemoryError

    def train(**settings):
        config = OptimizerConfig(save_steps=0, **settings)
        fit(tiny_llama(50), [example_of(30)], hungry, config, phase="test", folder=tmp_path, reporter=Quiet())

    with_memory(monkeypatch, 1000)
    with pytest.raises(SepoError, match=r"budget 256"):
        train()
    with pytest.raises(SepoError, match=r"budget 300"):
        train(max_tokens_per_device=300)
