"""The three stages on a tiny real model: what they write, that they repeat to the byte, and that nothing is lost."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from stages import train_oracle
from stages.configs import OracleConfig, PolicyConfig
from stages.errors import SepoError
from stages.model.folders import load_model, save_model, vocabulary_hash
from stages.model.metrics import read_metrics
from stages.reporting import Quiet
from stages.store.scores import open_scores
from tests import reference
from tests.conftest import CHATML, byte_level_tokenizer, tiny_llama, token_pair, word_rows, write_lines
from tests.world import run_oracle, run_policy, run_score


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def weights(folder):
    model = load_model(folder, trust_remote_code=False)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


MODEL_FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
}  # fmt: skip
CARD_FILES = {"README.md", "curves.png"}
OWN_FILES = {"manifest.json", "timing.jsonl"}
"""what holds times; a card names its folder"""


def repeatable(folder):
    """The files that a rerun writes to the byte."""
    return {name for name in files(folder) - OWN_FILES if not name.endswith("README.md")}


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
    [
        {"chosen_ratio": 0.6},
        {"rejected_ratio": 0.6},
        {"gamma": 1.0},
        {"margin": 1.5},
        {"select": "random"},
        {"objective": "simpo"},
        {"seed": 7},
        {"max_length": 22},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_policy_option_changes_the_weights(world, chat_folder, tmp_path, option):
    run_policy(world, chat_folder, output=tmp_path / "other", **option)
    assert not torch.equal(weights(tmp_path / "other"), weights(world / "policy"))


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ({"beta": 0.1}, {"oracle"}),
        ({"sft_weight": 1.0}, {"oracle"}),
        ({"learning_rate": 1e-3}, {"oracle"}),
        ({"data_fraction": 0.5}, {"reference", "oracle"}),
        ({"eval_fraction": 0.4}, {"reference", "oracle"}),
        ({"sft_epochs": 2}, {"reference", "oracle"}),
        ({"sft_learning_rate": 1e-3}, {"reference", "oracle"}),
        ({"sft_batch_size": 4}, {"reference", "oracle"}),
        ({"seed": 7}, {"reference", "oracle"}),
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_oracle_option_changes_the_weights(world, chat_folder, tmp_path, option, changed):
    run_oracle(world, chat_folder, output=tmp_path / "other", **option)
    moved = {
        name for name in ("reference", "oracle")
        if not torch.equal(weights(tmp_path / "other" / name), weights(world / "oracle" / name))
    }  # fmt: skip
    assert moved == changed


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


def test_a_rerun_with_the_same_seed_gives_the_same_bytes(world, chat_folder, tmp_path):
    run_oracle(world, chat_folder, output=tmp_path / "oracle")
    run_score(tmp_path, dataset=world / "pairs.jsonl")
    run_policy(tmp_path, chat_folder)
    for stage in ("oracle", "scores", "policy"):
        for name in repeatable(world / stage):
            assert (tmp_path / stage / name).read_bytes() == (world / stage / name).read_bytes(), name
        assert manifest(tmp_path / stage)["fingerprint"] == manifest(world / stage)["fingerprint"]


def test_a_finished_stage_is_not_redone(world, chat_folder):
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()}
    summaries = [run_oracle(world, chat_folder), run_score(world), run_policy(world, chat_folder)]
    assert not any(summary.fresh for summary in summaries)
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()} == before


def test_a_different_setting_is_refused_by_name(world, chat_folder):
    with pytest.raises(SepoError, match=r"holds another run: beta is 0\.5 there and 0\.2 here$"):
        run_oracle(world, chat_folder, beta=0.2)
    with pytest.raises(SepoError, match=r"holds another run: max_length is 128 there and 64 here$"):
        run_score(world, max_length=64)
    with pytest.raises(
        SepoError, match=r"chosen_ratio is 0\.3 there and 0\.5 here; gamma is 2\.1 there and 1\.0 here$"
    ):
        run_policy(world, chat_folder, chosen_ratio=0.5, gamma=1.0)


def test_another_data_set_under_the_same_name_is_noticed(world, chat_folder, tmp_path):
    run_score(world, output=tmp_path / "scores", dataset=write_lines(tmp_path / "p.jsonl", word_rows(20)))
    write_lines(tmp_path / "p.jsonl", word_rows(20, seed=1))
    with pytest.raises(SepoError, match=r"the dataset differs$"):
        run_score(world, output=tmp_path / "scores", dataset=tmp_path / "p.jsonl")


def test_settings_that_do_not_decide_the_content_may_change(world, chat_folder):
    assert not run_oracle(world, chat_folder, save_steps=1, logging_steps=3, max_tokens_per_device=512).fresh


def test_only_a_missing_shard_is_made_again(world, tmp_path):
    run_score(world, output=tmp_path / "scores")
    whole = {name: (tmp_path / "scores" / name).read_bytes() for name in files(tmp_path / "scores")}
    times = {name: (tmp_path / "scores" / name).stat().st_mtime_ns for name in whole}
    (tmp_path / "scores/scores-00001.parquet").unlink()
    assert run_score(world, output=tmp_path / "scores").fresh
    for name in set(whole) - {"manifest.json"}:
        assert (tmp_path / "scores" / name).read_bytes() == whole[name]
        redone = (tmp_path / "scores" / name).stat().st_mtime_ns != times[name]
        assert redone == (name == "scores-00001.parquet")


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


def test_stages_share_what_was_tokenised(world, chat_folder, tmp_path, monkeypatch):
    write_lines(tmp_path / "p.jsonl", word_rows(12))
    run_oracle(tmp_path, chat_folder, dataset=tmp_path / "p.jsonl", max_steps=1)
    monkeypatch.setattr("stages.data.encode.Encoder.encode_all", None)
    run_score(tmp_path, dataset=tmp_path / "p.jsonl")


class Killed(Exception):
    pass


class KilledIn(Quiet):
    """Ends the run like a power cut once a task of some title has advanced so far."""

    def __init__(self, title, after):
        super().__init__()
        self.title, self.after, self.current = title, after, ""

    def task(self, title, total, unit):
        self.current = title
        return super().task(title, total, unit)

    def advance(self, amount=1, note=""):
        if self.current == self.title:
            self.after -= amount
            if self.after < 0:
                raise Killed


@pytest.mark.parametrize(("title", "after"), [("sft", 2), ("reference", 0), ("dpo", 3), ("oracle, held-out pairs", 0)])
def test_a_killed_oracle_run_ends_like_an_untouched_one(world, chat_folder, tmp_path, title, after):
    with pytest.raises(Killed):
        run_oracle(world, chat_folder, KilledIn(title, after), output=tmp_path / "o", save_steps=2)
    assert not (tmp_path / "o/manifest.json").exists()
    run_oracle(world, chat_folder, output=tmp_path / "o", save_steps=2)
    assert files(tmp_path / "o") == files(world / "oracle")
    for name in repeatable(world / "oracle"):
        assert (tmp_path / "o" / name).read_bytes() == (world / "oracle" / name).read_bytes(), name


@pytest.mark.parametrize("after", [0, 17, 33])
def test_a_killed_scorer_keeps_its_shards(world, tmp_path, after):
    with pytest.raises(Killed):
        run_score(world, KilledIn("score", after), output=tmp_path / "s")
    done = files(tmp_path / "s")
    assert "manifest.json" not in done
    assert len([name for name in done if name.endswith(".parquet")]) == after // 16
    run_score(world, output=tmp_path / "s")
    for name in files(world / "scores") - {"manifest.json"}:
        assert (tmp_path / "s" / name).read_bytes() == (world / "scores" / name).read_bytes()


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
    assert (counts["train"], counts["held_out"]) == (30, 10)
    pairs = [token_pair(number, [number], [1], [2]) for number in range(100)]

    def split(data_fraction, seed):
        parts = train_oracle.split_pairs(pairs, 0.1, data_fraction, seed)
        return [{pair.pair_id for pair in part} for part in (parts.train, parts.held_out)]

    train, held_out = split(0.5, 3)
    assert (len(train), len(held_out)) == (45, 10)
    assert not train & held_out
    assert held_out == split(1.0, 3)[1]
    assert train < split(1.0, 3)[0]
    assert train != split(0.5, 4)[0]


def test_pairs_of_one_prompt_are_held_out_together():
    pairs = [token_pair(number, [number // 4], [1], [2]) for number in range(100)]
    split = train_oracle.split_pairs(pairs, 0.1, 1.0, seed=3)
    prompts = [{int(pair.prompt_ids[0]) for pair in part} for part in split]
    assert not prompts[0] & prompts[1]
    assert len(split.held_out) == 12


@pytest.mark.parametrize("changed", ["dataset", "model", "sft_dataset"])
def test_an_oracle_from_other_inputs_is_another_run(world, chat_folder, chatml, tmp_path, changed):
    """The content decides, under whatever name."""
    given = {"dataset": tmp_path / "p.jsonl", "sft_dataset": str(tmp_path / "s.jsonl"), "max_steps": 1}
    write_lines(tmp_path / "p.jsonl", word_rows(20))
    write_lines(tmp_path / "s.jsonl", word_rows(20))
    save_model(tiny_llama(len(chatml)), chatml, tmp_path / "m")
    run_oracle(world, tmp_path / "m", output=tmp_path / "o", **given)
    if changed == "model":
        save_model(tiny_llama(len(chatml), seed=1), chatml, tmp_path / "m")
    else:
        write_lines(tmp_path / ("p.jsonl" if changed == "dataset" else "s.jsonl"), word_rows(20, seed=1))
    with pytest.raises(SepoError, match=f"the {changed} differs$"):
        run_oracle(world, tmp_path / "m", output=tmp_path / "o", **given)


def test_scores_and_policies_from_other_models_are_other_runs(world, chatml, tmp_path):
    for name in ("a", "b", "p"):
        save_model(tiny_llama(len(chatml), seed=ord(name)), chatml, tmp_path / name)
    models = {"oracle": None, "oracle_model": str(tmp_path / "a"), "reference_model": str(tmp_path / "b")}
    run_score(world, output=tmp_path / "s", **models)
    run_policy(tmp_path, tmp_path / "p", scores="s", output="r", max_steps=1)
    save_model(tiny_llama(len(chatml), seed=5), chatml, tmp_path / "p")
    with pytest.raises(SepoError, match=r"the model differs$"):
        run_policy(tmp_path, tmp_path / "p", scores="s", output="r", max_steps=1)
    save_model(tiny_llama(len(chatml), seed=6), chatml, tmp_path / "a")
    with pytest.raises(SepoError, match=r"the oracle differs$"):
        run_score(world, output=tmp_path / "s", **models)
    run_score(world, output=tmp_path / "s", overwrite=True, **models)
    save_model(tiny_llama(len(chatml), seed=ord("p")), chatml, tmp_path / "p")
    with pytest.raises(SepoError, match=r"the scores differs$"):
        run_policy(tmp_path, tmp_path / "p", scores="s", output="r", max_steps=1)


def test_the_oracle_reports_its_accuracy_and_warns_of_a_coin(world, chat_folder, tmp_path):
    results = manifest(world / "oracle")["results"]
    accuracy = results["accuracy"]
    assert accuracy["low"] < accuracy["value"] <= accuracy["high"] + 1e-9
    reporter = Quiet()
    run_oracle(world, chat_folder, reporter, output=tmp_path / "o", learning_rate=1e-9, sft_epochs=0)
    assert any("not better than a coin" in warning for warning in reporter.warnings)
    assert manifest(tmp_path / "o")["warnings"] == reporter.warnings


def test_a_policy_with_another_vocabulary_is_refused(world, tmp_path):
    other = byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|pad|>")
    save_model(tiny_llama(len(other)), other, tmp_path / "other")
    with pytest.raises(
        SepoError, match=r"the token->id map of .*other is not the one .*scores was made with \(\d+ and \d+ tokens\)"
    ):
        run_policy(world, tmp_path / "other", output=tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_padded_head_is_no_other_vocabulary(world, chatml, tmp_path):
    """Qwen2.5's heads have 151,936 or 152,064 rows for one and the same tokenizer."""
    save_model(tiny_llama(len(chatml) + 64), chatml, tmp_path / "padded")
    assert run_policy(world, tmp_path / "padded", output=tmp_path / "p").fresh


