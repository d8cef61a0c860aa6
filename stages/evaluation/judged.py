"""Models that are judged one after another, each beside the same reference: log-probs, divergence, answers."""

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stages.devices.memory import move_model
from stages.errors import SepoError
from stages.logprobs.divergence import response_kl
from stages.logprobs.generate import sample
from stages.logprobs.logps import Reader, response_logps
from stages.logprobs.paths import find_paths
from stages.models.folders import load_model
from stages.models.references import refuse_unknown_ids
from stages.reporting import Reporter
from stages.types import Ids, PairLogps, TokenPair

SAMPLE_BATCH: Final = 32
"""answers that are sampled together; another number would draw other answers"""


class Sampling(NamedTuple):
    """How answers are drawn."""

    end_of_turn: int | None
    max_new_tokens: int
    seed: int


class Judged:
    """Loads a model when it is first needed. The reference stays in memory, and beside it one other model."""

    def __init__(
        self,
        reference: Path | None,
        *,
        max_tokens: int,
        device: torch.device,
        trust_remote_code: bool,
        reporter: Reporter,
    ) -> None:
        self.device = device
        self._reference = reference
        self._max_tokens = max_tokens
        self._trust_remote_code = trust_remote_code
        self._reporter = reporter
        self._readers: dict[Path, Reader] = {}

    def logps(self, folder: Path, pairs: list[TokenPair], name: str) -> list[PairLogps]:
        """Log-probs of all response tokens of some pairs."""
        reader = self._reader(folder)
        refuse_unknown_ids(reader.model, pairs, name)
        with self._reporter.task(f"{name}: log-probs", len(pairs), "pairs") as task:
            [found] = response_logps([reader], pairs, max_tokens=self._max_tokens, device=self.device, task=task)
        _refuse_not_finite(np.concatenate([side for each in found for side in each]), f"{name}: log-probs")
        return found

    def kl(self, folder: Path, pairs: list[TokenPair], title: str) -> NDArray[np.float64]:
        """KL from the reference, summed over each chosen and each rejected response, (N, 2) nats."""
        assert self._reference is not None
        readers = [self._reader(self._reference), self._reader(folder)]
        with self._reporter.task(title, len(pairs), "pairs") as task:
            kl_N2 = response_kl(
                readers[1], readers[0], pairs, max_tokens=self._max_tokens, device=self.device, task=task
            )
        _refuse_not_finite(kl_N2, title)
        return kl_N2

    def answers(self, folder: Path, prompts: list[Ids], how: Sampling, name: str) -> list[Ids]:
        """One answer for each prompt, at temperature 1; prompts of one length are asked together."""
        model = self._reader(folder).model.eval()
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
        with self._reporter.task(f"{name}: samples", len(prompts), "responses") as task:
            drawn = sample(
                model,
                [prompts[place] for place in order],
                end_of_turn=how.end_of_turn,
                max_new_tokens=how.max_new_tokens,
                batch_size=SAMPLE_BATCH,
                seed=how.seed,
                task=task,
            )
        found = dict(zip(order, drawn, strict=True))
        return [found[place] for place in range(len(prompts))]

    def _reader(self, folder: Path) -> Reader:
        if folder not in self._readers:
            if folder != self._reference:
                self._readers = {kept: reader for kept, reader in self._readers.items() if kept == self._reference}
            model = move_model(load_model(folder, trust_remote_code=self._trust_remote_code), self.device)
            self._readers[folder] = find_paths(model, self._reporter)
        return self._readers[folder]


def _refuse_not_finite(values: NDArray[Any], what: str) -> None:
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise SepoError(
            f"{what}: {wrong:,} of {values.size:,} are not finite",
            hint="its training has diverged, or its weights are damaged: leave this model out",
        )
