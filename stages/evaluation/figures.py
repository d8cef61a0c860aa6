"""What held-out pairs and samples say of a model: sums over items, so that any two are compared on the same ones.

Shapes: ``N`` pairs, ``S`` samples; log-probs and KL in nats.
"""

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
Columns = dict[str, Array]


class Measured(NamedTuple):
    """What was measured of a model, as the columns of the tables that are written."""

    pairs: Columns
    """(N,) each: pair_id; for chosen and rejected _logp, _tokens, and from the reference _reference_logp and _kl"""
    prompts: Array
    """(N,) the first pair of each one's prompt"""
    samples: Columns
    """(S,) each: pair_id of the first pair of the prompt, response, tokens (without the end of turn), ended (0 or 1),
    repeated and grams (runs of 4 tokens), kl from the reference, true_reward on the demo; none where none were drawn"""
    sample_keys: Array
    """(S,) the same number for an answer to the same prompt"""


class Figures(NamedTuple):
    """The figures of one model over its pairs or its samples; items of one prompt are not independent."""

    keys: Array
    """of the items: the same item has the same in every model"""
    prompts: Array
    """of the items"""
    ratios: Mapping[str, Ratio]


class Comparison(NamedTuple):
    """Two models on the same items."""

    items: int
    differences: dict[str, Interval]
    """ours minus theirs, by figure; none where the items have one prompt"""
    sign_tests: dict[str, float]
    """p of each accuracy: whether as many prompts speak for one model as for the other"""


def figures_of(measured: Measured, reference: Measured | None) -> dict[str, Figures]:
    """Figures of ``pairs`` and of ``samples`` that can be drawn from again and again."""
    figures = {"pairs": Figures(measured.pairs["pair_id"], measured.prompts, pair_ratios(measured.pairs))}
    samples, keys = measured.samples, measured.sample_keys
    ratios = sample_ratios(samples) if samples else {}
    if "true_reward" in samples and reference is not None:
        rewards = dict(zip(reference.sample_keys.tolist(), reference.samples["true_reward"], strict=True))
        theirs = np.array([rewards.get(key, np.nan) for key in keys.tolist()])
        ratios["true_win_rate"] = win_rate(samples["true_reward"], theirs)
    figures["samples"] = Figures(keys, samples.get("pair_id", keys), ratios)
    return figures


def table_of(columns: Mapping[str, Columns]) -> Columns:
    """The rows of all models below each other, and in front of each the name of its model; none where none has any."""
    parts = [{"model": np.repeat(name, len(some["pair_id"])), **some} for name, some in columns.items() if some]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def pair_ratios(pairs: Columns) -> dict[str, Ratio]:
    """How often, and by how much, a model prefers the chosen response of a pair; a tie counts half.

    By its log-prob summed over the tokens; by their mean, as SimPO and SePO reward (arXiv 2405.14734 Eq. 4); and by
    DPO's implicit reward without its beta, sum log pi - sum log pi_ref (arXiv 2305.18290 Eq. 5). And KL from the
    reference, on both responses.
    """
    chosen, rejected = pairs["chosen_logp"], pairs["rejected_logp"]
    by_mean = chosen / pairs["chosen_tokens"] - rejected / pairs["rejected_tokens"]
    ratios = {"accuracy_sum": _wins(chosen - rejected), "accuracy_mean": _wins(by_mean), "margin_mean": mean(by_mean)}
    if "chosen_reference_logp" in pairs:
        implicit = chosen - rejected - (pairs["chosen_reference_logp"] - pairs["rejected_reference_logp"])
        ratios |= {"accuracy_implicit": _wins(implicit), "margin_implicit": mean(implicit)}
    if "chosen_kl" in pairs:
        kl, tokens = (pairs[f"chosen_{what}"] + pairs[f"rejected_{what}"] for what in ("kl", "tokens"))
        ratios |= {"kl_per_token": Ratio(kl, tokens), "kl_per_response": Ratio(kl, np.full(len(kl), 2))}
    return ratios


