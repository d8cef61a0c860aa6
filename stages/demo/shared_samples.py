"""What policies are worth on samples of the reference: all are read on the same ones, so that chance cancels.

A policy's mean of something at a token is the reference's mean of it times the ratio of the two probabilities of all
that leads to it (per-decision importance sampling, Precup, Sutton and Singh 2000). KL is exact over the vocabulary at
every token. Both hold for policies that are not far away: weights of a policy tens of nats away rest on few samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stages.demo.language import Truth
from stages.logprobs.decode import DecodeRequest, decode
from stages.logprobs.decode_trial import find_decoding
from stages.logprobs.logps import Forward, response_logps_and_kl
from stages.reporting import Quiet
from stages.types import Ids, Tokenizer, TokenPair

MAX_TOKENS = 16384
MAX_NEW_TOKENS = 64


class SharedSamples(NamedTuple):
    """``S`` answers of the reference, two to a prompt, and what each of their tokens is worth."""

    pairs: list[TokenPair]
    """(S / 2,), the two answers to a prompt as its responses; neither is the better one"""
    rewards: list[NDArray[np.float64]]
    """(S,) times (T,)"""

    @property
    def rewards_S(self) -> NDArray[np.float64]:
        """Of whole answers."""
        return np.array([rewards_T.sum() for rewards_T in self.rewards])


class Worth(NamedTuple):
    """A policy's, with standard errors over samples."""

    kl: float
    """KL(policy || reference), nats a response"""
    gain: float
    """true reward of a response, above the reference's"""
    gain_error: float
    effective: float
    """samples of as much weight that would tell as much (Kong 1992), at the ends of the responses"""


def draw_shared_samples(
    reference: Forward, tokenizer: Tokenizer, truth: Truth, prompts: Sequence[Ids], *, pairs: int, seed: int
) -> SharedSamples:
    """Two answers at temperature 1 to each of the prompts in turn, `pairs` times. One word of the demo is one token."""
    asked = [
        DecodeRequest(prompts[number // 2 % len(prompts)], 1.0, 1.0, MAX_NEW_TOKENS, (seed, number))
        for number in range(2 * pairs)
    ]
    ends = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else ()
    decoded = dict(decode(find_decoding(reference, Quiet()), asked, ends=ends, max_tokens=4 * MAX_TOKENS))
    answers = [decoded[number].answer_ids for number in range(2 * pairs)]
    words = (tokenizer.convert_ids_to_tokens(answer.tolist()) for answer in answers)
    return SharedSamples(
        [TokenPair(n, asked[2 * n].prompt_ids, answers[2 * n], answers[2 * n + 1]) for n in range(pairs)],
        [np.array(truth.of_words(each)) for each in words],
    )


def worth(policy: Forward, reference: Forward, shared: SharedSamples) -> Worth:
    """KL and gain of a policy that has the reference's tokenizer."""
    device = torch.device("cpu")
    with Quiet().task("", len(shared.pairs), "responses") as task:
        found = response_logps_and_kl(reference, policy, shared.pairs, max_tokens=MAX_TOKENS, device=device, task=task)
    by_sample = [[side for pair in each for side in pair] for each in found]
    kl_S, gain_S, last_S = [], [], []
    for base_T, ours_T, kl_T, rewards_T in zip(*by_sample, shared.rewards, strict=True):
        ratios_T = ours_T.astype(np.float64) - base_T
        weights_T = np.exp(np.cumsum(ratios_T))
        # What leads to a token is before it; its reward is had with it.
        kl_S.append((weights_T * np.exp(-ratios_T)) @ kl_T)
        gain_S.append((weights_T - 1.0) @ rewards_T)
        last_S.append(weights_T[-1])
    error = float(np.std(gain_S, ddof=1)) / len(gain_S) ** 0.5
    effective = float(np.sum(last_S) ** 2 / np.square(last_S).sum())
    return Worth(float(np.mean(kl_S)), float(np.mean(gain_S)), error, effective)
