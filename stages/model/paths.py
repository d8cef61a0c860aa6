"""Which of the ways of `stages.model.logps` a model can take, found by trying them on it.

No list of architectures could be complete: models mix tokens by attention, state spaces and convolutions, count
positions in ways of their own, and scale or cap their logits. So every model is shown two short pairs of random ids,
each response in a row of its own through the model's own forward, and then by each faster way. A way that gives other
log-probs is not taken, and the log says so.
"""

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from stages.currency import TokenPair
from stages.model.batches import collate, whole
from stages.model.head import find_head
from stages.model.logps import Reader, keeps_logits, packed_logps, padded_logps, token_logps
from stages.model.packing import Packed, pack
from stages.reporting import Reporter

_LENGTHS: Final = ((5, 7, 6), (3, 4, 9))
_SHORT_WINDOW: Final = 128
"""a sliding window shorter than this is reached by the trial"""
_TOLERANCE: Final = {torch.float32: 5e-4, torch.bfloat16: 0.15, torch.float16: 0.03}
"""nats, mean over the trial's tokens; in half precision rounding alone moves a log-prob by hundredths"""


def find_paths(model: Any, reporter: Reporter) -> Reader:
    """The model with the fastest ways that give its own log-probs."""
    trial = _trial(model)
    expected_N = _one_by_one(model, trial)
    reader = Reader(model, packs=False, head=find_head(model))
    rows = collate([*map(whole, trial)], expected_N.device)
    if reader.head is not None and not _agrees(lambda: padded_logps(reader, rows), expected_N, model):
        reporter.say(f"{_name(model)}: its head is more than a matrix; its own forward computes the logits")
        reader = reader._replace(head=None)
    packed = pack(trial, expected_N.device)
    if (
        _may_pack(reader)
        and _agrees(lambda: packed_logps(reader, packed), expected_N, model)
        and _windows_told(reader, packed)
    ):
        return reader._replace(packs=True)
    reporter.say(f"{_name(model)}: pairs cannot share a row in it; every response has a padded row of its own")
    return reader


def _trial(model: Any) -> list[TokenPair]:
    window = getattr(model.config, "sliding_window", None) or 0
    more = window if window < _SHORT_WINDOW else 0
    rng = np.random.default_rng(0)
    high = int(model.get_input_embeddings().weight.shape[0])
    return [
        TokenPair(number, *(rng.integers(0, high, length + more).astype(np.int32) for length in lengths))
        for number, lengths in enumerate(_LENGTHS)
    ]


@torch.no_grad()
def _one_by_one(model: Any, pairs: list[TokenPair]) -> Tensor:
    """Log-probs by the model's own forward, one unpadded row at a time, (N,)."""
    nothing = np.empty(0, np.int32)
    rows = [
        TokenPair(pair.pair_id, pair.prompt_ids, response, nothing)
        for pair in pairs
        for response in (pair.chosen_ids, pair.rejected_ids)
    ]
    logps = []
    for row in rows:
        batch = collate([whole(row)], model.device)
        logps.append(token_logps(model.eval(), batch)[batch.weights_RT != 0])
    return torch.cat(logps)


def _may_pack(reader: Reader) -> bool:
    # Chunked attention cuts by position in the row, and tells only its mask about it.
    chunked = getattr(reader.model.config, "attention_chunk_size", None) is not None
    backend = getattr(reader.model, "_supports_attention_backend", False)
    return bool(backend) and not chunked and (reader.head is not None or keeps_logits(reader.model))


def _windows_told(reader: Reader, packed: Packed) -> bool:
    """A window that is longer than the trial cannot show in its numbers; the layers have to have told of it."""
    config = reader.model.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return not (window and slides) or window in packed.layout.windows_seen


def _agrees(read: Any, expected_N: Tensor, model: Any) -> bool:
    try:
        found_N = read()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # Code that was never written for it may fail in any way.
        return False
    difference = (found_N - expected_N).abs().mean().item()
    return bool(difference <= _TOLERANCE.get(model.dtype, _TOLERANCE[torch.float32]))


def _name(model: Any) -> str:
    return type(model).__name__
