"""Oracle and reference, loaded once, as a function from pairs to scores."""

from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from stages.devices.memory import move_model
from stages.devices.precision import products, weights_of
from stages.errors import SepoError
from stages.logprobs.logps import Forward, response_logps
from stages.logprobs.paths import find_paths
from stages.models.adapters import is_adapter, put_on
from stages.models.folders import base_folder, load_model, load_tokenizer, model_hash, resolve_model
from stages.reporting import Quiet, Reporter, Task
from stages.store.logps import KnownLogps
from stages.store.manifest import Input, read_manifest
from stages.tokens.fingerprint import tokenizer_inputs, vocabulary_hash
from stages.types import CausalLM, PairLogps, ScoredPair, Tokenizer, TokenPair


class Models(NamedTuple):
    """The two folders whose difference is a score."""

    oracle: Path
    reference: Path


class OracleOptions(Protocol):
    """What a command that scores has among its options."""

    @property
    def oracle(self) -> str | None: ...
    @property
    def oracle_model(self) -> str | None: ...
    @property
    def reference_model(self) -> str | None: ...
    @property
    def precision(self) -> str: ...
    @property
    def trust_remote_code(self) -> bool: ...
    @property
    def max_tokens_per_device(self) -> int: ...


def find_models(config: OracleOptions, reporter: Reporter) -> tuple[Models, Tokenizer]:
    """The models that the options name and their common tokenizer: a score is a difference at one and the same id."""
    names = (str(config.oracle_model), str(config.reference_model))
    if config.oracle:
        read_manifest(Path(config.oracle), "train-oracle", "run `sepo train-oracle` first, or let it finish")
        names = (str(Path(config.oracle) / "oracle"), str(Path(config.oracle) / "reference"))
    models = Models(*(resolve_model(name, reporter) for name in names))
    tokenizer = load_tokenizer(models.oracle, trust_remote_code=config.trust_remote_code, reporter=reporter)
    reference = load_tokenizer(models.reference, trust_remote_code=config.trust_remote_code)
    if vocabulary_hash(tokenizer) != vocabulary_hash(reference):
        raise SepoError(
            f"oracle and reference do not share a token->id map ({len(tokenizer):,} and {len(reference):,} tokens)",
            hint="score with the reference that the oracle was trained from",
        )
    return models, tokenizer


def scorer_inputs(models: Models, tokenizer: Tokenizer) -> dict[str, Input]:
    """What decides the scores of given text, as inputs of a run."""
    return {
        "oracle": Input(str(models.oracle), model_hash(models.oracle)),
        "reference": Input(str(models.reference), model_hash(models.reference)),
        **tokenizer_inputs(str(models.oracle), tokenizer),
    }


class Scorer:
    """Scores pairs. A model is loaded when it is first needed: a reference whose log-probs are all known, never."""

    def __init__(
        self, models: Models, config: OracleOptions, device: torch.device, known: KnownLogps | None, reporter: Reporter
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
