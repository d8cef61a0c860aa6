"""Oracle and reference, loaded once, as a function from pairs to scores."""

from pathlib import Path
from typing import NamedTuple

import torch

from stages.configs import ScoreConfig
from stages.devices.memory import move_model
from stages.devices.precision import products, weights_of
from stages.logprobs.logps import Forward, response_logps
from stages.logprobs.paths import find_paths
from stages.models.adapters import is_adapter, put_on
from stages.models.folders import base_folder, load_model
from stages.reporting import Quiet, Reporter, Task
from stages.store.logps import KnownLogps
from stages.types import CausalLM, PairLogps, ScoredPair, TokenPair


class Models(NamedTuple):
    """The two folders whose difference is a score."""

    oracle: Path
    reference: Path


class Scorer:
    """Scores pairs. A model is loaded when it is first needed: a reference whose log-probs are all known, never."""

    def __init__(
        self, models: Models, config: ScoreConfig, device: torch.device, known: KnownLogps | None, reporter: Reporter
    ) -> None:
        self.models = models
        self._config = config
        self._device = device
        self._known = known
        self._reporter = reporter
        self._forwards: dict[Path, Forward] = {}

    def score(self, pairs: list[TokenPair], task: Task) -> list[ScoredPair]:
        """Oracle minus reference log-prob of every response token, in the order of the pairs, each a step of `task`."""
        known = [self._known.find(pair) if self._known else None for pair in pairs]
        reference = {index: logps for index, logps in enumerate(known) if logps is not None}
        oracle: dict[int, PairLogps] = {}
        done, fresh = [*reference], [index for index, logps in enumerate(known) if logps is None]
        if fresh:
            [ours, theirs] = self._logps([*self.models], [pairs[index] for index in fresh], task)
            oracle |= zip(fresh, ours, strict=True)
            reference |= zip(fresh, theirs, strict=True)
        if done:
            [ours] = self._logps([self.models.oracle], [pairs[index] for index in done], task)
            oracle |= zip(done, ours, strict=True)
        return [ScoredPair(pair, difference(oracle[n], reference[n]), reference[n]) for n, pair in enumerate(pairs)]

    def exact(self, pairs: list[TokenPair], task: Task) -> list[PairLogps]:
        """Scores in float32, one pair at a time, by the models' own forward and nothing of ours that is fast.

        One model is in memory at a time, each a step of `task`; those that `score` used are let go.
        """
        self._forwards.clear()
        logps = []
        for folder in self.models:
            model = move_model(load_model(folder, trust_remote_code=self._config.trust_remote_code), self._device)
            forward = Forward(model, alone=True)
            with products("float32"):
                [found] = response_logps([forward], pairs, max_tokens=1, device=self._device, task=Quiet())
            logps.append(found)
            task.advance()
        return [difference(ours, theirs) for ours, theirs in zip(*logps, strict=True)]

    def _logps(self, folders: list[Path], pairs: list[TokenPair], task: Task) -> list[list[PairLogps]]:
        with products(self._config.precision):
            return response_logps(
                [self._forward(folder) for folder in folders],
                pairs,
                max_tokens=self._config.max_tokens_per_device,
                device=self._device,
                task=task,
            )

    def _forward(self, folder: Path) -> Forward:
        if folder not in self._forwards:
            if is_adapter(self.models.oracle) and base_folder(self.models.oracle).samefile(self.models.reference):
                self._share_one_model()
            else:
                self._forwards[folder] = find_paths(self._load(folder), self._reporter)
        return self._forwards[folder]

    def _share_one_model(self) -> None:
        """The oracle is an adapter on its reference: with it and without it, one model is both, if it can be."""
        adapted = put_on(self._load(self.models.reference), self.models.oracle)
        oracle = find_paths(adapted.model, self._reporter)
        if adapted.without is None:
            self._reporter.say(f"{self.models.oracle} changes its base: the reference is a second model in memory")
            reference = find_paths(self._load(self.models.reference), self._reporter)
        else:
            reference = oracle._replace(context=adapted.without)
        self._forwards = {self.models.oracle: oracle, self.models.reference: reference}

    def _load(self, folder: Path) -> CausalLM:
        dtype = weights_of(self._config.precision)
        return move_model(
            load_model(folder, trust_remote_code=self._config.trust_remote_code, dtype=dtype), self._device
        )


def difference(oracle: PairLogps, reference: PairLogps) -> PairLogps:
    """Scores of a pair's tokens, nats."""
    return PairLogps(oracle.chosen - reference.chosen, oracle.rejected - reference.rejected)
