"""Oracle and reference, loaded once, as a function from pairs to scores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from stages.devices.precision import products
from stages.logprobs.logps import Forward, response_logps, response_logps_and_kl
from stages.logprobs.paths import find_paths
from stages.method.folds import fold_of
from stages.models.adapters import is_adapter
from stages.models.folders import base_folder, load_tokenizer, model_hash, resolve_model
from stages.models.loading import LoadingOptions, loading_of
from stages.reporting import Quiet, Reporter, Task
from stages.store.logps import KnownLogps
from stages.store.manifest import Input, read_manifest
from stages.store.shape import lookup
from stages.tokens.fingerprint import refuse_other_tokens, tokenizer_inputs
from stages.types import PairLogps, ScoredPair, Tokenizer, TokenPair


class Models(NamedTuple):
    """The folders whose difference is a score."""

    oracles: tuple[Path, ...]
    """one that scores all pairs, or one for each fold, which it has not seen (`stages.method.folds`)"""
    reference: Path

    @property
    def named(self) -> dict[str, Path]:
        """All of them by name: ``oracle`` or ``oracle-1`` and so on, and ``reference``."""
        return {**dict(zip(oracle_names(len(self.oracles)), self.oracles, strict=True)), "reference": self.reference}


class OracleOptions(LoadingOptions, Protocol):
    """What a command that scores has among its options."""

    @property
    def oracle(self) -> str | None: ...
    @property
    def oracle_model(self) -> str | None: ...
    @property
    def reference_model(self) -> str | None: ...
    @property
    def max_tokens_per_device(self) -> int: ...


def oracle_names(folds: int) -> list[str]:
    """What the oracles are called in a folder of `sepo train-oracle`."""
    return ["oracle"] if folds == 1 else [f"oracle-{fold + 1}" for fold in range(folds)]


def oracle_manifest(folder: str) -> dict[str, Any]:
    """That of a finished folder of `sepo train-oracle`."""
    return read_manifest(folder, "train-oracle", "run `sepo train-oracle` first, or let it finish")


def find_models(config: OracleOptions, reporter: Reporter) -> tuple[Models, Tokenizer]:
    """The models that the options name and their common tokenizer: a score is a difference at one and the same id."""
    oracles, reference_name = [str(config.oracle_model)], str(config.reference_model)
    if config.oracle:
        folder = Path(config.oracle)
        folds = lookup(oracle_manifest(config.oracle), "settings.folds", 1)
        oracles = [str(folder / name) for name in oracle_names(folds)]
        reference_name = str(folder / "reference")
    models = Models(tuple(resolve_model(name, reporter) for name in oracles), resolve_model(reference_name, reporter))
    tokenizer = load_tokenizer(models.oracles[0], trust_remote_code=config.trust_remote_code, reporter=reporter)
    reference = load_tokenizer(models.reference, trust_remote_code=config.trust_remote_code)
    hint = "score with the reference that the oracle was trained from"
    refuse_other_tokens(tokenizer, reference, "oracle and reference", hint)
    return models, tokenizer


def scorer_inputs(models: Models, tokenizer: Tokenizer) -> dict[str, Input]:
    """What decides the scores of given text, as inputs of a run."""
    return {
        **{name: Input(str(folder), model_hash(folder)) for name, folder in models.named.items()},
        **tokenizer_inputs(str(models.oracles[0]), tokenizer),
    }


class Scorer:
    """Scores pairs. A model is loaded when it is first needed: a reference whose log-probs are all known, never."""

    def __init__(
        self, models: Models, config: OracleOptions, device: torch.device, known: KnownLogps | None, reporter: Reporter
    ) -> None:
        self.models = models
        self._loading = loading_of(config, device, reporter)
        self._max_tokens = config.max_tokens_per_device
        self._known = known
        self._reporter = reporter
        self._forwards: dict[Path, Forward] = {}

    def score(self, pairs: list[TokenPair], task: Task) -> list[ScoredPair]:
        """Oracle minus reference log-prob of every response token, in the order of the pairs, each a step of `task`."""
        scored: dict[int, ScoredPair] = {}
        for oracle, places in self._by_oracle(pairs):
            scored |= zip(places, self._score(oracle, [pairs[place] for place in places], task), strict=True)
        return [scored[place] for place in range(len(pairs))]

    def score_with_kl(self, pairs: list[TokenPair], task: Task) -> list[tuple[ScoredPair, PairLogps]]:
        """The same, each pair with KL(reference || its oracle) at every response token, nats."""
        found: dict[int, tuple[ScoredPair, PairLogps]] = {}
        for folder, places in self._by_oracle(pairs):
            some = [pairs[place] for place in places]
            with products(self._loading.precision):
                ours, theirs, kl = response_logps_and_kl(
                    self._forward(folder),
                    self._forward(self.models.reference),
                    some,
                    max_tokens=self._max_tokens,
                    device=self._loading.device,
                    task=task,
                )
            scored = [ScoredPair(*each) for each in zip(some, map(difference, ours, theirs), theirs, strict=True)]
            found |= zip(places, zip(scored, kl, strict=True), strict=True)
        return [found[place] for place in range(len(pairs))]

    def _by_oracle(self, pairs: list[TokenPair]) -> Iterator[tuple[Path, list[int]]]:
        """Each oracle with the places of the pairs that it scores: all, or those of its fold."""
        folds = [fold_of(pair.prompt_ids, len(self.models.oracles)) for pair in pairs]
        for fold, oracle in enumerate(self.models.oracles):
            yield oracle, [place for place, theirs in enumerate(folds) if theirs == fold]

    def _score(self, folder: Path, pairs: list[TokenPair], task: Task) -> list[ScoredPair]:
        """The same by the oracle in a folder."""
        known = [self._known.find(pair) if self._known else None for pair in pairs]
        reference = {index: logps for index, logps in enumerate(known) if logps is not None}
        oracle: dict[int, PairLogps] = {}
        done, fresh = [*reference], [index for index, logps in enumerate(known) if logps is None]
        if fresh:
            [ours, theirs] = self._logps([folder, self.models.reference], [pairs[index] for index in fresh], task)
            oracle |= zip(fresh, ours, strict=True)
            reference |= zip(fresh, theirs, strict=True)
        if done:
            [ours] = self._logps([folder], [pairs[index] for index in done], task)
            oracle |= zip(done, ours, strict=True)
        return [ScoredPair(pair, difference(oracle[n], reference[n]), reference[n]) for n, pair in enumerate(pairs)]

    def exact(self, pairs: list[TokenPair], task: Task) -> list[PairLogps]:
        """Scores in float32, one pair at a time, by the models' own forward and nothing of ours that is fast.

        One model is in memory at a time, each a step of `task`; those that `score` used are let go.
        """
        self._forwards.clear()
        oracle: dict[int, PairLogps] = {}
        reference = self._exact_logps(self.models.reference, pairs, task)
        for folder, places in self._by_oracle(pairs):
            some = self._exact_logps(folder, [pairs[place] for place in places], task)
            oracle |= zip(places, some, strict=True)
        return [difference(oracle[place], theirs) for place, theirs in enumerate(reference)]

    def _exact_logps(self, folder: Path, pairs: list[TokenPair], task: Task) -> list[PairLogps]:
        exact = self._loading._replace(precision="float32", quantize=None)
        forward = Forward(exact.load(folder), alone=True)
        with products("float32"):
            [found] = response_logps([forward], pairs, max_tokens=1, device=exact.device, task=Quiet())
        task.advance()
        return found

    def _logps(self, folders: list[Path], pairs: list[TokenPair], task: Task) -> list[list[PairLogps]]:
        with products(self._loading.precision):
            return response_logps(
                [self._forward(folder) for folder in folders],
                pairs,
                max_tokens=self._max_tokens,
                device=self._loading.device,
                task=task,
            )

    def _forward(self, folder: Path) -> Forward:
        if folder not in self._forwards:
            if is_adapter(folder) and base_folder(folder).samefile(self.models.reference):
                self._share_one_model(folder)
            else:
                self._forwards[folder] = find_paths(self._loading.load(folder), self._reporter)
        return self._forwards[folder]

    def _share_one_model(self, folder: Path) -> None:
        """An oracle is an adapter on its reference: with it and without it, one model is both, if it can be."""
        adapted = self._loading.load_adapted(self.models.reference, folder)
        oracle = find_paths(adapted.model, self._reporter)
        if adapted.without is None:
            self._reporter.say(f"{folder} changes its base: the reference is a second model in memory")
            reference = find_paths(self._loading.load(self.models.reference), self._reporter)
        else:
            reference = oracle._replace(context=adapted.without)
        self._forwards |= {folder: oracle, self.models.reference: reference}


def difference(oracle: PairLogps, reference: PairLogps) -> PairLogps:
    """Scores of a pair's tokens, nats."""
    return PairLogps(oracle.chosen - reference.chosen, oracle.rejected - reference.rejected)
