"""Is this still the same model? Two short pairs of random ids, read through a model's own forward, tell.

Called before and after another library had a model in its hands: an adapter switched off or put on, a merge, weights
held in fewer bits, train mode.
"""

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from stages.currency import TokenPair
from stages.model.batches import collate, whole
from stages.model.logps import Reader, pair_by_pair, weighted_logps

TOLERANCE: Final = {torch.float32: 5e-4, torch.bfloat16: 0.15, torch.float16: 0.03}
"""nats, mean over the trial's tokens; in half precision rounding alone moves a log-prob by hundredths"""
_LENGTHS: Final = ((5, 7, 6), (3, 4, 9))
_SHORT_WINDOW: Final = 128
"""a sliding window shorter than this is reached by the trial"""


def trial_pairs(model: Any) -> list[TokenPair]:
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
def trial_logps(model: Any) -> Tensor:
    """Log-probs of the trial's response tokens, (N,) float32 nats, each row by itself, in the mode the model is in."""
    batch = collate([whole(pair) for pair in trial_pairs(model)], model.device)
    return pair_by_pair(batch, weighted_logps(Reader(model, packs=False, tiled=False, alone=True), batch))


def agree(found_N: Tensor, expected_N: Tensor, dtype: torch.dtype) -> bool:
    """Whether two readings of the trial are those of one model, but for rounding; never where one is not finite."""
    difference = (found_N - expected_N).abs().mean().item()
    return bool(difference <= TOLERANCE.get(dtype, TOLERANCE[torch.float32]))
