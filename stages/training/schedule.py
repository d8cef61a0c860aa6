"""Which pairs are held out, which of the others each step of a training phase takes, and which process takes which."""

import math
import random
from array import array
from collections.abc import Sequence
from functools import lru_cache
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.configs import OptimizerConfig
from stages.reporting import counted
from stages.types import TokenPair, hash_ids

Indices = NDArray[np.int64]


class Schedule(NamedTuple):
    """How many steps there are, and of how many pairs."""

    pairs: int
    batch_size: int
    epochs: int
    steps: int
    warmup_steps: int

    def __str__(self) -> str:
        """``645 pairs x 2 epochs = 162 steps (80 x 8 + 1 x 5 an epoch), 9 of them warm-up``."""
        full, rest = divmod(self.pairs, self.batch_size)
        parts = ([f"{full:,} x {self.batch_size:,}"] if full else []) + ([f"1 x {rest}"] if rest else [])
        per_epoch = full + (rest > 0)
        epoch = f"{counted(self.pairs, 'pair')} = {counted(per_epoch, 'step')} ({' + '.join(parts)})"
        total = f" x {self.epochs} epochs = {per_epoch * self.epochs:,} steps" if self.epochs > 1 else ""
        stop = f", stopped after {self.steps:,}" if self.steps != per_epoch * self.epochs else ""
        return f"{epoch}{total}{stop}, {self.warmup_steps:,} of them warm-up"

    def step_of(self, order: Sequence[int], step: int) -> Sequence[int]:
        """The indices of the pairs of one step (from 0), given the order of its epoch."""
        start = step % math.ceil(self.pairs / self.batch_size) * self.batch_size
        return order[start : start + self.batch_size]

    def epoch_of(self, step: int) -> int:
        return step // math.ceil(self.pairs / self.batch_size)


def make_schedule(pairs: int, config: OptimizerConfig) -> Schedule:
    """Derive the steps from the pairs; the last step of an epoch may hold fewer pairs than the others."""
    batch_size = min(config.batch_size, pairs)
    steps, epochs = math.ceil(pairs / batch_size) * config.num_train_epochs, config.num_train_epochs
    if config.max_steps:
        epochs = max(1, math.ceil(config.max_steps / math.ceil(pairs / batch_size)))
        steps = config.max_steps
    # The first step of a warm-up has a learning rate of 0: a run of one step would train nothing.
    warmup_steps = min(math.ceil(config.warmup_ratio * steps), steps - 1)
    if config.lr_scheduler_type == "constant":
        # transformers gives that one no warm-up.
        warmup_steps = 0
    return Schedule(pairs, batch_size, epochs, steps, warmup_steps)


@lru_cache(maxsize=1)
def order_of_epoch(pairs: int, epoch: int, seed: int) -> Sequence[int]:
    """The order of an epoch: a seeded shuffle of its own, so that any step can be found again without a replay."""
    # A list would take ten times the memory.
    order = array("I", range(pairs))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def deal(tokens: Sequence[int], processes: int) -> list[list[int]]:
    """Divide the pairs of a step so that processes have alike to compute: the largest first, to whoever has least.

    (Graham's LPT rule, 1969: the longest is done at most a third later than by the best division.) The division depends
    on its arguments alone, so every process finds the same one.

    Args:
        tokens: of each pair.

    Returns:
        for every process the indices of its pairs, rising; of pairs of one size the first process takes the first.
    """
    loads = [(0, process) for process in range(processes)]
    shares: list[list[int]] = [[] for _ in range(processes)]
    for index in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        load, process = heappop(loads)
        shares[process].append(index)
        heappush(loads, (load + tokens[index], process))
    return [sorted(share) for share in shares]


def split_pairs(
    pairs: Sequence[TokenPair], eval_fraction: float, data_fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Hold out a share of the pairs, then take a share of the rest: both by chance, seeded, without replacement.

    Pairs of one prompt stay together: a held-out pair is of a prompt that was never trained on. The held-out pairs do
    not depend on `data_fraction`, so oracles trained on different shares meet the same judges.

    Returns:
        the indices of the pairs to train on, and of those held out; both rise.
    """
    hashes = np.fromiter((hash_ids(pair.prompt_ids) for pair in pairs), np.uint64, len(pairs))
    _, firsts, prompts = np.unique(hashes, return_index=True, return_inverse=True)
    # The prompts in the order of their first pairs, shuffled.
    shuffled = array("I", np.argsort(firsts).tolist())
    random.Random(f"split/{seed}").shuffle(shuffled)
    order = np.array(shuffled, np.int64)
    sizes = np.bincount(prompts)[order]
    wanted = math.ceil(eval_fraction * len(pairs))
    # A prompt with many pairs is passed over where smaller ones will do.
    fitting = np.flatnonzero(sizes <= wanted) if (sizes <= wanted).any() else np.array([np.argmin(sizes)])
    before = np.cumsum(sizes[fitting]) - sizes[fitting]
    # One prompt is left to train on.
    is_held = np.zeros(len(order), bool)
    is_held[fitting[before < wanted][: len(order) - 1]] = True
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    by_prompt = np.argsort(rank[prompts], kind="stable")
    held = is_held[rank[prompts[by_prompt]]]
    rest = by_prompt[~held]
    return np.sort(rest[: max(1, round(data_fraction * len(rest)))]), np.sort(by_prompt[held])
