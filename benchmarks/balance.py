"""How evenly a step's pairs keep its processes at work: dealt out by tokens, as training does it, and by number.

    python -m benchmarks.balance

A process waits in every step for the one that has most tokens, so that the share of time at work is the mean of all
loads over the largest one. Tokens of a pair are lognormal; the standard deviation of their logarithm is `SIGMA`.
"""

from typing import Final

import numpy as np

from stages.training.schedule import deal

MEDIAN: Final = 350
"""tokens of a pair"""
SIGMA: Final = 0.5
STEPS: Final = 100


def at_work(tokens: list[int], shares: list[list[int]]) -> float:
    """The share of its time in which a process of a step computes, on average."""
    loads = [sum(tokens[index] for index in share) for share in shares]
    return sum(loads) / len(loads) / max(loads)


def row(pairs: int, processes: int) -> tuple[float, float]:
    """The share at work where pairs are dealt out by number, and by tokens."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(STEPS):
        tokens = [int(size) for size in rng.lognormal(np.log(MEDIAN), SIGMA, pairs)]
        by_number = [list(range(process, pairs, processes)) for process in range(processes)]
        found.append((at_work(tokens, by_number), at_work(tokens, deal(tokens, processes))))
    by_number_mean, by_tokens_mean = np.mean(found, axis=0)
    return float(by_number_mean), float(by_tokens_mean)


def main() -> None:
    print("| pairs a step | processes | by number | by tokens |\n|---|---|---|---|")
    for pairs in (128, 512):
        for processes in (2, 8, 32, 64):
            by_number, by_tokens = row(pairs, processes)
            print(f"| {pairs} | {processes} | {by_number:.2f} | {by_tokens:.2f} |")


if __name__ == "__main__":
    main()
