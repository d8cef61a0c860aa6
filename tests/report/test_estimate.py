"""Operations and memory that can be added up on paper, and how a plan is shown."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stages.configs import OptimizerConfig, ValidateConfig
from stages.errors import SepoError
from stages.models.folders import load_without_weights
from stages.report.estimate import (
    ModelSize,
    cost_table,
    duration,
    gigabytes,
    model_size,
    plan_table,
    stage_costs,
    verdict,
    with_hours,
)
from stages.reporting import Quiet
from stages.training.footprint import Footprint, Machine, planned
from stages.training.lora import make_trainee
from tests.conftest import tiny_gpt2, tiny_llama

SIZE = ModelSize(1000, 120, None, passed=900, trained=900, standing=16_000)
TOKENS = {"prompt": 20_000, "chosen": 6_000, "rejected": 4_000}
GB = 10**9


def size_of(model, folder, **options):
    model.config.save_pretrained(folder)
    config = OptimizerConfig(model=str(folder), **options)
    return model_size(planned(load_without_weights(folder, trust_remote_code=False), config, Quiet()), config.optim)


@pytest.mark.parametrize("model", [tiny_llama(120), tiny_llama(120, tie_word_embeddings=True), tiny_gpt2(120)])
def test_a_folder_without_weights_has_the_parameters_of_the_model(tmp_path, model):
    size = size_of(model, tmp_path)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (size.embeddings, size.positions, size.standing) == (120, 256, 16 * size.parameters)


@pytest.mark.parametrize("config", [{"model_type": "t5"}, {"model_type": "nothing"}, {}, {"model_type": "llama", "hidden_size": "x"}])  # fmt: skip
def test_a_configuration_of_no_causal_language_model(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SepoError, match="causal language model") as caught:
        load_without_weights(tmp_path, trust_remote_code=False)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("rank", [0, 4])
def test_operations_are_those_that_torch_counts(tmp_path, make, rank):
    """But for attention's own, and for the gradient of what the first layer is given."""
    model = make(120)
    size = size_of(model, tmp_path, lora_rank=rank)
    trained = make_trainee(model, OptimizerConfig(lora_rank=rank), "x", Quiet(), merged=False).model
    with FlopCounterMode(display=False) as counter:
        logits = trained(input_ids=torch.zeros(1, 50, dtype=torch.long), use_cache=False).logits
        forward = counter.get_total_flops()
        logits.sum().backward()
    assert 50 * size.forward == pytest.approx(forward, rel=0.05)
    assert 50 * size.training == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_costs_by_hand():
    """5% are held out: 1,900 pairs to train on. A model sees a prompt once for both of its answers."""
    sft, dpo, score, policy = stage_costs(SIZE, 2000, TOKENS, OptimizerConfig())
    assert (sft["tokens"], sft["steps"], sft["operations"]) == (19_000 + 5_700, 4, 6 * 900 * 24_700)
    assert (dpo["tokens"], dpo["steps"]) == (28_500, 15)
    assert dpo["operations"] == 6 * 900 * 28_500 + 2 * 900 * 30_000
    assert (score["tokens"], score["steps"], score["operations"]) == (60_000, None, 2 * 900 * 60_000)
    assert (policy["tokens"], policy["steps"], policy["operations"]) == (30_000, 16, 6 * 900 * 30_000)
    assert [cost["memory"] for cost in (sft, dpo, score, policy)] == [16_000, 16_000, 2 * 4 * 1000, 16_000]
    assert not any(cost["recomputed"] for cost in (sft, dpo, score, policy))


def test_settings_change_the_costs():
    config = OptimizerConfig(batch_size=10, num_train_epochs=2, gradient_checkpointing=True)
    policy = stage_costs(SIZE._replace(trained=100), 2000, TOKENS, config)[3]
    assert (policy["tokens"], policy["steps"]) == (60_000, 400)
    assert policy["operations"] == (4 * 900 + 2 * 100) * 60_000
    assert policy["recomputed"] == 2 * 900 * 60_000


def test_hours_are_of_all_devices_at_their_share_of_the_peak():
    config = ValidateConfig(model="m", dataset="d", plan=True, world_size=4, peak_tflops=100, mfu=0.5)
    [cost] = with_hours([{"operations": 5e14 * 3600, "recomputed": 1e14 * 3600}], config)
    assert cost["hours"] == pytest.approx(3.0)
    assert [duration(hours) for hours in (0.01, 0.1, 3, 72)] == ["36 seconds", "6 minutes", "3 hours", "3 days"]


def test_costs_are_shown_in_units_for_people():
    size = SIZE._replace(passed=134_000_000, trained=134_000_000, standing=2_160_000_000)
    costs = stage_costs(size, 2000, TOKENS, OptimizerConfig())
    table = cost_table(costs, size)
    assert table.rows[3] == ["train-policy", "30,000", "16", "24.1", "2.16 GB"]
    assert table.rows[2][2] == ""
    assert [gigabytes(count) for count in (1_900_000, 9_851_234_567, 640_000_000_000)] == [
        "0.0019 GB",
        "9.85 GB",
        "640 GB",
    ]


def test_a_plan_is_shown_by_part_with_what_is_known_of_each():
    found = Footprint(
        weights=10 * GB, gradients=4 * GB, buckets=0, moments=8 * GB, gathered=5 * GB, loading=40 * GB, head=GB,
        activations=2 * GB, tokens=4096,
    )  # fmt: skip
    machine = Machine(8, True, "cuda", 80 * GB)
    assert verdict(found, machine) == "fits, with micro-batches of 4,096 tokens"
    table = plan_table(found, machine)
    assert table.title.startswith("Training on 8 devices of 80 GB by FSDP2: fits")
    assert ["weights", "10 GB", "counted"] in table.rows
    assert ["activations", "2 GB", "estimated"] in table.rows
    assert not [row for row in table.rows if "again" in row[0]]
    assert [row[1] for row in table.rows[-4:]] == ["30 GB", "37.5 GB", "72 GB", "40 GB"]
    loads = "would fit, but not while the model is loaded and read: 90 GB"
    assert verdict(found._replace(loading=90 * GB), machine) == loads
    assert verdict(found, machine._replace(memory=41 * GB)).startswith("does not fit")
    unknown = plan_table(found._replace(activations=None), machine)
    assert ["activations", "unknown", "estimated"] in unknown.rows
