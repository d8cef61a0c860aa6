"""Parameters from the configuration alone, and a cost that can be added up on paper."""

import json

import pytest

from stages.errors import SepoError
from stages.report.estimate import ModelSize, cost_table, gigabytes, model_size, stage_costs
from tests.conftest import tiny_gpt2, tiny_llama

SIZE = ModelSize(parameters=1000, embeddings=120, activations=70, positions=None)
TOKENS = {"prompt": 20_000, "chosen": 6_000, "rejected": 4_000}


@pytest.mark.parametrize("model", [tiny_llama(120), tiny_llama(120, tie_word_embeddings=True), tiny_gpt2(120)])
def test_a_folder_without_weights_has_the_parameters_of_the_model(tmp_path, model):
    model.config.save_pretrained(tmp_path)
    size = model_size(tmp_path, trust_remote_code=False)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (size.embeddings, size.positions) == (120, 256)


@pytest.mark.parametrize("config", [{"model_type": "t5"}, {"model_type": "nothing"}, {}, {"model_type": "llama", "hidden_size": "x"}])  # fmt: skip
def test_a_configuration_of_no_causal_language_model(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SepoError, match="causal language model") as caught:
        model_size(tmp_path, trust_remote_code=False)
    assert "\n" not in caught.value.message


def test_costs_by_hand():
    """5% are held out: 1,900 pairs to train on. A model sees a prompt once for both of its answers."""
    sft, dpo, score, policy = stage_costs(SIZE, 2000, TOKENS)
    assert (sft["tokens"], sft["steps"], sft["operations"]) == (19_000 + 5_700, 4, 6 * 1000 * 24_700)
    assert (dpo["tokens"], dpo["steps"]) == (28_500, 15)
    assert dpo["operations"] == 6 * 1000 * 28_500 + 2 * 1000 * 30_000
    assert (score["tokens"], score["steps"], score["operations"]) == (60_000, None, 2 * 1000 * 60_000)
    assert (policy["tokens"], policy["steps"], policy["operations"]) == (30_000, 16, 6 * 1000 * 30_000)


def test_memory_is_weights_gradients_and_moments_and_what_the_smallest_micro_batch_leaves():
    memory = [cost["memory"] for cost in stage_costs(SIZE, 2000, TOKENS)]
    training = 16 * 1000 + 4 * 256 * 70
    assert memory == [training, training, 2 * 4 * 1000, training]
    few = stage_costs(SIZE, 1, {"prompt": 30, "chosen": 10, "rejected": 10})
    assert few[0]["memory"] == 16 * 1000 + 4 * 50 * 70
    assert [cost["steps"] for cost in few] == [1, 1, None, 1]


def test_costs_are_shown_in_units_for_people():
    table = cost_table(stage_costs(SIZE._replace(parameters=135_000_000), 2000, TOKENS), SIZE, 64_000_000_000)
    assert table.rows[3] == ["train-policy", "30,000", "16", "24.3", "2.16 GB"]
    assert table.rows[2][2] == ""
    assert "64 GB of memory here" in table.title
    assert [gigabytes(count) for count in (1_900_000, 9_851_234_567, 640_000_000_000)] == [
        "0.0019 GB",
        "9.85 GB",
        "640 GB",
    ]
