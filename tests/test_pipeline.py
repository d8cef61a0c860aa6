"""The three stages on a tiny real model: what they compute, write and refuse."""

import numpy as np
import pytest
import torch

from stages import train_oracle
from stages.configs import OracleConfig, PolicyConfig, declared
from stages.errors import SepoError
from stages.models.folders import load_model, save_model
from stages.reporting import Quiet
from stages.store.scores import open_scores
from stages.training.metrics import read_metrics
from tests import reference
from tests.conftest import CHATML, byte_level_tokenizer, tiny_llama, token_pair, word_rows, write_lines
from tests.training.fits import Killed, KilledIn
from tests.world import CARD_FILES, MODEL_FILES, files, manifest, run_oracle, run_policy, run_score, weights


def test_each_stage_writes_exactly_its_files(world):
    models = {f"{name}/{file}" for name in ("reference", "oracle") for file in MODEL_FILES}
    models |= {f"{name}/{file}" for name in ("reference", "oracle") for file in CARD_FILES}
    logs = {"metrics.jsonl", "timing.jsonl"}
    assert files(world / "oracle") == models | logs | {"manifest.json", "reference-logps.parquet"}
    assert files(world / "scores") == {f"scores-0000{i}.parquet" for i in range(3)} | {"manifest.json"}
    assert files(world / "policy") == MODEL_FILES | CARD_FILES | logs | {"manifest.json"}


def test_scores_are_oracle_minus_reference_token_by_token(world):
    """Recomputed from the two folders, one unpadded row at a time, at the ids stored beside the scores."""
    oracle = load_model(world / "oracle/oracle", trust_remote_code=False)
    base = load_model(world / "oracle/reference", trust_remote_code=False)
    rows = list(open_scores(world / "scores").rows())
    assert [row.pair.pair_id for row in rows] == list(range(40))
    for row in rows[::9]:
        for side in ("chosen", "rejected"):
            ids = getattr(row.pair, f"{side}_ids")
            ours = reference.response_logps(oracle, row.pair.prompt_ids, ids)
            theirs = reference.response_logps(base, row.pair.prompt_ids, ids)
            np.testing.assert_allclose(getattr(row.scores, side), reference.scores(ours, theirs), atol=3e-5)
            np.testing.assert_allclose(getattr(row.reference, side), theirs, atol=3e-5)


def test_the_ids_beside_the_scores_are_the_text_of_the_data_set(world, chatml):
    rows = list(open_scores(world / "scores").rows())
    for row, source in zip(rows, word_rows(40), strict=True):
        assert chatml.decode(row.pair.chosen_ids) == source["chosen"] + "<|im_end|>"
        assert chatml.decode(row.pair.rejected_ids) == source["rejected"] + "<|im_end|>"
        assert source["prompt"] in chatml.decode(row.pair.prompt_ids)


