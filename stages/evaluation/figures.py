"""What held-out pairs and samples say of a model: figures that are sums over items, so that any two models can be
compared on the same ones.

Shapes: ``N`` pairs, ``S`` samples; log-probs and KL in nats.
"""

import itertools
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.method.statistics import Interval, Ratio, bootstrap_differences, by_cluster, sign_test
from stages.types import Ids, PairLogps

FEWEST: Final = 30
"""prompts below which a bootstrap interval is too narrow to be trusted"""
SIGNIFICANT: Final = 0.05
"""above this p the signs of an accuracy's differences may be chance"""
GRAM: Final = 4
Array = NDArray[Any]


class PairSums(NamedTuple):
    """What is known of each pair's two responses under one model, each (N,)."""

    chosen: Array
    """summed log-prob"""
    rejected: Array
    chosen_tokens: Array
    rejected_tokens: Array


class Samples(NamedTuple):
    """Answers of a model in figures, each (S,)."""

    tokens: Array
    """without the end of turn"""
    ended: Array
    """1 where the answer ended by itself, else 0"""
    repeated: Array
    """runs of 4 tokens that had occurred before in the same answer"""
    grams: Array
    """runs of 4 tokens"""


class Measured(NamedTuple):
    """What was measured of a model, pair by pair and sample by sample."""

    pair_ids: Array
    """(N,)"""
    prompts: Array
    """(N,) the first pair of each one's prompt"""
    sums: PairSums
    reference: PairSums | None
    """of the reference, on the same ids"""
    kl: Array | None
    """(N, 2) KL from the reference, summed over each chosen and each rejected response"""
    sample_keys: Array
    """(S,), the same number for an answer to the same prompt"""
    sample_prompts: Array
    """(S,) the first pair of that prompt"""
    responses: list[str]
    """S texts"""
    samples: Samples
    sample_kl: Array | None
    """(S,) KL from the reference, summed over each answer"""
    rewards: Array | None
    """(S,) true reward, on the demo"""


class Figures(NamedTuple):
    """The figures of one model, and which items they are of; items of one prompt are not independent."""

    pair_ids: Array
    """(N,)"""
    prompts: Array
    """(N,) the first pair of each one's prompt"""
    pairs: dict[str, Ratio]
    sample_keys: Array
    """(S,)"""
    sample_prompts: Array
    """(S,)"""
    samples: dict[str, Ratio]


class Comparison(NamedTuple):
    """Two models on the same items."""

    ours: str
    theirs: str
    pairs: int
    samples: int
    differences: dict[str, Interval]
    """ours minus theirs, by figure"""
    sign_tests: dict[str, float]
    """p of each accuracy: whether as many prompts speak for one model as for the other"""


def sums_of(logps: list[PairLogps]) -> PairSums:
    """Log-probs summed over each response, in float64."""
    return PairSums(
        chosen=np.array([each.chosen.sum(dtype=np.float64) for each in logps]),
        rejected=np.array([each.rejected.sum(dtype=np.float64) for each in logps]),
        chosen_tokens=np.array([len(each.chosen) for each in logps]),
        rejected_tokens=np.array([len(each.rejected) for each in logps]),
    )


def preference_figures(model: PairSums, reference: PairSums | None) -> dict[str, Ratio]:
    """How often, and by how much, a model prefers the chosen response of a pair; a tie counts half.

    By its log-prob summed over the tokens; by their mean, as SimPO and SePO reward (arXiv 2405.14734 Eq. 4); and by
    DPO's implicit reward without its beta, sum log pi - sum log pi_ref (arXiv 2305.18290 Eq. 5).
    """
    by_sum = model.chosen - model.rejected
    by_mean = model.chosen / model.chosen_tokens - model.rejected / model.rejected_tokens
    figures = {"accuracy_sum": _wins(by_sum), "accuracy_mean": _wins(by_mean), "margin_mean": mean(by_mean)}
    if reference is not None:
        implicit = by_sum - (reference.chosen - reference.rejected)
        figures |= {"accuracy_implicit": _wins(implicit), "margin_implicit": mean(implicit)}
    return figures


