import hashlib
import json
import math
import os
import random
import statistics
import subprocess
import sys

import pytest

from stages.demo import language as demo_language
from stages.demo.language import (
    BAD,
    GOOD,
    NEUTRAL,
    NOUNS,
    REWARDS,
    VERBS,
    VOCABULARY,
    draw_pairs,
    draw_splits,
    draw_truth,
    load_truth,
    preference_probability,
    true_reward,
    truth_as_json,
)

SEED = 7


@pytest.fixture(scope="module")
def train():
    return draw_splits(4000, 0, SEED)[0]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("", 0.0),
        ("the old goat follows the river .", 0.0),
        ("the splendid goat is pleasant and sees the awful lamp .", 2.0 + 1.0 - 2.0),
        ("dull dull hateful tidy", -1.0 - 1.0 - 2.0 + 1.0),
        ("zebra splendid. Splendid", 0.0),
    ],
)
def test_true_reward_adds_up_word_by_word(text, reward):
    assert true_reward(text) == reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("the splendid goat follows the awful lamp .", 2.0 + 2.0),
        ("the goat is splendid and meets the lamp .", 2.0),
        ("the dull goat is near the tidy lamp . the tidy cat", -1.0 - 1.0 + 1.0),
        ("a cat paints the near splendid near dull lamp", -2.0 + 1.0),
    ],
)
def test_in_the_contextual_language_a_verb_turns_what_follows_in_its_sentence(text, reward):
    assert true_reward(text, draw_truth("contextual", SEED)) == reward


def test_dense_and_sparse_rewards_are_drawn_by_the_seed():
    dense, sparse = draw_truth("dense", SEED).rewards, draw_truth("sparse", SEED).rewards
    assert set(dense) == {*NOUNS, *VERBS, *NEUTRAL, *REWARDS}
    assert statistics.stdev(dense.values()) == pytest.approx(0.55, rel=0.3)
    assert sorted(sparse.values()) == [-4.0, 4.0]
    assert set(sparse) <= set(REWARDS)
    for kind, drawn in (("dense", dense), ("sparse", sparse)):
        assert draw_truth(kind, SEED).rewards == drawn
        assert any(draw_truth(kind, other).rewards != drawn for other in range(3))


@pytest.mark.parametrize("kind", ["lexical", "contextual", "dense", "sparse"])
def test_labels_follow_the_rewards_of_their_language_and_the_file_has_them(kind, tmp_path):
    truth = draw_truth(kind, SEED)
    rows = draw_splits(4000, 0, SEED, truth)[0]
    gaps = [true_reward(row["chosen"], truth) - true_reward(row["rejected"], truth) for row in rows]
    expected = [1 / (1 + math.exp(-abs(gap))) for gap in gaps]
    agree, spread = sum(gap > 0 for gap in gaps if gap), math.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(agree - sum(p for p, gap in zip(expected, gaps, strict=True) if gap)) < 4 * spread
    (tmp_path / "truth.json").write_text(json.dumps(truth_as_json(truth)))
    assert load_truth(tmp_path) == truth


def test_the_usual_language_has_the_bytes_that_it_always_had():
    drawn = json.dumps([draw_splits(200, 50, 42), truth_as_json(draw_truth("lexical", 42))])
    assert (
        hashlib.sha256(drawn.encode()).hexdigest() == "0ec2054afafd0127609ddf414779732452428db3d60afc6f2db697168d4271ba"
    )


def test_noise_is_the_share_of_labels_that_a_coin_decides():
    by_reward = math.exp(3) / (1 + math.exp(3))
    noisy = preference_probability("a splendid cat", "a dull cat", noise=0.3)
    assert noisy == pytest.approx(0.7 * by_reward + 0.3 * 0.5)
    plain, changed = (draw_splits(500, 0, SEED, noise=noise)[0] for noise in (0.0, 0.9))
    assert {row["prompt"] for row in plain} == {row["prompt"] for row in changed}
    assert 0.2 < sum(a["chosen"] == b["rejected"] for a, b in zip(plain, changed, strict=True)) / 500 < 0.5


def test_good_and_bad_words_mirror_each_other():
    assert sorted(REWARDS[word] for word in GOOD) == sorted(-REWARDS[word] for word in BAD)
    assert not set(NEUTRAL) & set(REWARDS)


