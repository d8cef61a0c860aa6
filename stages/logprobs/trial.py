"""Is this still the same model? The log-probs of two short pairs of random ids, by a model's own forward, tell.

Called before and after another library had a model in its hands: an adapter switched off or put on, a merge, weights
held in fewer bits, train mode.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Final

import numpy as np
import torch
from torch import Tensor

from stages.devices.placement import input_device
from stages.logprobs.batches import collate, whole
from stages.logprobs.logps import Forward, pair_by_pair, weighted_logps
from stages.types import CausalLM, TokenPair

TOLERANCE: Final = {torch.float32: 5e-4, torch.bfloat16: 0.15, torch.float16: 0.03}
"""nats, mean over the trial's tokens; in half precision rounding alone moves a log-prob by hundredths"""
_MARGIN: Final = 4.0
"""of a faster path in half precision, over the error of plain padded rows: good ones have at most 2.2 times it, those
that leak 25 times and more (all of tests/logprobs/zoo.py, and SmolLM2-135M)"""
_ROUNDED: Final = 1 / 16
"""of the precision's relative error: how far one rounding moves a log-prob, where padded rows happen not to differ"""
_SAME_SHAPE: Final = {torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.03}
"""nats, largest over the tokens of two results of one shape, in which little is rounded otherwise"""
_LENGTHS: Final = ((5, 7, 6), (3, 4, 9))
_SHORT_WINDOW: Final = 128
"""a sliding window shorter than this is reached by the trial"""


def trial_pairs(model: CausalLM) -> list[TokenPair]:
    """Two pairs of random ids, the same for every model of a vocabulary's size and window."""
    window = getattr(model.config, "sliding_window", None) or 0
    more = window if window < _SHORT_WINDOW else 0
    rng = np.random.default_rng(0)
    high = int(model.get_input_embeddings().weight.shape[0])
    return [
        TokenPair(number, *(rng.integers(0, high, length + more).astype(np.int32) for length in lengths))
        for number, lengths in enumerate(_LENGTHS)
    ]


@torch.no_grad()
def trial_logps(model: CausalLM, pairs: list[TokenPair] | None = None) -> Tensor:
    """Log-probs of the trial's response tokens, (N,) float32 nats, each row by itself, in the mode the model is in."""
    batch = collate([whole(pair) for pair in pairs or trial_pairs(model)], input_device(model))
    return pair_by_pair(batch, weighted_logps(Forward(model, alone=True), batch))


def agree(found_N: Tensor, expected_N: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results of the trial are those of one model, but for rounding; never where one is not finite."""
    return apart(found_N, expected_N) <= _of(TOLERANCE, dtype)


def apart(found_N: Tensor, expected_N: Tensor) -> float:
    """Mean distance of two results of the trial, nats."""
    return float((found_N - expected_N).abs().mean())


def rounding_of(padded_N: Tensor, expected_N: Tensor, dtype: torch.dtype) -> float:
    """How far apart a faster path may be from what is expected: in half precision not much farther than padded rows."""
    limit = _of(TOLERANCE, dtype)
    if dtype not in (torch.bfloat16, torch.float16):
        return limit
    one = torch.finfo(dtype).eps * float(expected_N.abs().mean()) * _ROUNDED
    return min(limit, _MARGIN * max(apart(padded_N, expected_N), one))


def same(found_N: Tensor, expected_N: Tensor, dtype: torch.dtype) -> bool:
    """Whether log-probs of rows of the same shape are one at every token."""
    return not found_N.numel() or float((found_N - expected_N).abs().max()) <= _of(_SAME_SHAPE, dtype)


def sees_later_tokens(model: CausalLM, expected_N: Tensor) -> bool:
    """Whether the log-probs that `trial_logps` gives move when the last token of their row is another one."""
    pairs = trial_pairs(model)
    found_N = trial_logps(model, [_last_changed(pair, model) for pair in pairs])
    lengths = [len(side) for pair in pairs for side in (pair.chosen_ids, pair.rejected_ids)]
    earlier = [slice(end - length, end - 1) for length, end in zip(lengths, accumulate(lengths), strict=True)]
    before_N, after_N = (torch.cat([logps_N[part] for part in earlier]) for logps_N in (expected_N, found_N))
    # Weights that are not finite say nothing of it; whoever uses them finds out.
    return bool(before_N.isfinite().all()) and not same(after_N, before_N, rounds_as(model))


def rounds_as(model: CausalLM) -> torch.dtype:
    """The precision by whose tolerance a model is measured; LLM.int8 rounds its activations batch by batch."""
    return torch.bfloat16 if getattr(model, "is_loaded_in_8bit", False) else model.dtype


def _last_changed(pair: TokenPair, model: CausalLM) -> TokenPair:
    high = int(model.get_input_embeddings().weight.shape[0])
    chosen, rejected = (np.append(ids[:-1], (ids[-1:] + 1) % high).astype(np.int32) for ids in pair.parts[1:])
    return pair._replace(chosen_ids=chosen, rejected_ids=rejected)


def _of(table: Mapping[torch.dtype, float], dtype: torch.dtype) -> float:
    return table.get(dtype, table[torch.float32])
