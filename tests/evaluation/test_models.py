"""Models that cannot be judged, and what is loaded and measured of those that can."""

import shutil

import pytest
import torch
from transformers import PhiConfig, PhiForCausalLM

from stages.errors import SepoError
from stages.evaluation import evaluator
from stages.models import loading
from stages.models.folders import load_model, save_model
from stages.tokens import fingerprint
from tests.evaluation.conftest import Ear, value
from tests.models.test_loading import leave_room


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_model_that_diverged_is_refused_and_nothing_of_it_kept(run, world, chatml, tmp_path, weight, monkeypatch):
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    model = load_model(world / "policy", trust_remote_code=False)
    with torch.no_grad():
        model.model.norm.weight[0] = weight
    save_model(model, chatml, tmp_path / "bad")
    for _ in range(2):
        with pytest.raises(SepoError, match=r"bad: log-probs: [\d,]+ of [\d,]+ are not finite"):
            run(models=[tmp_path / "bad"])
    with pytest.raises(SepoError, match=r"reference: log-probs: "):
        run(models=[world / "policy"], reference_model=str(tmp_path / "bad"))


def test_a_divergence_that_is_not_finite_is_refused():
    with pytest.raises(SepoError, match="x: KL: 1 of 2 are not finite"):
        evaluator._refuse_not_finite(torch.tensor([1.0, float("inf")]).numpy(), "x: KL")


def test_a_reference_that_rules_a_token_out_is_no_measure(run, chatml, tmp_path):
    """No response has that token, so that every log-prob is finite; the divergence, over all tokens, is not."""
    config = PhiConfig(
        vocab_size=len(chatml), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    unused = chatml.convert_tokens_to_ids("<|im_start|>")
    for name, bias in (("model", 0.0), ("base", float("-inf"))):
        torch.manual_seed(0)
        model = PhiForCausalLM(config).eval()
        with torch.no_grad():
            model.lm_head.bias[unused] = bias
        save_model(model, chatml, tmp_path / name)
    given = {"models": [tmp_path / "model"], "reference_model": str(tmp_path / "base"), "samples": 0}
    with pytest.raises(SepoError, match=r"model: KL, pairs: 66 of 66 are not finite"):
        run(**given)
    assert "accuracy_implicit" in run(skip_kl=True, **given)["models"]["model"]["figures"]


@pytest.mark.parametrize("order", [["policy", "oracle/reference"], ["oracle/reference", "policy"]])
def test_no_model_is_loaded_twice(run, world, monkeypatch, tmp_path, order):
    """Also where the reference is one of the models, and not the first."""
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    loaded = []

    def load(folder, **options):
        loaded.append(folder.name)
        return load_model(folder, **options)

    monkeypatch.setattr(loading, "load_model", load)
    run(models=[world / name for name in order])
    assert sorted(loaded) == ["policy", "reference"]


def test_other_code_measures_again(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))

    def tasks():
        ear = Ear()
        run(ear, samples=0, output=None)
        return [task for task in ear.tasks if "log-probs" in task]

    assert len(tasks()) == 3
    assert tasks() == []
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "modules_hash", lambda *packages: "other")
        assert len(tasks()) == 3
    assert tasks() == []


def test_the_hash_of_modules_sees_each_line_of_them(tmp_path, monkeypatch):
    stages = tmp_path / "stages"
    for part in ("tokens", "logprobs", "method"):
        shutil.copytree(fingerprint.__file__.rsplit("/", 2)[0] + f"/{part}", stages / part)
    shutil.copy(fingerprint.__file__.rsplit("/", 2)[0] + "/types.py", stages)
    monkeypatch.setattr(fingerprint, "__file__", str(stages / "tokens/fingerprint.py"))
    before = fingerprint.modules_hash("logprobs", "method")
    for name in ("logprobs/logps.py", "method/rewards.py", "types.py"):
        text = (stages / name).read_text()
        (stages / name).write_text(text + "\n")
        assert fingerprint.modules_hash("logprobs", "method") != before
        (stages / name).write_text(text)
    (stages / "tokens/chat.py").write_text("")
    assert fingerprint.modules_hash("logprobs", "method") == before


def test_a_folder_of_scores_keeps_the_limit_it_is_given(run, world):
    given = {"samples": 0, "reference_model": None, "models": [world / "oracle/oracle"], "max_length": 22}
    ours, theirs = (
        run(dataset=str(world / name), overlong="truncate", **given)["models"]["oracle"]
        for name in ("scores", "pairs.jsonl")
    )
    assert ours["figures"] == theirs["figures"]
    assert ours["counts"] == theirs["counts"]
    assert ours["counts"]["truncated"] > 0
    with pytest.raises(SepoError, match=r"pair \d+ has \d+ tokens, more than max_length 22"):
        run(dataset=str(world / "scores"), overlong="error", **given)
    with pytest.raises(SepoError, match="holds scored pairs, which have no columns to name"):
        run(dataset=str(world / "scores"), columns="prompt=q", **given)
    with pytest.raises(SepoError, match="and no template to fill"):
        run(dataset=str(world / "scores"), chat_template_kwargs='{"a": 1}', **given)


def test_a_model_without_a_name_is_refused(run, world):
    with pytest.raises(SepoError, match=r"the model '=.*policy' has no name"):
        run(models=[f"={world / 'policy'}"])


def test_a_divided_model_is_measured_as_the_whole_one(run, monkeypatch, tmp_path):
    """Two models and their reference, each loaded once."""
    figures = {}
    for device_map in (None, "auto"):
        monkeypatch.setenv("SEPO_CACHE", str(tmp_path / f"cache-{device_map}"))
        ear = Ear()
        figures[device_map] = run(ear, samples=0, skip_kl=True, device_map=device_map)["models"]
        (tmp_path / "out.json").unlink()
        leave_room(monkeypatch, 0.05)
    assert sum("on disk" in line for line in ear.said) == 3
    assert figures["auto"] == figures[None]


def test_precision_is_another_measurement_and_is_told(run):
    exact, half = (run(samples=0, skip_kl=True, precision=name) for name in ("float32", "bfloat16"))
    assert half["settings"]["precision"] == "bfloat16"
    assert half["fingerprint"] != exact["fingerprint"]
    ours, theirs = (value(report, "policy", "margin_implicit") for report in (half, exact))
    assert ours != theirs
    assert ours == pytest.approx(theirs, abs=0.3)
