"""Parameters from the configuration alone, and a cost that can be added up on paper."""

import json

import pytest
import torch

from stages.errors import SepoError
from stages.report.estimate import (
    EFFICIENCY,
    Machine,
    Tokens,
    cost_table,
    duration,
    gigabytes,
    measure_machine,
    model_shape,
    stage_costs,
)
from tests.conftest import tiny_gpt2, tiny_llama

TOKENS = Tokens(pairs=2000, prompt=20_000, chosen=6_000, rejected=4_000)
MACHINE = Machine("cpu", 1e9, 10**12)


@pytest.mark.parametrize("model", [tiny_llama(120), tiny_llama(120, tie_word_embeddings=True), tiny_gpt2(120)])
def test_a_folder_without_weights_has_the_parameters_of_the_model(tmp_path, model):
    model.config.save_pretrained(tmp_path)
    shape = model_shape(tmp_path, trust_remote_code=False)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.body == shape.parameters - (1 if tied else 2) * 120 * 32
    assert (shape.vocabulary, shape.layers, shape.hidden, shape.positions) == (120, 2, 32, 256)


@pytest.mark.parametrize("config", [{"model_type": "t5"}, {"model_type": "nothing"}, {}, {"model_type": "llama", "hidden_size": "x"}])  # fmt: skip
def test_a_configuration_of_no_causal_language_model(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SepoError, match="causal language model") as caught:
        model_shape(tmp_path, trust_remote_code=False)
    assert "\n" not in caught.value.message


@pytest.fixture
def shape(tmp_path):
    tiny_llama(120).config.save_pretrained(tmp_path)
    return model_shape(tmp_path, trust_remote_code=False)


def test_costs_by_hand(shape):
    """5% are held out: 1,900 pairs to train on. A model sees a prompt once for both of its answers."""
    seen, body, head = 20_000 + 10_000, shape.body, shape.head
    sft, dpo, score, policy = stage_costs(shape, TOKENS, MACHINE)
    assert (sft.tokens, sft.steps) == (19_000 + 5_700, 4)
    assert sft.operations == 6 * (body * 24_700 + head * 5_700)
    assert (dpo.tokens, dpo.steps) == (0.95 * seen, 15)
    whole, held_out = 2 * (body * seen + head * 10_000), 0.05 * 2 * (body * seen + head * 10_000)
    assert dpo.operations == pytest.approx(3 * (whole - held_out) + whole + held_out)
    assert (score.tokens, score.steps, score.operations) == (2 * seen, None, 2 * whole)
    assert (policy.tokens, policy.steps, policy.operations) == (seen, 16, 3 * whole)


def test_memory_is_weights_gradients_and_moments_and_what_a_micro_batch_leaves(shape):
    per_token = 4 * 2 * (8 * 32 + 4 * 48)
    for cost in stage_costs(shape, TOKENS, MACHINE):
        if cost.steps:
            assert cost.memory == 16 * shape.parameters + 2048 * per_token
    small = Machine("cpu", 1e9, 2 * int(1.25 * (16 * shape.parameters + 600 * per_token)))
    assert stage_costs(shape, TOKENS, small)[0].memory == 16 * shape.parameters + 512 * per_token
    few = stage_costs(shape, Tokens(1, 30, 10, 10), MACHINE)[0]
    assert few.memory == 16 * shape.parameters + 50 * per_token


def test_a_single_pair_has_a_cost(shape):
    assert [cost.steps for cost in stage_costs(shape, Tokens(1, 5, 3, 2), MACHINE)] == [1, 1, None, 1]


def test_the_machine_is_measured(shape):
    machine = measure_machine(shape, torch.device("cpu"))
    assert machine.speed > 1e6
    assert machine.memory > 1e8
    rows = cost_table(stage_costs(shape, TOKENS, MACHINE), machine).rows
    assert [row[0] for row in rows] == ["SFT (train-oracle)", "DPO (train-oracle)", "score", "train-policy"]


def test_a_faster_machine_needs_less_time(shape):
    cost = stage_costs(shape, TOKENS, MACHINE)[0]
    assert cost.seconds(Machine("cpu", 1e9, 1)) == cost.operations / (EFFICIENCY * 1e9)
    assert cost.seconds(Machine("cpu", 2e9, 1)) == cost.operations / (EFFICIENCY * 2e9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (42, "42 s"), (89, "89 s"), (90, "1.5 min"), (7200, "2.0 h"), (1e6, "11.6 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_bytes_are_never_nothing():
    assert [gigabytes(count) for count in (1_900_000, 9_851_234_567, 640_000_000_000)] == [
        "0.0019 GB",
        "9.85 GB",
        "640 GB",
    ]
