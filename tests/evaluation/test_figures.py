"""`sepo evaluate` on tiny real models: its numbers against plain loops, its options, and what it is given."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages import make_demo
from stages.configs import DemoConfig, EvaluateConfig
from stages.demo.language import VOCABULARY
from stages.demo.model import build_demo_model
from stages.errors import SepoError
from stages.evaluation.held_out import draw_prompts, prompts_for, read_held_out
from stages.models.folders import load_model, load_tokenizer, save_model
from stages.reporting import Quiet
from tests import reference
from tests.conftest import CHATML, byte_level_tokenizer, random_pairs, tiny_gpt2, tiny_llama, word_rows, write_lines
from tests.evaluation.conftest import FAST, Ear, value


def test_the_figures_are_those_of_plain_loops(run, world, held_out, tmp_path):
    """Every log-prob and every divergence again, one response and one token at a time."""
    report = run(samples=0)
    names = {"policy": world / "policy", "oracle": world / "oracle/oracle", "reference": world / "oracle/reference"}
    models = {name: load_model(folder, trust_remote_code=False).eval() for name, folder in names.items()}
    tokenizer = load_tokenizer(names["policy"], trust_remote_code=False)
    config = EvaluateConfig(models=("x",), dataset=str(held_out), **FAST)
    pairs = read_held_out("x", tokenizer, config, Quiet()).pairs
    rows = pq.read_table(tmp_path / "out.pairs.parquet").to_pylist()
    assert [(row["model"], row["pair_id"]) for row in rows] == [(m, n) for m in report["models"] for n in range(33)]
    wins = {(name, way): [] for name in names for way in ("sum", "mean", "implicit")}
    for row in rows[::3]:
        pair, model = pairs[row["pair_id"]], models[row["model"]]
        for side in ("chosen", "rejected"):
            ids = getattr(pair, f"{side}_ids")
            ours, theirs = (
                reference.response_logps(each, pair.prompt_ids, ids) for each in (model, models["reference"])
            )
            kl = reference.token_kl(model, models["reference"], pair.prompt_ids, ids)
            assert row[f"{side}_tokens"] == len(ids)
            assert row[f"{side}_logp"] == pytest.approx(sum(ours), abs=2e-4)
            assert row[f"{side}_reference_logp"] == pytest.approx(sum(theirs), abs=2e-4)
            assert row[f"{side}_kl"] == pytest.approx(sum(kl), abs=2e-4)
    for row in rows:
        sums = [row["chosen_logp"], row["rejected_logp"]]
        tokens = [row["chosen_tokens"], row["rejected_tokens"]]
        base = [row["chosen_reference_logp"], row["rejected_reference_logp"]]
        wins[row["model"], "sum"].append(sums[0] > sums[1])
        wins[row["model"], "mean"].append(sums[0] / tokens[0] > sums[1] / tokens[1])
        wins[row["model"], "implicit"].append(sums[0] - base[0] > sums[1] - base[1])
    for name in ("policy", "oracle"):
        for way in ("sum", "mean", "implicit"):
            assert value(report, name, f"accuracy_{way}") == pytest.approx(np.mean(wins[name, way])), (name, way)
    assert value(report, "reference", "accuracy_implicit") == 0.5
    mine = [row for row in rows if row["model"] == "policy"]
    kl, tokens = (sum(row[f"chosen_{x}"] + row[f"rejected_{x}"] for row in mine) for x in ("kl", "tokens"))
    assert value(report, "policy", "kl_per_token") == pytest.approx(kl / tokens)
    assert value(report, "policy", "kl_per_response") == pytest.approx(kl / 66)
    assert kl > 0.01


def test_the_oracle_has_learnt_and_is_told_from_its_reference(run):
    report = run(samples=0)
    [found] = [each for each in report["comparisons"] if each["models"] == ["oracle", "reference"]]
    assert found["verdicts"] == {"accuracy_implicit": "better"}
    assert found["sentences"][0].startswith("oracle is better than reference, by 33 pairs: held-out accuracy")
    [found] = [each for each in report["comparisons"] if each["models"] == ["oracle", "policy"]]
    assert found["differences"]["kl_per_token"]["value"] == pytest.approx(
        value(report, "oracle", "kl_per_token") - value(report, "policy", "kl_per_token")
    )


def test_samples_are_the_models_own(run, world, held_out, tmp_path):
    tokenizer = load_tokenizer(world / "policy", trust_remote_code=False)
    config = EvaluateConfig(models=("x",), dataset=str(held_out), **FAST)
    pairs = read_held_out("x", tokenizer, config, Quiet()).pairs
    prompts = draw_prompts(pairs, 5, config.seed)
    report = run(max_new_tokens=4)
    rows = pq.read_table(tmp_path / "out.samples.parquet").to_pylist()
    assert len(rows) == 3 * 5
    assert [row["pair_id"] for row in rows] == [prompt.pair_id for prompt in prompts] * 3
    mine = [row for row in rows if row["model"] == "policy"]
    assert all(row["tokens"] + row["ended"] <= 4 for row in mine)
    assert len({row["response"] for row in mine}) > 1
    lengths = sum(row["tokens"] + row["ended"] for row in mine)
    assert value(report, "policy", "sample_kl_per_token") == pytest.approx(sum(row["kl"] for row in mine) / lengths)
    assert value(report, "policy", "sample_tokens") == pytest.approx(np.mean([row["tokens"] for row in mine]))
    assert value(report, "policy", "sample_ended") == pytest.approx(np.mean([row["ended"] for row in mine]))
    assert value(report, "reference", "sample_kl_per_token") == 0


def test_kl_can_be_left_out_and_nothing_else_goes_with_it(run, tmp_path):
    whole, less = (
        [run(skip_kl=skip)["models"]["policy"]["figures"]]
        + [pq.read_table(tmp_path / f"out.{table}.parquet").to_pydict() for table in ("pairs", "samples")]
        for skip in (False, True)
    )
    gone = [
        {"kl_per_token", "kl_per_response", "sample_kl_per_token", "sample_kl_per_response"},
        {"chosen_kl", "rejected_kl"},
        {"kl"},
    ]
    for before, after, names in zip(whole, less, gone, strict=True):
        assert set(before) - set(after) == names
        assert all(after[name] == before[name] for name in after)


def test_every_option_changes_the_result(run):
    before = run()
    for option, figure in [
        ({"max_length": 25}, "kl_per_response"),
        ({"max_length": 25, "overlong": "truncate"}, "kl_per_token"),
        ({"samples": 9}, "sample_tokens"),
        ({"max_new_tokens": 3}, "sample_tokens"),
        ({"seed": 1}, "sample_kl_per_token"),
    ]:
        after = run(**option)
        assert before["fingerprint"] != after["fingerprint"]
        assert value(before, "policy", figure) != value(after, "policy", figure), option


def test_the_token_budget_changes_nothing(run, monkeypatch, tmp_path):
    before = run()
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "another"))
    after = run(max_tokens_per_device=60)
    for name in before["models"]:
        ours, theirs = (each["models"][name]["figures"] for each in (before, after))
        assert {figure: found["value"] for figure, found in ours.items()} == pytest.approx(
            {figure: found["value"] for figure, found in theirs.items()}, abs=1e-4
        )


def test_without_a_reference(run):
    report = run(reference_model=None)
    assert set(report["models"]) == {"policy", "oracle"}
    figures = set(report["models"]["policy"]["figures"])
    assert figures == {
        "accuracy_sum", "accuracy_mean", "margin_mean", "sample_tokens", "sample_ended", "sample_repetition",
    }  # fmt: skip
    assert list(report["comparisons"][0]["verdicts"]) == ["accuracy_mean"]


def test_a_reference_among_the_models_has_one_line(run, world):
    report = run(models=(world / "policy", f"start={world / 'oracle/reference'}"), samples=0)
    assert list(report["models"]) == ["policy", "start"]
    assert value(report, "start", "accuracy_implicit") == 0.5
    assert value(report, "start", "kl_per_token") == 0


def test_another_tokenizer_is_paired_by_rows(run, world, tmp_path):
    other = byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|pad|>")
    save_model(tiny_llama(len(other), seed=3), other, tmp_path / "other")
    ear = Ear()
    report = run(ear, models=[world / "policy", tmp_path / "other"], reference_model=None)
    assert any("the models have 2 tokenizers" in warning for warning in ear.warnings)
    [found] = report["comparisons"]
    assert (found["pairs"], found["samples"]) == (33, 5)
    assert report["models"]["policy"]["tokenizer"] != report["models"]["other"]["tokenizer"]
    with pytest.raises(SepoError, match=r"other and the reference .* do not share a token->id map"):
        run(models=[world / "policy", tmp_path / "other"])
    with pytest.raises(SepoError, match="are in the ids of another tokenizer than that of other"):
        run(models=[tmp_path / "other"], reference_model=None, dataset=str(world / "scores"))


def test_scored_pairs_are_a_data_set(run, world):
    given = {"samples": 0, "reference_model": None, "models": [world / "oracle/oracle"]}
    ours, theirs = run(dataset=str(world / "scores"), **given), run(dataset=str(world / "pairs.jsonl"), **given)
    assert ours["models"]["oracle"]["figures"] == theirs["models"]["oracle"]["figures"]
    counts = run(dataset=str(world / "scores"), max_length=22, **given | {"models": [world / "policy"]})["models"][
        "policy"
    ]
    assert 0 < counts["pairs"] < 40
    assert counts["counts"]["dropped"] == {"longer than 22 tokens": 40 - counts["pairs"]}


def test_few_pairs(run, held_out):
    ear = Ear()
    run(ear, dataset=f"{held_out}[:29]", samples=0)
    assert "29 pairs are few: an interval of fewer than 30 is narrower than it should be" in ear.warnings
    ear = Ear()
    run(ear, samples=30)
    assert not [warning for warning in ear.warnings if "few" in warning]
    with pytest.raises(SepoError, match="1 pair is too few: an interval needs at least 2 prompts"):
        run(dataset=f"{held_out}[:1]")


def test_a_prompt_needs_room_for_its_answer(run, chatml, tmp_path):
    """Prompts of 15 tokens, and one of more, in a model of 256 positions."""
    rows = word_rows(4)
    rows[1]["prompt"] = "what is the fox, of course? " * 3
    dataset = str(write_lines(tmp_path / "p.jsonl", rows))
    save_model(tiny_gpt2(len(chatml)), chatml, tmp_path / "short")
    given = {"models": [tmp_path / "short"], "reference_model": None, "samples": 6, "dataset": dataset}
    ear = Ear()
    run(ear, max_new_tokens=256 - 15, **given)
    assert "short: not sampled from: 1 prompt without room for an answer" in ear.said
    asked = pq.read_table(tmp_path / "out.samples.parquet")["pair_id"].to_pylist()
    assert len(asked) == 6
    assert 1 not in asked
    with pytest.raises(SepoError, match="short: no prompt leaves room for 242 tokens in 256 positions"):
        run(max_new_tokens=256 - 14, **given)


def test_a_model_with_too_few_embeddings(run, chatml, tmp_path):
    save_model(tiny_llama(300), chatml, tmp_path / "small")
    with pytest.raises(SepoError, match=r"the pairs hold token id \d+, but small has embeddings for 300"):
        run(models=[tmp_path / "small"], reference_model=None)


def test_heads_padded_to_different_sizes_are_compared_on_what_both_have(run, world, chatml, tmp_path):
    """The further rows of the longer head stand for no token, whatever they say."""
    model = load_model(world / "policy", trust_remote_code=False)
    plain = run(models=[world / "policy"], samples=0)
    model.resize_token_embeddings(len(chatml) + 30, mean_resizing=False)
    save_model(model, chatml, tmp_path / "padded")
    padded = run(models=[tmp_path / "padded"], samples=0)
    assert value(padded, "padded", "kl_per_token") == pytest.approx(value(plain, "policy", "kl_per_token"), rel=1e-3)


def test_prompts_are_drawn_alike_from_what_is_left():
    """Without some of the pairs the others keep their order; a prompt comes again only when all have come."""
    pairs = random_pairs(40, 50)
    whole = [prompt.pair_id for prompt in draw_prompts(pairs, 40, seed=0)]
    assert sorted(whole) == list(range(40)) != whole
    some = [prompt.pair_id for prompt in draw_prompts(pairs[::2], 20, seed=0)]
    assert some == [number for number in whole if number % 2 == 0]
    assert [prompt.pair_id for prompt in draw_prompts(pairs, 40, seed=1)] != whole
    again = draw_prompts(pairs[:3], 7, seed=0)
    assert [prompt.pair_id for prompt in again[:3]] == [prompt.pair_id for prompt in again[3:6]]
    assert len({prompt.key for prompt in again}) == 7
    config = EvaluateConfig(models=("x",), dataset="d", samples=9, max_new_tokens=5)
    same = [pair._replace(prompt_ids=pairs[number % 3].prompt_ids) for number, pair in enumerate(pairs)]
    assert {prompt.pair_id for prompt in prompts_for("x", same, None, config, Quiet())} == {0, 1, 2}
    assert all(len(prompt.ids) <= 5 for prompt in prompts_for("x", pairs, 10, config, Quiet()))


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A demo, and beside its model another one that knows as little."""
    root = tmp_path_factory.mktemp("demo")
    make_demo.run(DemoConfig(output_dir=str(root / "demo"), train_pairs=2, test_pairs=40), Quiet())
    build_demo_model(root / "other", VOCABULARY, seed=1)
    return root


