"""What a policy is worth on the reference's samples, against sums over every token in plain Python."""

import math

import numpy as np
import pytest
import torch

from stages.demo.language import VOCABULARY, Truth
from stages.demo.model import build_demo_model
from stages.demo.shared_samples import draw_shared_samples, worth
from stages.logprobs.paths import find_paths
from stages.models.folders import load_model, load_tokenizer
from stages.reporting import Quiet

TRUTH = Truth({word: float(number % 5 - 2) for number, word in enumerate(VOCABULARY)}, frozenset({"cat", "near"}))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        build_demo_model(root / str(seed), VOCABULARY, seed, layers=1, width=16)
    reference, policy = (load_model(root / str(seed), trust_remote_code=False) for seed in (0, 1))
    return reference, policy, load_tokenizer(root / "0", trust_remote_code=False)


@pytest.fixture(scope="module")
def shared(models):
    reference, _, tokenizer = models
    prompts = [np.array(ids, np.int32) for ids in ([1, 5, 20, 6], [1, 5, 31, 32, 6], [1, 5, 40, 6])]
    return draw_shared_samples(find_paths(reference, Quiet()), tokenizer, TRUTH, prompts, pairs=4, seed=3)


def test_two_samples_are_drawn_for_each_prompt_in_turn_and_each_word_has_its_reward(models, shared):
    assert [len(pair.prompt_ids) for pair in shared.pairs] == [4, 5, 4, 4]
    answers = [answer for pair in shared.pairs for answer in pair.parts[1:]]
    assert len({answer.tobytes() for answer in answers}) == 8
    for answer, rewards_T, whole in zip(answers, shared.rewards, shared.rewards_S, strict=True):
        expected = TRUTH.of_words(models[2].convert_ids_to_tokens(answer.tolist()))
        assert rewards_T.tolist() == expected
        assert whole == pytest.approx(sum(expected))


def test_a_policy_is_weighed_token_by_token(models, shared):
    reference, policy, _ = models
    kl = gain = 0.0
    ends = []
    answers = [(pair.prompt_ids, answer) for pair in shared.pairs for answer in pair.parts[1:]]
    for (prompt, answer), rewards_T in zip(answers, shared.rewards, strict=True):
        ids = torch.tensor([*prompt.tolist(), *answer.tolist()])[None]
        theirs, ours = (model(ids).logits[0].log_softmax(-1).tolist() for model in (reference, policy))
        ratio, first = 0.0, len(prompt) - 1
        for number, (id_, reward) in enumerate(zip(answer.tolist(), rewards_T, strict=True)):
            p, q = ours[first + number], theirs[first + number]
            kl += math.exp(ratio) * sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            ratio += p[id_] - q[id_]
            gain += (math.exp(ratio) - 1) * reward
        ends.append(math.exp(ratio))
    found = worth(find_paths(policy, Quiet()), find_paths(reference, Quiet()), shared)
    assert found.kl == pytest.approx(kl / 8, rel=1e-3)
    assert found.gain == pytest.approx(gain / 8, rel=1e-3)
    assert found.effective == pytest.approx(sum(ends) ** 2 / sum(end**2 for end in ends), rel=1e-3)


def test_the_reference_has_gained_nothing(models, shared):
    same = find_paths(models[0], Quiet())
    assert worth(same, same, shared) == pytest.approx((0.0, 0.0, 0.0, 8.0), abs=1e-5)