def divergence_figures(name: str, kl: Array, tokens: Array, responses: int) -> dict[str, Ratio]:
    """KL from the reference per token and per response.

    Args:
        name: put before the figures' names.
        kl: (N,) summed over the tokens of each item's responses.
        tokens: (N,) of these responses.
        responses: of each item.
    """
    return {f"{name}_per_token": Ratio(kl, tokens), f"{name}_per_response": Ratio(kl, np.full(len(kl), responses))}


def sample_figures(samples: Samples) -> dict[str, Ratio]:
    """Length, share of answers that end by themselves, and share of repeated runs of 4 tokens."""
    return {
        "sample_tokens": mean(samples.tokens),
        "sample_ended": mean(samples.ended),
        "sample_repetition": Ratio(samples.repeated, samples.grams),
    }


def reward_figures(rewards: Array, tokens: Array, reference: Array | None) -> dict[str, Ratio]:
    """True reward of samples, and how often it beats that of the reference's answer to the same prompt.

    Args:
        rewards: (S,) summed over an answer.
        tokens: (S,) of the answers.
        reference: (S,) reward of the reference's answers, nan where there is none; a tie counts half.
    """
    figures = {"true_reward": mean(rewards), "true_reward_per_token": Ratio(rewards, tokens)}
    if reference is not None:
        met = ~np.isnan(reference)
        wins = _wins(np.where(met, rewards - reference, 0.0))
        figures["true_win_rate"] = Ratio(np.where(met, wins.numerators, 0.0), met)
    return figures


def describe(answers: list[Ids], end_of_turn: int | None) -> Samples:
    """The figures of sampled answers, whose last token is the end of turn where they ended."""
    ended = np.array([len(answer) > 0 and answer[-1] == end_of_turn for answer in answers], dtype=np.int64)
    texts = [answer[:-1] if end else answer for answer, end in zip(answers, ended, strict=True)]
    repeated, grams = np.array([_repetition(text) for text in texts], dtype=np.int64).reshape(-1, 2).T
    return Samples(np.array([len(text) for text in texts]), ended, repeated, grams)


def mean(values: Array) -> Ratio:
    return Ratio(values, np.ones(len(values)))


def only(figures: Mapping[str, Ratio], places: Array) -> dict[str, Ratio]:
    """The same figures of some of their items."""
    return {name: Ratio(ratio.numerators[places], ratio.denominators[places]) for name, ratio in figures.items()}


def figures_of(measured: Measured, rival: Measured | None) -> Figures:
    """What was measured, as figures that can be drawn from again and again.

    Args:
        rival: whose answers a model's have to beat: the reference's.
    """
    pairs = preference_figures(measured.sums, measured.reference)
    if measured.kl is not None:
        tokens = measured.sums.chosen_tokens + measured.sums.rejected_tokens
        pairs |= divergence_figures("kl", measured.kl.sum(1), tokens, responses=2)
    samples = sample_figures(measured.samples) if len(measured.sample_keys) else {}
    if samples and measured.sample_kl is not None:
        lengths = measured.samples.tokens + measured.samples.ended
        samples |= divergence_figures("sample_kl", measured.sample_kl, lengths, responses=1)
    if samples and measured.rewards is not None:
        samples |= reward_figures(measured.rewards, measured.samples.tokens, _rewards_of(rival, measured.sample_keys))
    return Figures(measured.pair_ids, measured.prompts, pairs, measured.sample_keys, measured.sample_prompts, samples)


def _rewards_of(rival: Measured | None, keys: Array) -> Array | None:
    """Reward of the rival's answer to each prompt; nan where it was not asked."""
    if rival is None or rival.rewards is None:
        return None
    by_key = dict(zip(rival.sample_keys.tolist(), rival.rewards, strict=True))
    return np.array([by_key.get(key, np.nan) for key in keys.tolist()])


