"""What should scores be pooled over, beside the token's type? Contexts compared by preferences of unseen pairs.

    python -m benchmarks.evidence.contexts --model M --cache C [--reward R] SCORES ...

Of scores by oracles on halves (`benchmarks.evidence.two_cores oracles`), which leaves the hidden states of the
reference's lower layers in C. Each context takes the predecessor's place in `stages.method.pooling`; what follows
is the calibration of `denoise`: the log-loss on unseen pairs of type, context and residual. A probe is a ridge
regression of the label on the pairs' differences of summed hidden states, on the other fold's pairs alone; it joins
the other parts.

In brackets: kinds of scores with one coefficient. *Truth*: the correlation of a pair's difference with that of a
planted reward.

Shapes: ``N`` response tokens of all pairs, chosen and then rejected; ``P`` pairs; ``D`` hidden size.
"""

import argparse
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from benchmarks.evidence.counts import fitted
from benchmarks.evidence.last_layers import key_of
from benchmarks.evidence.real_text import PLANTED, REWARDS
from stages.method.calibration import calibrate, cross_fitted_margins, log_losses
from stages.method.folds import fold_of
from stages.method.pooling import pool
from stages.method.statistics import mean_interval, preference_accuracy
from stages.store.rows import KL
from stages.store.scores import Scores, open_scores
from stages.store.shards import read_beside
from stages.types import ScoredPair

FOLDS: Final = 2
CLUSTERS: Final = 32
RIDGE: Final = 10.0
Values = NDArray[np.float64]