def test_dpo_starts_at_ln_2_and_learns(world):
    records = [record for record in read_metrics(world / "oracle") if record["phase"] == "dpo"]
    assert records[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert records[-1]["loss"] < records[0]["loss"]
    assert {record["phase"] for record in read_metrics(world / "oracle")} == {"sft", "dpo"}


def test_the_first_policy_loss_is_that_of_the_reference_implementation(world, chat_folder, tmp_path):
    """One step over all pairs: its logged loss is the mean, over pairs, of the loss written out in plain Python."""
    run_policy(world, chat_folder, output=tmp_path / "one", batch_size=40, chosen_ratio=0.3, rejected_ratio=0.2)
    model = load_model(chat_folder, trust_remote_code=False)
    losses = []
    for row in open_scores(world / "scores").rows():
        logps = [
            reference.response_logps(model, row.pair.prompt_ids, ids)
            for ids in (row.pair.chosen_ids, row.pair.rejected_ids)
        ]
        chosen = reference.select(row.scores.chosen.tolist(), 0.3, highest=True)
        rejected = reference.select(row.scores.rejected.tolist(), 0.2, highest=False)
        losses.append(reference.sepo_loss(*logps, chosen, rejected, 2.1, 0.5))
    assert read_metrics(tmp_path / "one")[0]["loss"] == pytest.approx(np.mean(losses), abs=1e-4)


def test_sepo_on_all_tokens_is_simpo_to_the_bit(world, chat_folder, tmp_path):
    run_policy(world, chat_folder, output=tmp_path / "sepo", chosen_ratio=1.0, rejected_ratio=1.0)
    run_policy(world, chat_folder, output=tmp_path / "simpo", objective="simpo")
    assert torch.equal(weights(tmp_path / "sepo"), weights(tmp_path / "simpo"))
    assert not torch.equal(weights(tmp_path / "sepo"), weights(world / "policy"))


@pytest.mark.parametrize(
    "option",
    [{"chosen_ratio": 0.6}, {"rejected_ratio": 0.6}, {"gamma": 1.0}, {"margin": 1.5}, {"seed": 7}, {"max_length": 22}],
    ids=lambda option: next(iter(option)),
)
def test_every_policy_option_changes_the_weights(world, chat_folder, tmp_path, option):
    run_policy(world, chat_folder, output=tmp_path / "other", **option)
    assert not torch.equal(weights(tmp_path / "other"), weights(world / "policy"))


@pytest.mark.parametrize(
    "option",
    [{"beta": 0.1}, {"sft_weight": 1.0}, {"kl_weight": 0.1}, {"learning_rate": 1e-3}],
    ids=lambda option: next(iter(option)),
)
def test_every_option_of_the_oracle_changes_its_weights_alone(world, chat_folder, tmp_path, option):
    run_oracle(world, chat_folder, output=tmp_path / "other", **option)
    moved = {
        name for name in ("reference", "oracle")
        if not torch.equal(weights(tmp_path / "other" / name), weights(world / "oracle" / name))
    }  # fmt: skip
    assert moved == {"oracle"}


@pytest.mark.parametrize(
    "option",
    [
        {"data_fraction": 0.5},
        {"eval_fraction": 0.4},
        {"sft_epochs": 2},
        {"sft_learning_rate": 1e-3},
        {"sft_batch_size": 4},
        {"seed": 7},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_of_the_reference_changes_its_weights(world, chat_folder, tmp_path, option):
    """The oracle, which starts from it, is left out."""
    with pytest.raises(Killed):
        run_oracle(world, chat_folder, KilledIn("reference", 0), output=tmp_path / "other", **option)
    assert not torch.equal(weights(tmp_path / "other/reference"), weights(world / "oracle/reference"))


def test_the_kl_of_an_oracle_is_that_of_its_reference_from_it(world, chat_folder, tmp_path):
    """After one step of all pairs, in which it was 0, it is a mean over pairs of what plain logits give."""
    options = {"sft_epochs": 0, "eval_fraction": 0.0, "batch_size": 64, "num_train_epochs": 2}
    options |= {"lr_scheduler_type": "constant", "learning_rate": 1e-2, "dataset": tmp_path / "few.jsonl"}
    lines = (world / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[:4]))
    run_oracle(world, chat_folder, output=tmp_path / "two", kl_weight=0.5, **options)
    run_oracle(world, chat_folder, output=tmp_path / "one", max_steps=1, **options)
    theirs, ours = (load_model(folder, trust_remote_code=False) for folder in (chat_folder, tmp_path / "one/oracle"))
    rows = [row.pair for row in open_scores(world / "scores").rows() if row.pair.pair_id < 4]
    sums = [sum(map(sum, (reference.token_kl(theirs, ours, row.prompt_ids, ids) for ids in row[2:]))) for row in rows]
    first, second = (record["sequence_kl"] for record in read_metrics(tmp_path / "two"))
    assert first == pytest.approx(0.0, abs=1e-6)
    assert second == pytest.approx(sum(sums) / len(sums), rel=1e-3)


def test_no_sft_takes_the_model_as_it_is(world, chat_folder, tmp_path):
    run_oracle(world, chat_folder, output=tmp_path / "o", sft_epochs=0)
    assert torch.equal(weights(tmp_path / "o/reference"), weights(chat_folder))
    assert {record["phase"] for record in read_metrics(tmp_path / "o")} == {"dpo"}


def test_an_sft_data_set_of_its_own(world, chat_folder, tmp_path):
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "the lazy dog"}]
    write_lines(tmp_path / "chats.jsonl", [{"messages": turns}] * 8)
    run_oracle(world, chat_folder, output=tmp_path / "o", sft_dataset=str(tmp_path / "chats.jsonl"), sft_epochs=3)
    assert manifest(tmp_path / "o")["counts"]["sft_dataset"]["kept"] == 8
    assert "sft_dataset" in manifest(tmp_path / "o")["inputs"]
    records = [record for record in read_metrics(tmp_path / "o") if record["phase"] == "sft"]
    assert records[-1]["loss"] < records[0]["loss"]


