"""The tables of `sepo demo-report`: tokens found are counted by hand, and samples drawn again."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages import demo_report, make_demo
from stages.configs import DemoConfig, DemoReportConfig
from stages.demo.language import LEXICAL, Truth, true_reward
from stages.logprobs.decode import DecodePlan, DecodeRequest, decode
from stages.logprobs.paths import find_paths
from stages.models.folders import load_model, load_tokenizer
from stages.reporting import Quiet
from stages.store.manifest import Input
from stages.types import PairLogps, ScoredPair
from tests.conftest import token_pair


def scored(number, chosen_ids, rejected_ids, chosen, rejected):
    return ScoredPair(token_pair(number, [1], chosen_ids, rejected_ids), PairLogps(*map(np.float32, (chosen, rejected))), None)  # fmt: skip


def test_recall_by_hand():
    """Id 7 is a good word and 8 a bad one. At k = 0.5 two of four are selected: of chosen, both good words of the first
    pair and one of two of the second; of rejected, whose lowest scores count, one of three bad words.
    """
    truth = Truth({"7": 2.0, "8": -1.0})
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: [str(each) for each in ids])
    rows = [
        scored(0, [7, 7, 1, 8], [8, 8, 8, 1], [3, 2, 1, 0], [-9, 1, 2, -8]),
        scored(1, [7, 1, 7, 1], [1, 2, 3, 7], [3, 2, 1, 0], [0, 0, 0, -1]),
    ]
    found = demo_report._recall(SimpleNamespace(rows=lambda: rows), truth, tokenizer, seed=0)
    half = {side: found[f"{side}, k = 0.5"]["figures"] for side in ("chosen", "rejected")}
    assert half["chosen"]["oracle"]["value"] == 3 / 4
    assert half["rejected"]["oracle"]["value"] == 1 / 3
    assert (half["chosen"]["limit"]["value"], half["rejected"]["limit"]["value"]) == (1, 2 / 3)
    assert half["chosen"]["oracle"]["low"] == 0.5
    assert found["chosen, k = 0.1"]["figures"]["oracle"]["value"] == 2 / 4


def test_what_a_planted_token_is_worth_where_it_stands_decides_whether_it_is_a_key():
    """After 9 its worth is turned: of three tokens 7 of a chosen response the last one is no key token."""
    truth = Truth({"7": 2.0}, frozenset("9"))
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: [str(each) for each in ids])
    rows = [scored(0, [7, 7, 9, 7], [9, 7, 7, 1], [3, 1, 0, 2], [0, -1, 1, 2])]
    found = demo_report._recall(SimpleNamespace(rows=lambda: rows), truth, tokenizer, seed=0)
    values = {side: found[f"{side}, k = 0.5"]["figures"]["oracle"]["value"] for side in ("chosen", "rejected")}
    assert values == {"chosen": 1 / 2, "rejected": 1 / 2}


@pytest.mark.parametrize("samples", [5, 9])
def test_samples_are_drawn_for_the_prompts_in_turn(tmp_path, samples):
    demo = tmp_path / "demo"
    make_demo.run(DemoConfig(output_dir=str(demo), train_pairs=2, test_pairs=6), Quiet())
    config = DemoReportConfig(
        demo=str(demo), scores="s", models=("a=x",), reference="x", output_dir="o", samples=samples
    )
    inputs = {"reference": Input("x", "hash"), "dataset": Input(str(demo / "test.jsonl"), "hash")}
    [model] = demo_report._load(config, {"reference": demo / "model"}, inputs, Quiet())
    found = demo_report._evaluate(config, [model], LEXICAL, torch.device("cpu"), Quiet())["reference"]
    tokenizer = load_tokenizer(demo / "model", trust_remote_code=False)
    end = tokenizer.eos_token_id
    decoding = DecodePlan(find_paths(load_model(demo / "model", trust_remote_code=False), Quiet()))
    asked = [DecodeRequest(prompt.ids, 1.0, 1.0, 64, (config.seed, n)) for n, prompt in enumerate(model.prompts)]
    drawn = dict(decode(decoding, asked, ends=(end,), max_tokens=4 * demo_report.KL_TOKENS))
    answers = [drawn[number].answer_ids for number in range(samples)]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    assert [prompt.pair_id for prompt in model.prompts] == [number % 6 for number in range(samples)]
    assert found["samples"] == samples
    assert found["figures"]["true_reward"]["value"] == pytest.approx(np.mean([true_reward(text) for text in texts]))
    lengths = [len(answer) - (answer[-1] == end) for answer in answers]
    assert found["figures"]["sample_tokens"]["value"] == pytest.approx(np.mean(lengths))
    assert found["figures"]["sample_kl_per_token"]["value"] == 0