class Tokens:
    """All response tokens of a folder of scores, chosen ones first."""

    def __init__(self, scores: Scores, cache: dict[str, torch.Tensor]) -> None:
        rows: list[ScoredPair] = list(scores.rows())
        kl = [read_beside(scores.folder, name, KL) for name in scores.shards]
        kl_N = np.concatenate([np.concatenate(side) for side in zip(*filter(None, kl), strict=True)])
        sides = [(row.pair.prompt_ids, row.pair.parts[side], row.scores[side - 1]) for side in (1, 2) for row in rows]
        self.folds_P = np.array([fold_of(row.pair.prompt_ids, FOLDS) for row in rows])
        self.lengths_R = np.array([len(ids) for _, ids, _ in sides])
        self.folds_N = np.repeat(np.tile(self.folds_P, 2), self.lengths_R)
        self.measured_N = np.concatenate([scored for *_, scored in sides]).astype(np.float64)
        self.scores_N = self.measured_N + kl_N
        self.responses = [ids for _, ids, _ in sides]
        self.types_N = np.concatenate([ids for _, ids, _ in sides])
        self.before_N = np.concatenate([[prompt[-1], *ids[:-1]] for prompt, ids, _ in sides])
        self.thirds_N = np.concatenate([3 * np.arange(len(ids)) // len(ids) for _, ids, _ in sides])
        self.first_N = np.concatenate([np.full(len(ids), ids[0]) for _, ids, _ in sides])
        # At a token, and so of what precedes it and itself; and before it.
        hidden = [cache[key_of(prompt, ids)].numpy() for prompt, ids, _ in sides]
        self.hidden_ND = np.concatenate([each[-len(ids) :] for each, (_, ids, _) in zip(hidden, sides, strict=True)])
        self.hidden_before_ND = np.concatenate(
            [each[-len(ids) - 1 : -1] for each, (_, ids, _) in zip(hidden, sides, strict=True)]
        )

    def differences(self, values: NDArray[Any]) -> NDArray[Any]:
        """Of sums over chosen and rejected responses, (P, ...)."""
        sums = np.add.reduceat(values, np.cumsum(self.lengths_R) - self.lengths_R)
        chosen, rejected = np.split(sums, 2)
        return np.asarray(chosen - rejected)

    def parts(self, contexts_N: NDArray[Any]) -> Values:
        """Differences of type, context and residual, (P, 3), pooled within each fold as `denoise` does."""
        parts_KN = np.empty((3, len(self.scores_N)))
        for fold in range(FOLDS):
            mine_N = self.folds_N == fold
            found = pool(self.scores_N[mine_N], self.types_N[mine_N], contexts_N[mine_N])
            parts_KN[:, mine_N] = found.parts_KN
        return np.stack([self.differences(part_N) for part_N in parts_KN], axis=1)

    def probe(self) -> Values:
        """Each pair's margin by a ridge regression on the other fold's pairs, (P,)."""
        centred_ND = self.hidden_ND - self.hidden_ND.mean(0)
        differences_PD = self.differences(centred_ND / centred_ND.std(0))
        products_PP = (differences_PD @ differences_PD.T).astype(np.float64)
        products_PP /= products_PP.diagonal().mean()
        margins_P = np.empty(len(self.folds_P))
        for fold in range(FOLDS):
            mine_P = self.folds_P == fold
            weights_P = fitted(products_PP[np.ix_(~mine_P, ~mine_P)], RIDGE)
            margins_P[mine_P] = products_PP[np.ix_(mine_P, ~mine_P)] @ weights_P
        return margins_P


def clusters(hidden_ND: NDArray[Any]) -> NDArray[np.int64]:
    """The nearest of `CLUSTERS` centres, (N,), by Lloyd's algorithm on standardised states."""
    states_ND = (hidden_ND - hidden_ND.mean(0)) / hidden_ND.std(0)
    rng = np.random.default_rng(0)
    centres_CD = states_ND[rng.choice(len(states_ND), CLUSTERS, replace=False)]
    for _ in range(20):
        nearest_N = np.argmin(np.square(centres_CD).sum(1) - 2 * states_ND @ centres_CD.T, axis=1)
        centres_CD = np.stack(
            [states_ND[nearest_N == c].mean(0) if (nearest_N == c).any() else centres_CD[c] for c in range(CLUSTERS)]
        )
    return np.asarray(nearest_N)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scores", nargs="+")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reward", choices=PLANTED)
    options = parser.parse_args()
    cache, tokenizer = torch.load(options.cache), AutoTokenizer.from_pretrained(options.model)
    print("| scores | context | type, context, residual, probe | accuracy | log-loss | less predecessor's | truth |")
    print("|---|---|---|---|---|---|---|")
    for name in options.scores:
        tokens = Tokens(open_scores(name), cache)
        predecessor_PK = tokens.parts(tokens.before_N)
        tried = {
            "the predecessor": predecessor_PK,
            "(as measured)": tokens.differences(tokens.measured_N)[:, None],
            "(centred)": predecessor_PK.sum(1)[:, None],
            "(pooled by the predecessor)": predecessor_PK[:, :2].sum(1)[:, None],
            "(pooled by type)": predecessor_PK[:, :1],
            "none": tokens.parts(np.zeros_like(tokens.before_N)),
            "the third of the response": tokens.parts(tokens.thirds_N),
            "the response's first token": tokens.parts(tokens.first_N),
            "cluster of the hidden state before": tokens.parts(clusters(tokens.hidden_before_ND)),
            "the predecessor, and a probe": np.column_stack([predecessor_PK, tokens.probe()]),
            "a probe alone": tokens.probe()[:, None],
        }
        truth = REWARDS[options.reward] if options.reward else None
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens.responses]
        rewards_R = [truth({}, text) if truth else 0.0 for text in texts]
        gaps_P = np.subtract(*np.split(np.array(rewards_R), 2))
        losses = {what: log_losses(cross_fitted_margins(found_PK, tokens.folds_P)) for what, found_PK in tried.items()}
        for what, found_PK in tried.items():
            found = calibrate(found_PK)
            values = ", ".join(f"{a:+.2f} ({e:.2f})" for a, e in zip(found.coefficients_K, found.errors_K, strict=True))
            margins_P = cross_fitted_margins(found_PK, tokens.folds_P)
            accuracy, true = preference_accuracy(margins_P.tolist()), float("nan")
            if truth:
                true = float(np.corrcoef(found_PK @ found.coefficients_K, gaps_P)[0, 1])
            less = mean_interval(losses[what] - losses["the predecessor"])
            figures = f"{values} | {accuracy:.3f} | {mean_interval(losses[what]):.3f} | {less:+.3f} | {true:.3f}"
            print(f"| {name} | {what} | {figures} |")


if __name__ == "__main__":
    main()
