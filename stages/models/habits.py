"""What a model's generation_config.json asks for when answers are drawn, in transformers' own names and meanings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stages.errors import SepoError, borrowed
from stages.models.folders import described_in
from stages.store.files import read_object

FILE: Final = "generation_config.json"
_HINT: Final = f"take it out of {FILE}, or leave out --use-generation-config"
REFUSED: Final[Mapping[str, float | None]] = {
    **dict.fromkeys(("diversity_penalty", "encoder_no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff"), 0),
    **dict.fromkeys(("min_length", "min_new_tokens", "min_p", "no_repeat_ngram_size", "token_healing"), 0),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale", "num_beam_groups", "num_beams", "typical_p"), 1),
    **dict.fromkeys(("bad_words_ids", "begin_suppress_tokens", "constraints", "dola_layers", "force_words_ids")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "max_time")),
    **dict.fromkeys(("penalty_alpha", "sequence_bias", "stop_strings", "suppress_tokens", "top_h")),
    "watermarking_config": None,
}
"""what else changes what is drawn, and the value, beside none, with which it does not"""


class Habits(NamedTuple):
    """What is asked for, as far as we can do it; None: nothing."""

    temperature: float | None = None
    """0, always the likeliest token, where `do_sample` is false"""
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None

    def given(self) -> dict[str, float]:
        """Those that there are, by their names."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def processors(self) -> LogitsProcessorList:
        """Of logits, beside temperature and top-p; before the temperature top-k keeps the same tokens as behind it."""
        found = LogitsProcessorList()
        if self.repetition_penalty is not None:
            found.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.top_k is not None:
            found.append(TopKLogitsWarper(self.top_k))
        return found


NO_HABITS: Final = Habits()


def read_generation_config(folder: Path) -> dict[str, Any]:
    """What the file of a model says, of an adapter that of its base; nothing where there is no file."""
    path = described_in(folder) / FILE
    return read_object(path, "repair it, or take it away") if path.exists() else {}


def habits_of(said: Mapping[str, Any], name: str) -> Habits:
    """The habits that the file of a model of this name asks for.

    Raises:
        SepoError: one that we do not have, or a value that transformers does not take.
    """
    for key, nothing in REFUSED.items():
        if said.get(key) not in (None, [], {}, nothing):
            raise SepoError(f"{name}: its {FILE} asks for {key}, which sepo does not do", hint=_HINT)
    with borrowed(f"{name}: its {FILE} holds what transformers does not take", _HINT):
        return _checked(said)


def _checked(said: Mapping[str, Any]) -> Habits:
    """By the processors that transformers makes of them; 0 switches top-k off."""
    temperature, top_p, top_k = (said.get(key) for key in ("temperature", "top_p", "top_k"))
    penalty = said.get("repetition_penalty")
    greedy = said.get("do_sample") is False or temperature == 0
    return Habits(
        0.0 if greedy else None if temperature is None else TemperatureLogitsWarper(float(temperature)).temperature,
        None if top_p is None else TopPLogitsWarper(top_p).top_p,
        TopKLogitsWarper(top_k).top_k if top_k else None,
        None if penalty is None else RepetitionPenaltyLogitsProcessor(float(penalty)).penalty,
    )
