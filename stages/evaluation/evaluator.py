"""What is measured of models, one after another: log-probs and KL of pairs, and samples of their own.

Each is cached at once (`stages.tokens.cache`) under a hash of the model, the ids and the settings that decide it: an
interrupted evaluation goes on, and a model that is compared with others again is not measured again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from stages.demo.language import Truth, true_reward
from stages.devices.processes import ALONE, Team
from stages.errors import SepoError
from stages.evaluation.figures import Columns, Measured, describe, sums_of
from stages.evaluation.held_out import HeldOut, Prompt, content_of, prompts_of
from stages.logprobs.decode import DecodeRequest, decode, decoded_together
from stages.logprobs.decode_trial import find_decoding
from stages.logprobs.logps import Forward, response_kl, response_logps, shared_groups
from stages.logprobs.paths import find_paths
from stages.models.loading import Loading
from stages.models.references import highest_id, refuse_unknown_ids
from stages.reporting import Quiet, Reporter
from stages.store.files import hash_json
from stages.store.manifest import LIBRARIES
from stages.tokens.cache import Arrays, cached_arrays
from stages.tokens.fingerprint import modules_hash
from stages.types import Ids, TokenPair

PACKAGES: Final = ("logprobs", "models", "evaluation", "method")
"""whose code decides what is measured"""
_DECODED: Final = 4
"""tokens of rows that are sampled together, over those of a forward pass: of them only keys and values are held"""


class Candidate(NamedTuple):
    """A model under evaluation, and in its ids the pairs and the prompts to be answered."""

    name: str
    folder: Path
    hash: str
    held_out: HeldOut
    prompts: list[Prompt]


class Sampling(NamedTuple):
    """How answers are drawn, at temperature 1."""

    max_new_tokens: int
    seed: int


@dataclass
class Evaluator:
    """Loads a model when it is first needed. The reference stays in memory, and beside it one other model."""

    reference: Candidate | None
    sampling: Sampling
    max_tokens: int
    loading: Loading
    reporter: Reporter
    team: Team = ALONE
    """each of its processes has all that is measured; the first one alone looks into the cache"""
    divides: bool = True
    """whether the processes divide what is measured, each with a model of its own; else they hold one together"""
    kl: bool = True
    """whether to measure KL from the reference, where there is one"""
    truth: Truth | None = None
    """of the demo"""
    _forwards: dict[Path, Forward] = field(default_factory=dict)
    _known: dict[str, Arrays] = field(default_factory=dict)
    """what was measured so far, where the cache cannot hold it"""

    def measure(self, model: Candidate) -> Measured:
        keys = np.array([prompt.key for prompt in model.prompts], np.int64)
        return Measured(self._pairs(model), prompts_of(model.held_out.pairs), self.samples(model), keys)

    def samples(self, model: Candidate) -> Columns:
        """An answer to each prompt as text and in figures."""
        if not model.prompts:
            return {}
        answers = self._answers(model)
        nothing = np.empty(0, np.int32)
        asked = enumerate(zip(model.prompts, answers, strict=True))
        pairs = [TokenPair(number, prompt.ids, answer, nothing) for number, (prompt, answer) in asked]
        texts = model.held_out.tokenizer.batch_decode(answers, skip_special_tokens=True)
        columns: Columns = {"pair_id": np.array([prompt.pair_id for prompt in model.prompts], np.int64)}
        columns |= {"response": np.array(texts), **describe(answers, model.held_out.encoder.end_of_turn)}
        if self.kl and self.reference:
            columns["kl"] = self._kl(model, pairs, "samples")[:, 0]
        if self.truth is not None:
            columns["true_reward"] = np.array([true_reward(text, self.truth) for text in texts])
        return columns

    def _pairs(self, model: Candidate) -> Columns:
        pairs = model.held_out.pairs
        columns = {"pair_id": np.array([pair.pair_id for pair in pairs], np.int64), **self._logps(model, pairs)}
        if self.reference is not None:
            reference = self._logps(self.reference, pairs)
            columns |= {f"{side}_reference_logp": reference[f"{side}_logp"] for side in ("chosen", "rejected")}
        if self.kl and self.reference:
            columns |= dict(zip(("chosen_kl", "rejected_kl"), self._kl(model, pairs, "pairs").T, strict=True))
        return columns

    def _logps(self, model: Candidate, pairs: list[TokenPair]) -> Columns:
        """Log-probs summed over each response, in float64, and its tokens."""
        title = f"{model.name}: log-probs"

        def make() -> Arrays:
            forward = self._forward(model.folder)
            refuse_unknown_ids(forward.model, highest_id(pairs), model.name)
            with self.reporter.task(title, len(pairs), "pairs") as task:
                [found] = response_logps([forward], pairs, task=task, **self._how)
            _refuse_not_finite(np.concatenate([side for each in found for side in each]), title)
            return sums_of(found)

        return self._once("log-probs", model, [content_of(pairs)], make)

    def _kl(self, model: Candidate, pairs: list[TokenPair], what: str) -> NDArray[np.float64]:
        """KL from the reference, summed over each chosen and each rejected response, (N, 2) nats."""
        reference = self.reference
        assert reference is not None
        if model.hash == reference.hash:
            return np.zeros((len(pairs), 2))

        def make() -> Arrays:
            title = f"{model.name}: KL, {what}"
            base, forward = self._forward(reference.folder), self._forward(model.folder)
            with self.reporter.task(title, len(pairs), "pairs") as task:
                kl_N2 = response_kl(forward, base, pairs, task=task, **self._how)
            _refuse_not_finite(kl_N2, title)
            return {"kl_N2": kl_N2}

        return self._once(f"KL of {what}", model, [reference.hash, content_of(pairs)], make)["kl_N2"]

    def _answers(self, model: Candidate) -> list[Ids]:
        """One answer for each prompt."""
        how, prompts, end_of_turn = self.sampling, model.prompts, model.held_out.encoder.end_of_turn

        def make() -> Arrays:
            asked = [
                DecodeRequest(prompt.ids, 1.0, 1.0, how.max_new_tokens, (how.seed, place))
                for place, prompt in enumerate(prompts)
            ]
            decoding = find_decoding(self._forward(model.folder), self.reporter)
            ends, most = () if end_of_turn is None else (end_of_turn,), _DECODED * self.max_tokens
            groups = decoded_together(decoding, asked, most)
            mine = [place for group in shared_groups(groups, self._dividing, Quiet()) for place in group]
            found: dict[int, Ids] = {}
            with self.reporter.task(f"{model.name}: samples", len(mine), "responses") as task:
                for number, answer in decode(decoding, [asked[place] for place in mine], ends=ends, max_tokens=most):
                    found[mine[number]] = answer.answer_ids
                    task.advance()
            for theirs in gather_object([found]) if self._dividing else ():
                found |= theirs
            drawn = [found[place] for place in range(len(prompts))]
            return {"ids": np.concatenate(drawn), "lengths": np.array([len(answer) for answer in drawn])}

        key = [hash_json([prompt.ids.tolist() for prompt in prompts]), end_of_turn, how._asdict()]
        found = self._once("samples", model, key, make)
        return np.split(found["ids"], np.cumsum(found["lengths"])[:-1])

    def _once(self, what: str, model: Candidate, more: list[Any], make: Callable[[], Arrays]) -> Arrays:
        """What `make` measures, from the cache. Another device, code or library version may measure another number."""
        computed = (self.loading.device.type, self.loading.precision, self.loading.quantize)
        key = [what, *computed, modules_hash(*PACKAGES), *map(version, LIBRARIES), model.hash, *more]
        name = hash_json(key)
        if name not in self._known:
            self._known[name] = self._shared(key, make, f"{model.name}: {what}")
        return self._known[name]

    def _shared(self, key: list[Any], make: Callable[[], Arrays], name: str) -> Arrays:
        """`cached_arrays` for all processes: the first one looks, and has all of them make what it does not find."""
        if not self.team.first:
            while (found := self.team.agreed(_not_there)) is None:
                make()
            return found

        def make_together() -> Arrays:
            self.team.agreed(_not_there)
            return make()

        return self.team.agreed(lambda: cached_arrays(key, make_together, name=name, reporter=self.reporter))

    @property
    def _dividing(self) -> Accelerator | None:
        return self.team.processes if self.divides else None

    @property
    def _how(self) -> dict[str, Any]:
        """Of log-probs and KL."""
        return {"max_tokens": self.max_tokens, "device": self.loading.device, "accelerator": self._dividing}

    def _forward(self, folder: Path) -> Forward:
        if folder not in self._forwards:
            kept = self.reference.folder if self.reference else None
            if folder != kept:
                self._forwards = {each: forward for each, forward in self._forwards.items() if each == kept}
            self._forwards[folder] = find_paths(self.loading.load(folder), self.reporter)
        return self._forwards[folder]


def _not_there() -> Arrays | None:
    """What the first process says of what all have to make."""
    return None


def _refuse_not_finite(values: NDArray[Any], what: str) -> None:
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise SepoError(
            f"{what}: {wrong:,} of {values.size:,} are not finite",
            hint="its training has diverged, or its weights are damaged: leave this model out",
        )