@pytest.mark.parametrize("where", ["dataset", "sft_dataset"])
def test_strict_refuses_a_dropped_row(world, chat_folder, tmp_path, where):
    """Before anything is trained or scored; the rows that are kept are as they would be without it."""
    rows = word_rows(10)
    good = str(write_lines(tmp_path / "good.jsonl", rows))
    bad = str(write_lines(tmp_path / "bad.jsonl", [*rows, {**rows[0], "chosen": " "}]))
    sets = {"dataset": good, "sft_dataset": good} | {where: bad}
    message = r"bad\.jsonl: 1 of 11 rows would be dropped: 1 empty response \(first: row 10\)$"
    with pytest.raises(SepoError, match=message):
        run_oracle(world, chat_folder, output=tmp_path / "o", strict=True, **sets)
    with pytest.raises(SepoError, match=message):
        run_score(world, output=tmp_path / "s", dataset=bad, strict=True)
    assert not (tmp_path / "o/reference").exists()
    run_score(world, output=tmp_path / "s", dataset=good, strict=True)
    assert not run_score(world, output=tmp_path / "s", dataset=good).fresh


def test_oracle_and_reference_may_be_kept_apart(world, tmp_path):
    models = {"oracle_model": str(world / "oracle/oracle"), "reference_model": str(world / "oracle/reference")}
    run_score(world, output=tmp_path / "s", **{**models, "oracle": None})
    for ours, theirs in zip(open_scores(tmp_path / "s").rows(), open_scores(world / "scores").rows(), strict=True):
        np.testing.assert_allclose(ours.scores.chosen, theirs.scores.chosen, atol=2e-5)
        np.testing.assert_allclose(ours.scores.rejected, theirs.scores.rejected, atol=2e-5)


def test_the_token_budget_moves_scores_by_rounding_only(world, tmp_path):
    run_score(world, output=tmp_path / "s", max_tokens_per_device=100)
    for ours, theirs in zip(open_scores(tmp_path / "s").rows(), open_scores(world / "scores").rows(), strict=True):
        np.testing.assert_allclose(ours.scores.chosen, theirs.scores.chosen, atol=2e-5)


def test_the_held_out_pairs_are_never_trained_on(world):
    counts = manifest(world / "oracle")["counts"]
    assert (counts["train"], counts["held_out"]) == (32, 8)
    pairs = [token_pair(number, [number], [1], [2]) for number in range(100)]

    def split(data_fraction, seed):
        parts = train_oracle.split_pairs(pairs, 0.1, data_fraction, seed)
        return [set(part) for part in parts]

    train, held_out = split(0.5, 3)
    assert (len(train), len(held_out)) == (45, 10)
    assert not train & held_out
    assert held_out == split(1.0, 3)[1]
    assert train < split(1.0, 3)[0]
    assert train != split(0.5, 4)[0]


