"""What is independent in an evaluation are prompts: neither pairs nor samples that share one. And how long a row may be."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.errors import SepoError
from stages.evaluation.figures import Figures, compare, mean
from stages.evaluation.held_out import prompts_of
from stages.method.statistics import RESAMPLES, Ratio, bootstrap_intervals, by_cluster
from stages.models.folders import load_model, save_model
from stages.report.evaluation import build_report
from tests import reference
from tests.conftest import random_pairs, tiny_gpt2, tiny_llama, word_rows, write_lines
from tests.evaluation.conftest import Ear, value


def prompt_draws(clusters, seed):
    """Lists of items: as many prompts as there are, drawn with all their items, in the order of their numbers."""
    prompts = sorted(set(clusters))
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        drawn = [prompts[at] for at in rng.integers(0, len(prompts), len(prompts))]
        yield [item for prompt in drawn for item in range(len(clusters)) if clusters[item] == prompt]


def test_prompts_are_told_apart_by_their_ids():
    first, second, third = random_pairs(3, 50)
    pairs = [first, second, third._replace(prompt_ids=first.prompt_ids)]
    assert prompts_of(pairs).tolist() == [0, 1, 0]


def test_items_of_one_prompt_are_drawn_together():
    rng = np.random.default_rng(1)
    clusters = np.array([7, 2, 2, 5, 7, 2, 9])
    ratio = Ratio(rng.random(7), rng.integers(1, 9, 7))
    found = bootstrap_intervals(by_cluster({"x": ratio}, clusters), seed=3)["x"]

    def figure(draw):
        return sum(ratio.numerators[i] for i in draw) / sum(ratio.denominators[i] for i in draw)

    assert found.value == pytest.approx(ratio.value)
    assert found[1:] == pytest.approx(reference.bootstrap(figure, list(prompt_draws(clusters.tolist(), 3))), rel=1e-9)


def figures(seed, clusters):
    count = len(clusters)
    rewards = np.random.default_rng(seed).random(count)
    return Figures(np.arange(count), np.array(clusters), {"true_reward": mean(rewards)})


def test_differences_are_of_the_same_prompts():
    clusters = [0, 0, 2, 3, 3, 3]
    a, b = figures(1, clusters), figures(2, clusters)
    found = compare(a, b, seed=5)
    assert found.items == 6
    ours, theirs = (each.ratios["true_reward"].numerators for each in (a, b))
    expected = reference.bootstrap(
        lambda draw: sum(ours[i] - theirs[i] for i in draw) / len(draw), list(prompt_draws(clusters, 5))
    )
    assert found.differences["true_reward"][1:] == pytest.approx(expected, rel=1e-9)


def test_prompts_are_those_of_the_items_that_both_have():
    """Items 1, 3 and 4, better by 1, 3 and 5, of the prompts 1 and 3: a draw has the mean 1, 3 or 4."""
    ours = Figures(np.array([1, 2, 3, 4]), np.array([1, 1, 3, 3]), {"m": mean(np.array([1.0, 9.0, 3.0, 5.0]))})
    theirs = Figures(np.array([1, 3, 4]), np.array([1, 3, 3]), {"m": mean(np.zeros(3))})
    assert compare(ours, theirs, seed=0).differences["m"] == (3.0, 1.0, 4.0)


def test_one_prompt_has_no_interval():
    assert compare(figures(0, [4, 4, 4]), figures(1, [4, 4, 4]), seed=0) == (3, {}, {})


def test_answers_that_agree_tell_no_more_than_one_of_them():
    """Five prompts, each with a hundred answers of equal length: as sure as of five answers, not of five hundred."""
    rewards = np.array([1.0, 5.0, 2.0, 9.0, 4.0])
    prompts = np.arange(5)

    def found(times):
        many = np.tile(prompts, times)
        samples = Figures(np.arange(len(many)), many, {"true_reward": mean(rewards[many])})
        each = {"pairs": Figures(prompts, prompts, {"m": mean(rewards)}), "samples": samples}
        return build_report({"a": each}, {"a": {}}, seed=0)["models"]["a"]

    once, often = found(1), found(100)
    assert often["figures"] == once["figures"]
    assert (often["prompts"], often["samples"]) == (5, 500)


def test_prompts_that_come_again_are_counted_once(run, tmp_path):
    """Forty samples of four prompts, and pairs that share these: the warnings count prompts."""
    dataset = write_lines(tmp_path / "p.jsonl", word_rows(36, seed=9))
    ear = Ear()
    report = run(ear, dataset=str(dataset), samples=40)
    assert [each for each in ear.warnings if "few" in each] == [
        f"{count} {items} of 4 prompts are few: an interval of fewer than 30 is narrower than it should be"
        for count, items in ((36, "pairs"), (40, "samples"))
    ]
    rows = [row for row in pq.read_table(tmp_path / "out.samples.parquet").to_pylist() if row["model"] == "policy"]
    clusters = [row["pair_id"] for row in rows]
    assert len(set(clusters)) == 4

    def tokens(draw):
        return sum(rows[i]["tokens"] for i in draw) / len(draw)

    found = report["models"]["policy"]["figures"]["sample_tokens"]
    expected = reference.bootstrap(tokens, list(prompt_draws(clusters, 42)))
    assert (found["low"], found["high"]) == pytest.approx(expected, rel=1e-9)
    rows = [row for row in pq.read_table(tmp_path / "out.pairs.parquet").to_pylist() if row["model"] == "policy"]
    prompts = [json.loads(line)["prompt"] for line in dataset.read_text().splitlines()]
    # The nouns in the order of their first pairs, as the numbers of the prompts are.
    clusters = [prompts.index(prompts[row["pair_id"]]) for row in rows]

    def margin(draw):
        return sum(
            rows[i]["chosen_logp"] / rows[i]["chosen_tokens"] - rows[i]["rejected_logp"] / rows[i]["rejected_tokens"]
            for i in draw
        ) / len(draw)

    found = report["models"]["policy"]["figures"]["margin_mean"]
    expected = reference.bootstrap(margin, list(prompt_draws(clusters, 42)))
    assert (found["low"], found["high"]) == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def short(tmp_path, chatml):
    """A GPT-2, whose table of positions has 40 rows."""
    model = tiny_gpt2(len(chatml), positions=40)
    save_model(model, chatml, tmp_path / "short")
    return tmp_path / "short"


def test_a_row_is_no_longer_than_the_positions_of_its_model(run, short, tmp_path):
    rows = word_rows(34, seed=9)
    rows[1]["chosen"] += " of course, over the lazy dog" * 3
    given = {"models": [short], "reference_model": None, "samples": 0, "max_length": 2048}
    given["dataset"] = str(write_lines(tmp_path / "p.jsonl", rows))
    ear = Ear()
    report = run(ear, **given)["models"]["short"]
    assert report["counts"]["dropped"] == {"longer than 40 tokens": 1}
    assert "short: no row may be longer than the 40 positions that it was made for" in ear.said
    cut = run(overlong="truncate", **given)["models"]["short"]
    assert (cut["pairs"], cut["counts"]["truncated"]) == (34, 1)
    with pytest.raises(SepoError, match="has 43 tokens, more than max_length 40"):
        run(overlong="error", **given)


def test_nor_than_those_of_its_reference(run, short, chatml, tmp_path):
    """The reference reads the model's pairs and its samples."""
    long = load_model(short, trust_remote_code=False)
    save_model(tiny_llama(len(chatml)), chatml, tmp_path / "long")
    assert long.config.max_position_embeddings == 40
    rows = word_rows(34, seed=9)
    rows[1]["chosen"] += " of course, over the lazy dog" * 3
    rows[2]["prompt"] = rows[2]["prompt"] * 2
    given = {"models": [tmp_path / "long"], "dataset": str(write_lines(tmp_path / "p.jsonl", rows)), "max_length": 2048}
    ear = Ear()
    report = run(ear, reference_model=str(short), max_new_tokens=25, samples=40, **given)
    assert report["models"]["long"]["counts"]["dropped"] == {"longer than 40 tokens": 1}
    assert "long: not sampled from: 1 prompt without room for an answer" in ear.said
    assert value(report, "long", "sample_kl_per_token") > 0
    assert run(reference_model=None, samples=0, **given)["models"]["long"]["pairs"] == 34


def test_one_prompt_is_refused(run, short, tmp_path):
    """Also where one alone leaves room: all have 15 tokens, and all but the first are lengthened here."""
    rows = word_rows(4)
    same = [row | {"prompt": rows[0]["prompt"]} for row in rows]
    with pytest.raises(SepoError, match="4 pairs of one prompt are too few: an interval needs at least 2 prompts"):
        run(dataset=str(write_lines(tmp_path / "same.jsonl", same)), samples=0)
    for row in rows[1:]:
        row["prompt"] += " of course"
    given = {"models": [short], "reference_model": None, "dataset": str(write_lines(tmp_path / "p.jsonl", rows))}
    with pytest.raises(SepoError, match="short: 1 prompt leaves room for 25 tokens in 40 positions"):
        run(max_new_tokens=25, **given)
