"""`sepo train-oracle --folds`: oracles that score what they have not seen."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stages import train_oracle
from stages.errors import SepoError
from stages.evaluation.contamination import TrainedOn, training_history
from stages.method.folds import fold_of
from stages.models.folders import load_model
from stages.store.scores import open_scores
from stages.training.schedule import split_pairs
from tests import reference
from tests.conftest import Listens, token_pair, word_rows, write_lines
from tests.world import manifest, run_oracle, run_score, weights

OPTIONS = {"folds": 2, "sft_epochs": 0, "eval_fraction": 0.5}


def rows_of_many_prompts():
    return [{**row, "prompt": f"what is {number}?"} for number, row in enumerate(word_rows(24))]


@pytest.fixture(scope="module")
def folds(tmp_path_factory, chat_folder):
    """Two oracles on halves and their scores; the noise of all of these is measured."""
    root = tmp_path_factory.mktemp("folds")
    write_lines(root / "pairs.jsonl", rows_of_many_prompts())
    run_oracle(root, chat_folder, **OPTIONS)
    run_score(root, noise_check=1.0)
    return root


def test_the_fold_is_told_by_the_prompt_alone():
    pairs = [token_pair(n, [5, n % 40], [n], [n + 1]) for n in range(400)]
    told = [fold_of(pair.prompt_ids, 2) for pair in pairs]
    assert told[:40] * 10 == told
    assert 8 < sum(told[:40]) < 32
    assert {fold_of(pair.prompt_ids, 3) for pair in pairs} == {0, 1, 2}


def split_of(folds):
    pairs = [row.pair for row in open_scores(folds / "scores").rows()]
    return split_pairs(pairs, 0.5, 1.0, 42)


def test_each_oracle_is_that_of_the_other_pairs_alone(folds, chat_folder):
    """To the bit; and the manifest says of how many."""
    train, _ = split_of(folds)
    rows, pairs = rows_of_many_prompts(), [row.pair for row in open_scores(folds / "scores").rows()]
    second = [rows[n] for n in train if fold_of(pairs[n].prompt_ids, 2) == 1]
    write_lines(folds / "second.jsonl", second)
    run_oracle(folds, chat_folder, output="second", dataset=folds / "second.jsonl", sft_epochs=0, eval_fraction=0.0)
    assert torch.equal(weights(folds / "oracle/oracle-1"), weights(folds / "second/oracle"))
    assert not torch.equal(weights(folds / "oracle/oracle-2"), weights(folds / "second/oracle"))
    trained_on = {"oracle-1": len(second), "oracle-2": len(train) - len(second)}
    assert manifest(folds / "oracle")["counts"]["trained_on"] == trained_on
    assert not (folds / "oracle/oracle").exists()
    assert training_history(folds / "oracle/oracle-1")[0] == [TrainedOn(str((folds / "oracle").resolve()))]


def check_scores(root, numbers):
    """Some rows against the two models of their fold."""
    base, rows = (
        load_model(root / "oracle/reference", trust_remote_code=False),
        list(open_scores(root / "scores").rows()),
    )
    assert {fold_of(rows[number].pair.prompt_ids, 2) for number in numbers} == {0, 1}
    for row in (rows[number] for number in numbers):
        name = f"oracle-{fold_of(row.pair.prompt_ids, 2) + 1}"
        oracle = load_model(root / "oracle" / name, trust_remote_code=False)
        ids = row.pair.prompt_ids, row.pair.chosen_ids
        expected = reference.scores(reference.response_logps(oracle, *ids), reference.response_logps(base, *ids))
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(row.scores.chosen, expected, atol=3e-5)


def test_each_pair_is_scored_by_the_oracle_that_has_not_seen_it(folds):
    check_scores(folds, range(0, 24, 5))
    written = manifest(folds / "scores")
    assert written["settings"]["folds"] == 2
    assert {"oracle-1", "oracle-2"} < {*written["inputs"]}
    # Measured again by the same oracles.
    assert written["results"]["noise"]["p99"] < 1e-4


def test_adapters_on_one_reference_after_an_interruption(folds, chat_folder, tmp_path, monkeypatch):
    """The first oracle is there already; each adapter scores its own fold on a base that both share."""
    train = train_oracle.fit

    def interrupted(*given, phase, **options):
        if phase == "dpo-2":
            raise KeyboardInterrupt
        return train(*given, phase=phase, **options)

    options = {**OPTIONS, "dataset": folds / "pairs.jsonl", "lora_rank": 2, "learning_rate": 0.02}
    with monkeypatch.context() as patch:
        patch.setattr(train_oracle, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_oracle(tmp_path, chat_folder, **options)
    first, ears = (tmp_path / "oracle/oracle-1/adapter_model.safetensors").read_bytes(), Listens()
    run_oracle(tmp_path, chat_folder, ears, **options)
    assert any(f"{tmp_path}/oracle/oracle-1 is there already" in text for text in ears.said)
    assert first == (tmp_path / "oracle/oracle-1/adapter_model.safetensors").read_bytes()
    run_score(tmp_path, dataset=folds / "pairs.jsonl")
    check_scores(tmp_path, range(0, 24, 6))


def test_what_centres_a_score_is_its_own_oracles_divergence(folds):
    """A score's mean under the reference is -KL(reference || oracle); nothing else of the shards changes."""
    ears = Listens()
    run_score(folds, reporter=ears, output="centred", center=True)
    assert not [text for text in ears.said if "are known from" in text]
    base = load_model(folds / "oracle/reference", trust_remote_code=False)
    kl = [pq.read_table(folds / "centred" / name)["rejected_kl"] for name in manifest(folds / "centred")["files"]]
    rows = list(open_scores(folds / "centred").rows())
    for row, theirs in zip(rows, open_scores(folds / "scores").rows(), strict=True):
        np.testing.assert_allclose(np.concatenate(row.scores), np.concatenate(theirs.scores), atol=1e-5)
    for number in (0, 1, 2, 23):
        pair = rows[number].pair
        oracle = load_model(folds / f"oracle/oracle-{fold_of(pair.prompt_ids, 2) + 1}", trust_remote_code=False)
        expected = reference.token_kl(base, oracle, pair.prompt_ids, pair.rejected_ids)
        assert max(expected) > 1e-3
        assert kl[number // 16][number % 16].as_py() == pytest.approx(expected, abs=1e-5)


def test_held_out_pairs_are_judged_by_the_oracle_of_their_fold(folds):
    _, held_out = split_of(folds)
    rows = list(open_scores(folds / "scores").rows())
    margins = [0.5 * (rows[n].scores.chosen.sum() - rows[n].scores.rejected.sum()) for n in held_out]
    assert manifest(folds / "oracle")["results"]["reward_margin"]["value"] == pytest.approx(np.mean(margins), abs=1e-5)


def test_what_would_move_pairs_to_other_folds_is_refused(folds, chat_folder, tmp_path):
    with pytest.raises(SepoError, match="trained with other --chat-template-kwargs"):
        run_score(folds, output_dir=str(tmp_path / "s"), chat_template_kwargs='{"enable_thinking": false}')
    write_lines(tmp_path / "one.jsonl", [{**row, "prompt": "what?"} for row in rows_of_many_prompts()])
    with pytest.raises(SepoError, match="one is empty"):
        run_oracle(tmp_path, chat_folder, dataset=tmp_path / "one.jsonl", **OPTIONS)