def test_pairs_of_one_prompt_are_held_out_together():
    pairs = [token_pair(number, [number // 4], [1], [2]) for number in range(100)]
    split = train_oracle.split_pairs(pairs, 0.1, 1.0, seed=3)
    prompts = [{int(pairs[index].prompt_ids[0]) for index in part} for part in split]
    assert not prompts[0] & prompts[1]
    assert len(split[1]) == 12


@pytest.mark.parametrize("seed", range(5))
def test_a_prompt_of_many_pairs_is_not_held_out_for_a_few(seed):
    pairs = [token_pair(number, [max(number, 39)], [1], [2]) for number in range(100)]
    _, held_out = train_oracle.split_pairs(pairs, 0.05, 1.0, seed)
    assert len(held_out) == 5
    assert all(index > 39 for index in held_out)
    two_prompts = [token_pair(number, [number % 7 // 4], [1], [2]) for number in range(70)]
    assert len(train_oracle.split_pairs(two_prompts, 0.05, 1.0, seed)[1]) == 30
    assert len(train_oracle.split_pairs(two_prompts[:1], 0.05, 1.0, seed)[1]) == 0


def test_without_a_second_prompt_nothing_is_held_out_and_the_reason_is_told(tmp_path, chat_folder):
    write_lines(tmp_path / "pairs.jsonl", [{**row, "prompt": "what?"} for row in word_rows(4)])
    reporter = Quiet()
    run_oracle(tmp_path, chat_folder, reporter, max_steps=1)
    assert "no pair was held out (all have one prompt): nothing tells whether the oracle learnt" in reporter.warnings


def test_the_oracle_reports_its_accuracy_and_warns_of_a_coin(world, chat_folder, tmp_path):
    results = manifest(world / "oracle")["results"]
    accuracy = results["accuracy"]
    assert accuracy["low"] < accuracy["value"] <= accuracy["high"] + 1e-9
    reporter = Quiet()
    run_oracle(world, chat_folder, reporter, output=tmp_path / "o", learning_rate=1e-9, sft_epochs=0)
    assert any("not shown to be better than a coin" in warning for warning in reporter.warnings)
    assert manifest(tmp_path / "o")["warnings"] == reporter.warnings


def test_a_padded_head_is_no_other_vocabulary(world, chatml, tmp_path):
    """Qwen2.5's heads have 151,936 or 152,064 rows for one and the same tokenizer."""
    save_model(tiny_llama(len(chatml) + 64), chatml, tmp_path / "padded")
    assert run_policy(world, tmp_path / "padded", output=tmp_path / "p").fresh


def test_a_head_with_too_few_rows_is_refused(world, chatml, tmp_path):
    save_model(tiny_llama(300), chatml, tmp_path / "small")
    with pytest.raises(SepoError, match=r"the pairs hold token id \d+, but .*small has embeddings for 300"):
        run_policy(world, tmp_path / "small", output=tmp_path / "p")


def test_another_chat_template_is_a_warning(world, tmp_path):
    other = byte_level_tokenizer(CHATML + " ", eos_token="<|im_end|>", pad_token="<|im_end|>")
    save_model(tiny_llama(len(other)), other, tmp_path / "other")
    reporter = Quiet()
    run_policy(world, tmp_path / "other", reporter, output=tmp_path / "p")
    assert any("chat template" in warning for warning in reporter.warnings)


def test_the_policy_is_an_ordinary_model_folder(world):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(world / "policy")
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**prompt, max_new_tokens=3).shape[1] > prompt["input_ids"].shape[1]
    card = (world / "policy/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert manifest(world / "scores")["fingerprint"] in card
    assert "![sepo by step](curves.png)" in card
    assert "| margin | 0.5 |" in card
    assert "| tokens, chosen |" in card


def test_the_cards_of_reference_and_oracle_say_what_they_are(world, chat_folder, tmp_path):
    oracle, reference = ((world / "oracle" / name / "README.md").read_text() for name in ("oracle", "reference"))
    assert "![dpo by step](curves.png)" in oracle
    accuracy = manifest(world / "oracle")["results"]["accuracy"]["value"]
    assert f"| held-out accuracy | {accuracy:.6g} |" in oracle
    assert f"| dataset | {manifest(world / 'oracle')['inputs']['dataset']} |" in oracle
    assert "![sft by step](curves.png)" in reference
    run_oracle(world, chat_folder, output=tmp_path / "o", sft_epochs=0, max_steps=1)
    assert "without fine-tuning" in (tmp_path / "o/reference/README.md").read_text()
    assert not (tmp_path / "o/reference/curves.png").exists()


def test_the_manifest_counts_what_was_selected(world):
    counts = manifest(world / "policy")["counts"]
    selected = [0, 0]
    for row in open_scores(world / "scores").rows():
        selected[0] += len(reference.select(row.scores.chosen.tolist(), 0.3, highest=True))
        selected[1] += len(reference.select(row.scores.rejected.tolist(), 0.3, highest=False))
    assert [counts["selected"]["chosen"], counts["selected"]["rejected"]] == selected


def test_every_setting_that_matters_is_in_the_manifest(world):
    for stage, config in [("oracle", OracleConfig), ("policy", PolicyConfig)]:
        recorded = manifest(world / stage)["settings"]
        options = [(each.name, each.option) for each in declared(config)]
        assert set(recorded) == {name for name, option in options if option.content}
