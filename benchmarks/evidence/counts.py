"""How much of real preferences do counts tell, without any language model: lengths, tokens, tokens after others?

    python -m benchmarks.evidence.counts --model M PAIRS ...

A logistic regression (Bradley-Terry) of the label on the chosen response's counts minus the rejected one's, with a
ridge that other pairs chose, judged on the prompts of a fold that it has not seen. What pooling keeps of a score is
a sum over a response of something of each token's type, and of its type and predecessor: where these counts tell
nothing, it cannot.

Shapes: ``P`` pairs; ``K`` counts. The regression is solved for its P dual weights, by Newton's method.
"""

import argparse
from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from stages.data.layouts import read_pairs
from stages.method.calibration import log_losses
from stages.method.folds import fold_of
from stages.method.statistics import mean_interval, preference_accuracy
from stages.tokens.encode import Encoder
from stages.types import Dropped, Ids, TokenPair

FOLDS: Final = 5
RIDGES: Final = (1.0, 3.0, 10.0, 30.0, 100.0)
KINDS: Final = {
    "length": ("length",),
    "types": ("type",),
    "types, and length": ("type", "length"),
    "types, and types after a predecessor": ("type", "context"),
    "types, and types by third of the response": ("type", "third"),
    "types, and the first two tokens": ("type", "beginning"),
}
Values = NDArray[np.float64]


def counted(kind: str, ids: Ids, before: int) -> Counter[Any]:
    """What is counted in a response behind a prompt that ends with `before`."""
    tokens = ids.tolist()
    found: dict[str, list[Any]] = {
        "length": [0] * len(tokens),
        "type": tokens,
        "context": [*zip([before, *tokens[:-1]], tokens, strict=True)],
        "third": [(3 * place // len(tokens), token) for place, token in enumerate(tokens)],
        "beginning": [*enumerate(tokens[:2])],
    }
    return Counter(found[kind])


def similarities(kind: str, pairs: list[TokenPair]) -> Values:
    """Products of the pairs' differences of counts, (P, P), of mean square 1: of kinds together the mean is taken."""
    differences = []
    for pair in pairs:
        chosen, rejected = (counted(kind, ids, int(pair.prompt_ids[-1])) for ids in pair[2:])
        differences.append({key: chosen[key] - rejected[key] for key in chosen | rejected})
    columns = {key: column for column, key in enumerate(sorted({key for each in differences for key in each}))}
    counts_PK = np.zeros((len(pairs), len(columns)), np.float32)
    for row, each in enumerate(differences):
        counts_PK[row, [columns[key] for key in each]] = [*each.values()]
    products_PP = (counts_PK @ counts_PK.T).astype(np.float64)
    return np.asarray(products_PP / products_PP.diagonal().mean())


def fitted(products_PP: Values, ridge: float) -> Values:
    """Dual weights (P,) of the logistic regression of labels that are all 1."""
    weights_P: NDArray[Any] = np.zeros(len(products_PP))
    for _ in range(30):
        margins_P = products_PP @ weights_P
        wrong_P = 1 / (1 + np.exp(margins_P))
        curved_P = np.maximum(wrong_P * (1 - wrong_P), 1e-6)
        next_P = np.linalg.solve(products_PP + np.diag(ridge / curved_P), margins_P + wrong_P / curved_P)
        done = np.abs(next_P - weights_P).max() < 1e-6
        weights_P = next_P
        if done:
            break
    return weights_P


def unseen_margins(products_PP: Values, folds_P: NDArray[np.int64]) -> Values:
    """Each pair's margin (P,) by the pairs of the other folds; of these one chooses the ridge."""
    margins_P = np.empty(len(folds_P))

    def predicted(train_P: NDArray[np.bool_], test_P: NDArray[np.bool_], ridge: float) -> Values:
        return np.asarray(products_PP[np.ix_(test_P, train_P)] @ fitted(products_PP[np.ix_(train_P, train_P)], ridge))

    for fold in range(FOLDS):
        mine_P, choosing_P = folds_P == fold, folds_P == (fold + 1) % FOLDS
        losses = [log_losses(predicted(~mine_P & ~choosing_P, choosing_P, ridge)).sum() for ridge in RIDGES]
        margins_P[mine_P] = predicted(~mine_P, mine_P, RIDGES[int(np.argmin(losses))])
    return margins_P


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument(
        "--most", type=int, default=4000, help="pairs of a file, its first: products of all pairs are held"
    )
    options = parser.parse_args()
    encoder = Encoder(AutoTokenizer.from_pretrained(options.model), {})
    print("| pairs | counted | accuracy | log-loss, nats | less that of types |\n|---|---|---|---|---|")
    for name in options.pairs:
        texts = [pair for pair in read_pairs(name) if not isinstance(pair, Dropped)]
        pairs = [pair for pair in encoder.encode_all(texts[: options.most]) if not isinstance(pair, Dropped)]
        folds_P = np.array([fold_of(pair.prompt_ids, FOLDS) for pair in pairs])
        known = {
            kind: similarities(kind, pairs) for kind in sorted({each for kinds in KINDS.values() for each in kinds})
        }
        found = {what: unseen_margins(sum(known[kind] for kind in kinds) / len(kinds), folds_P)  # type: ignore[arg-type]
                 for what, kinds in KINDS.items()}  # fmt: skip
        for what, margins_P in found.items():
            losses_P = log_losses(margins_P)
            less = mean_interval(losses_P - log_losses(found["types"]))
            accuracy, loss = preference_accuracy(margins_P.tolist()), mean_interval(losses_P)
            print(f"| {len(pairs):,} of {name} | {what} | {accuracy:.3f} | {loss:.3f} | {less:+.4f} |", flush=True)


if __name__ == "__main__":
    main()