def test_a_head_with_too_few_rows_is_refused(world, chatml, tmp_path):
    save_model(tiny_llama(300), chatml, tmp_path / "small")
    with pytest.raises(SepoError, match=r"the scores hold token id \d+, but .*small has embeddings for 300"):
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


def test_a_lost_picture_does_not_reopen_a_run(world, chat_folder, tmp_path):
    run_oracle(world, chat_folder, output=tmp_path / "o", max_steps=1)
    for name in ("oracle/curves.png", "reference/README.md"):
        (tmp_path / "o" / name).unlink()
    assert not run_oracle(world, chat_folder, output=tmp_path / "o", max_steps=1).fresh


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
        assert set(recorded) == {f.name for f in dataclasses.fields(config) if f.metadata.get("content", True)}


def test_a_foreign_scorer_needs_six_columns_and_a_small_manifest(world, chat_folder, chatml, tmp_path):
    """As the README describes it: other scores for the same ids, written by nothing of ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "scores"
    folder.mkdir()
    ids = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]
    columns = dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), ([part] * 3 for part in ids), strict=True))
    columns |= {
        "pair_id": [0, 1, 2],
        "chosen_scores": [[0.1, 0.9, -3.0, 0.2]] * 3,
        "rejected_scores": [[-1.0, 4.0]] * 3,
    }
    metadata = {"sepo.format": "1", "sepo.fingerprint": "mine", "sepo.tokenizer": vocabulary_hash(chatml)}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / "scores-00000.parquet")
    written = {"format": 1, "stage": "score", "fingerprint": "mine", "files": ["scores-00000.parquet"]}
    written |= {"counts": {"kept": 3}, "tokenizer": {"vocabulary": vocabulary_hash(chatml), "size": len(chatml)}}
    (folder / "manifest.json").write_text(json.dumps(written))
    run_policy(tmp_path, chat_folder)
    counts = manifest(tmp_path / "policy")["counts"]
    assert counts["selected"] == {"chosen": 6, "rejected": 3}


def test_columns_of_other_names(world, tmp_path):
    rows = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in word_rows(40)]
    dataset = write_lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(SepoError, match="no known layout in the columns q, good, bad") as caught:
        run_score(world, output=tmp_path / "s", dataset=dataset)
    assert "--columns" in caught.value.hint
    run_score(world, output=tmp_path / "t", dataset=dataset, columns="prompt=q,chosen=good,rejected=bad")
    ours, theirs = (list(open_scores(folder).rows()) for folder in (tmp_path / "t", world / "scores"))
    assert all((a.scores.chosen == b.scores.chosen).all() for a, b in zip(ours, theirs, strict=True))
