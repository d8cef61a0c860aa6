"""Do policies say of unseen pairs what the counts say that they were to learn?

    python -m benchmarks.evidence.followed --model M --counted S3 --held-out PAIRS --samples A POLICIES.jsonl

Of the folders and files of `benchmarks.evidence.two_cores` with labels of others (REWARD=none). Counts are sums over a
response of what its tokens' types are worth, and so of its length too: worth a token on average times their number. A
policy's log-ratios cannot have that part: it gives no token more than it takes from others in its place.

Shapes: ``P`` held-out pairs, in the order in which policies were read.
"""

import argparse
import json

import numpy as np
from transformers import AutoTokenizer

from benchmarks.evidence.last_layers import Row
from benchmarks.evidence.real_text import REWARDS
from benchmarks.evidence.two_cores import held_out_rows, read_samples
from stages.method.statistics import preference_accuracy
from stages.store.scores import open_scores


def worth_of_types(folder: str) -> tuple[dict[int, float], float]:
    """What `sepo denoise --pool counts` says of each type, and the mean over all tokens there."""
    rows = list(open_scores(folder).rows())
    ids_N = np.concatenate([ids for row in rows for ids in (row.pair.chosen_ids, row.pair.rejected_ids)])
    scores_N = np.concatenate([scores for row in rows for scores in row.scores])
    return dict(zip(ids_N.tolist(), scores_N.tolist(), strict=True)), float(scores_N.mean())


def margin(row: Row, worth: dict[int, float], mean: float = 0.0) -> float:
    """Of the chosen response less the rejected one; a type that is not known is worth nothing."""
    chosen, rejected = (sum(worth.get(id_, 0.0) - mean for id_ in ids.tolist()) for ids in row.responses)
    return float(chosen - rejected)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--counted", "--held-out", "--samples"):
        parser.add_argument(name, required=True)
    parser.add_argument("policies", type=argparse.FileType())
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = held_out_rows(options.held_out, tokenizer, read_samples(options.samples, tokenizer, REWARDS["none"]))
    worth, mean = worth_of_types(options.counted)
    margins = {
        "counts": [margin(row, worth) for row in rows],
        "counts, less their mean a token": [margin(row, worth, mean) for row in rows],
        "length": [float(len(row.responses[0]) - len(row.responses[1])) for row in rows],
    }
    margins |= {
        line["recipe"]: line["margins_P"]
        for line in map(json.loads, options.policies)
        if (line["scale"], line["setting"]) == (1.0, 0)
    }
    print("| margins of | accuracy | correlation with those of counts | with lengths |\n|---|---|---|---|")
    for name, margins_P in margins.items():
        of_counts, of_length = (np.corrcoef(margins_P, margins[other])[0, 1] for other in ("counts", "length"))
        print(f"| {name} | {preference_accuracy(margins_P):.3f} | {of_counts:.2f} | {of_length:.2f} |")


if __name__ == "__main__":
    main()