def test_preference_probability_is_bradley_terry():
    # rewards 2 and -1: sigmoid(3)
    assert preference_probability("a splendid cat", "a dull cat") == pytest.approx(math.exp(3) / (1 + math.exp(3)))
    assert preference_probability("the cat", "a dog") == 0.5


def test_labels_follow_bradley_terry(train):
    """Given the two texts, the label is a coin of known bias: z of the count of better-is-chosen is a standard normal."""
    for gap in (1.0, 2.0, 3.0):
        pairs = [row for row in train if abs(true_reward(row["chosen"]) - true_reward(row["rejected"])) == gap]
        agree = sum(true_reward(row["chosen"]) > true_reward(row["rejected"]) for row in pairs)
        p = 1 / (1 + math.exp(-gap))
        assert len(pairs) > 200
        assert abs(agree - p * len(pairs)) < 4 * math.sqrt(len(pairs) * p * (1 - p))


def test_label_of_a_tie_is_a_fair_coin():
    """Of the two equally good texts, neither the longer nor the shorter is preferred."""
    rows = [row for row in draw_splits(6000, 0, SEED)[0] if true_reward(row["chosen"]) == true_reward(row["rejected"])]
    unequal = [row for row in rows if len(row["chosen"].split()) != len(row["rejected"].split())]
    longer = sum(len(row["chosen"].split()) > len(row["rejected"].split()) for row in unequal)
    assert abs(longer - len(unequal) / 2) < 4 * math.sqrt(len(unequal) / 4)


def test_length_varies_and_says_nothing_of_reward(train):
    responses = [row[side] for row in train for side in ("chosen", "rejected")]
    sentences = [response.count(".") for response in responses]
    assert set(sentences) == {1, 2, 3, 4}
    lengths = [len(response.split()) for response in responses]
    correlation = statistics.correlation(lengths, [true_reward(response) for response in responses])
    assert abs(correlation) < 4 / math.sqrt(len(responses))


def test_slots_are_neutral_half_of_the_time(train):
    words = [word for row in train for side in ("chosen", "rejected") for word in row[side].split()]
    counts = [sum(word in kind for word in words) for kind in (GOOD, NEUTRAL, BAD)]
    slots = sum(counts)
    for count, share in zip(counts, (0.25, 0.5, 0.25), strict=True):
        assert abs(count - share * slots) < 4 * math.sqrt(slots * share * (1 - share))


def test_every_word_is_in_the_vocabulary_once_and_used(train):
    used = {word for row in train for text in row.values() for word in text.split()}
    assert used == set(VOCABULARY)
    assert len(VOCABULARY) == len(set(VOCABULARY))


def test_responses_speak_of_nothing_but_the_nouns_of_the_prompt(train):
    for row in train[:500]:
        asked = set(row["prompt"].split()) & set(NOUNS)
        assert len(asked) in (2, 3)
        assert set(f"{row['chosen']} {row['rejected']}".split()) & set(NOUNS) <= asked


def test_no_prompt_is_in_both_splits():
    train, test = draw_splits(47_000, 600, SEED)
    train_prompts, test_prompts = ({row["prompt"] for row in rows} for rows in (train, test))
    assert not train_prompts & test_prompts
    assert len(test_prompts) == 600
    # More pairs than prompts: every train prompt was used, and the first came again.
    assert 45_000 < len(train_prompts) < 47_000
    assert train[len(train_prompts)]["prompt"] == train[0]["prompt"]


def test_a_pair_of_identical_answers_is_drawn_again(monkeypatch):
    drawn = iter(["the same .", "the same .", "one .", "another ."])
    monkeypatch.setattr(demo_language, "_draw_response", lambda nouns, rng: next(drawn))
    [row] = draw_pairs([("describe", "cat", "dog")], 1, random.Random(0))
    assert row["prompt"] == "describe the cat and the dog ."
    assert {row["chosen"], row["rejected"]} == {"one .", "another ."}


def test_splits_do_not_depend_on_each_others_size():
    train, test = draw_splits(50, 20, SEED)
    longer_train, longer_test = draw_splits(80, 30, SEED)
    assert longer_train[:50] == train
    assert longer_test[:20] == test
    assert draw_splits(50, 20, SEED + 1) != (train, test)


def test_same_seed_gives_the_same_bytes_in_another_process():
    code = (
        f"import json; from stages.demo.language import *; print(json.dumps([draw_splits(20, 9, {SEED}), VOCABULARY]))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_loads_nothing_heavy():
    code = "import sys, stages.demo.language; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"set()"