def pair_rows(measured: Mapping[str, Measured]) -> dict[str, Array]:
    """A row for each model and pair, as columns."""
    parts = []
    for name, found in measured.items():
        sums = found.sums
        part = {"model": np.repeat(name, len(found.pair_ids)), "pair_id": found.pair_ids}
        part |= {"chosen_logp": sums.chosen, "rejected_logp": sums.rejected}
        part |= {"chosen_tokens": sums.chosen_tokens, "rejected_tokens": sums.rejected_tokens}
        if found.reference is not None:
            part |= {"chosen_reference_logp": found.reference.chosen}
            part |= {"rejected_reference_logp": found.reference.rejected}
        if found.kl is not None:
            part |= dict(zip(("chosen_kl", "rejected_kl"), found.kl.T, strict=True))
        parts.append(part)
    return _stacked(parts)


def sample_rows(measured: Mapping[str, Measured]) -> dict[str, Array]:
    """A row for each model and sample, as columns; none where nothing was sampled."""
    parts = []
    for name, found in measured.items():
        part = {"model": np.repeat(name, len(found.responses)), "pair_id": found.sample_prompts}
        part |= {"response": np.array(found.responses), **found.samples._asdict()}
        part |= {} if found.sample_kl is None else {"kl": found.sample_kl}
        part |= {} if found.rewards is None else {"true_reward": found.rewards}
        parts.append(part)
    return _stacked(parts) if len(parts[0]["pair_id"]) else {}


def _stacked(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(models: Mapping[str, Figures], seed: int) -> list[Comparison]:
    """Every two models, on the pairs and prompts that both have."""
    return [
        _compare(later, models[later], earlier, models[earlier], seed)
        for earlier, later in itertools.combinations(models, 2)
    ]


def _compare(ours: str, a: Figures, theirs: str, b: Figures, seed: int) -> Comparison:
    pairs, at, bt = np.intersect1d(a.pair_ids, b.pair_ids, return_indices=True)
    samples, a_s, b_s = np.intersect1d(a.sample_keys, b.sample_keys, return_indices=True)
    differences: dict[str, Interval] = {}
    sign_tests: dict[str, float] = {}
    for first, second, prompts in (
        (only(a.pairs, at), only(b.pairs, bt), a.prompts[at]),
        (only(a.samples, a_s), only(b.samples, b_s), a.sample_prompts[a_s]),
    ):
        if len(np.unique(prompts)) > 1:
            first, second = (by_cluster(each, prompts) for each in (first, second))
            differences |= bootstrap_differences(first, second, seed=seed)
            sign_tests |= {
                name: sign_test(first[name].numerators - second[name].numerators)
                for name in first
                if name in second and name.startswith("accuracy_")
            }
    return Comparison(ours, theirs, len(pairs), len(samples), differences, sign_tests)


def verdict(difference: Interval, sign_p: float = 0.0) -> str:
    """``better``, ``worse``, or that the two are not told apart, for a figure of which more is better.

    Args:
        sign_p: of an accuracy. Two models mostly agree, so its interval rests on the few prompts on which they do not:
            four that all speak for one model leave a bootstrap nothing else to draw, and are a chance of 1 in 8.
    """
    if sign_p > SIGNIFICANT:
        return "not told apart"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "not told apart"


def _wins(margins: Array) -> Ratio:
    return mean((margins > 0) + 0.5 * (margins == 0))


def _repetition(ids: Ids) -> tuple[int, int]:
    """How many runs of 4 tokens had occurred before, and how many there are."""
    runs = [tuple(ids[at : at + GRAM].tolist()) for at in range(len(ids) - GRAM + 1)]
    return len(runs) - len(set(runs)), len(runs)