def sample_ratios(samples: Columns) -> dict[str, Ratio]:
    """Length, share that ended by itself, repeated runs of 4 tokens, KL from the reference and true reward."""
    tokens = samples["tokens"]
    ratios = {
        "sample_tokens": mean(tokens),
        "sample_ended": mean(samples["ended"]),
        "sample_repetition": Ratio(samples["repeated"], samples["grams"]),
    }
    if "kl" in samples:
        ratios["sample_kl_per_token"] = Ratio(samples["kl"], tokens + samples["ended"])
        ratios["sample_kl_per_response"] = mean(samples["kl"])
    if "true_reward" in samples:
        rewards = samples["true_reward"]
        ratios |= {"true_reward": mean(rewards), "true_reward_per_token": Ratio(rewards, tokens)}
    return ratios


def win_rate(rewards: Array, theirs: Array) -> Ratio:
    """How often rewards (S,) beat those of the answers to the same prompts, nan where there is none."""
    met = ~np.isnan(theirs)
    wins = _wins(np.where(met, rewards - theirs, 0.0))
    return Ratio(np.where(met, wins.numerators, 0.0), met)


def sums_of(logps: list[PairLogps]) -> Columns:
    """Log-probs summed over each response, in float64, and its tokens."""
    return {
        "chosen_logp": np.array([each.chosen.sum(dtype=np.float64) for each in logps]),
        "rejected_logp": np.array([each.rejected.sum(dtype=np.float64) for each in logps]),
        "chosen_tokens": np.array([len(each.chosen) for each in logps]),
        "rejected_tokens": np.array([len(each.rejected) for each in logps]),
    }


def describe(answers: list[Ids], end_of_turn: int | None) -> Columns:
    """Columns of sampled answers, whose last token is the end of turn where they ended."""
    ended = np.array([len(answer) > 0 and answer[-1] == end_of_turn for answer in answers], dtype=np.int64)
    texts = [answer[:-1] if end else answer for answer, end in zip(answers, ended, strict=True)]
    repeated, grams = np.array([_repetition(text) for text in texts], dtype=np.int64).reshape(-1, 2).T
    tokens = np.array([len(text) for text in texts])
    return {"tokens": tokens, "ended": ended, "repeated": repeated, "grams": grams}


def mean(values: Array) -> Ratio:
    return Ratio(values, np.ones(len(values)))


def compare(ours: Figures, theirs: Figures, seed: int) -> Comparison:
    """Two models on the items that both have."""
    keys, mine, others = np.intersect1d(ours.keys, theirs.keys, return_indices=True)
    prompts = ours.prompts[mine]
    if len(np.unique(prompts)) < 2:
        return Comparison(len(keys), {}, {})
    first, second = (
        by_cluster({name: Ratio(*(part[places] for part in ratio)) for name, ratio in figures.ratios.items()}, prompts)
        for figures, places in ((ours, mine), (theirs, others))
    )
    accuracies = [name for name in first if name in second and name.startswith("accuracy_")]
    # Shares, as one model may have more samples of a prompt than the other.
    signs = {name: sign_test(first[name].shares - second[name].shares) for name in accuracies}
    return Comparison(len(keys), bootstrap_differences(first, second, seed=seed), signs)


def verdict(difference: Interval, sign_p: float = 0.0) -> str:
    """``better``, ``worse``, or that the two are not told apart, for a figure of which more is better.

    An accuracy needs its `sign_p` too: its interval rests on the few prompts on which two models differ, and four that
    all speak for one of them leave a bootstrap nothing else to draw, and are a chance of 1 in 8.
    """
    if sign_p > SIGNIFICANT or difference.low <= 0 <= difference.high:
        return "not told apart"
    return "better" if difference.low > 0 else "worse"


def _wins(margins: Array) -> Ratio:
    return mean((margins > 0) + 0.5 * (margins == 0))


def _repetition(ids: Ids) -> tuple[int, int]:
    """How many runs of 4 tokens had occurred before, and how many there are."""
    runs = [tuple(ids[at : at + GRAM].tolist()) for at in range(len(ids) - GRAM + 1)]
    return len(runs) - len(set(runs)), len(runs)