def test_true_rewards_on_the_demo(run, demo, tmp_path):
    """Summed from the words of the samples; the win rate against the reference's answer to the same prompt."""
    report = run(
        models=[demo / "other"], reference_model=str(demo / "demo/model"), demo=str(demo / "demo"), dataset=None,
        samples=40, max_new_tokens=20,
    )  # fmt: skip
    truth = json.loads((demo / "demo/truth.json").read_text())
    rows = pq.read_table(tmp_path / "out.samples.parquet").to_pylist()
    for row in rows:
        assert row["true_reward"] == sum(truth.get(word, 0) for word in row["response"].split())
    theirs, ours = ({row["pair_id"]: row for row in rows if row["model"] == name} for name in ("reference", "other"))
    wins = [
        (ours[n]["true_reward"] > theirs[n]["true_reward"]) + 0.5 * (ours[n]["true_reward"] == theirs[n]["true_reward"])
        for n in ours
    ]
    assert 0 < sum(wins) < 40
    assert value(report, "other", "true_win_rate") == pytest.approx(np.mean(wins))
    assert value(report, "other", "true_reward") == pytest.approx(
        np.mean([row["true_reward"] for row in ours.values()])
    )
    assert value(report, "reference", "true_win_rate") == 0.5
    [found] = report["comparisons"]
    assert set(found["verdicts"]) == {"accuracy_implicit", "true_reward"}
    difference = np.mean([ours[n]["true_reward"] - theirs[n]["true_reward"] for n in ours])
    assert found["differences"]["true_reward"]["value"] == pytest.approx(difference)
    assert "true reward" in found["sentences"][1]


def test_without_a_reference_there_is_nothing_to_win_against(run, demo):
    report = run(models=[demo / "other"], reference_model=None, demo=str(demo / "demo"), dataset=None, max_new_tokens=8)
    assert "true_reward" in report["models"]["other"]["figures"]
    assert "true_win_rate" not in report["models"]["other"]["figures"]
