"""Which of the ways of `stages.model.logps` a model can take, found by trying them on it.

No list of architectures could be complete: models mix tokens by attention, state spaces and convolutions, count
positions in ways of their own, and scale or cap their logits. So every model is shown two short pairs of random ids,
each response in a row of its own through the model's own forward, and then by each faster way. A way that gives other
log-probs is not taken, and the log says so.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from stages.currency import Batch, TokenPair
from stages.model.batches import collate, whole
from stages.model.head import has_head
from stages.model.logps import Reader, keeps_logits, pair_by_pair, reading, weighted_logps
from stages.model.packing import Packed, pack
from stages.reporting import Reporter

_LENGTHS: Final = ((5, 7, 6), (3, 4, 9))
_SHORT_WINDOW: Final = 128
"""a sliding window shorter than this is reached by the trial"""
_TOLERANCE: Final = {torch.float32: 5e-4, torch.bfloat16: 0.15, torch.float16: 0.03}
"""nats, mean over the trial's tokens; in half precision rounding alone moves a log-prob by hundredths"""


@torch.no_grad()
def find_paths(model: Any, reporter: Reporter) -> Reader:
    """The model with the fastest ways that give its own log-probs."""
    training = model.training
    model.eval()
    examples = [whole(pair) for pair in _trial(model)]
    padded = collate(examples, model.device)
    expected_RW = weighted_logps(Reader(model, packs=False, tiled=False, alone=True), padded)
    expected_N = pair_by_pair(padded, expected_RW)
    reader = Reader(model, packs=False, tiled=has_head(model), alone=_looks_at_the_batch(model))
    if reader.tiled and not _agrees(reader, padded, expected_N):
        reporter.say(f"{_name(model)}: its head is more than a matrix; its own forward computes the logits")
        reader = reader._replace(tiled=False)
    packed = pack(examples, model.device)
    if reader.alone:
        reporter.say(f"{_name(model)}: positions depend on the longest row of a batch; responses are read one by one")
    elif _may_pack(reader) and _agrees(reader, packed, expected_N) and _windows_told(reader, packed):
        reader = reader._replace(packs=True)
    else:
        reporter.say(f"{_name(model)}: pairs cannot share a row in it; every response has a padded row of its own")
    model.train(training)
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


def _looks_at_the_batch(model: Any) -> bool:
    """Whether rotary frequencies are chosen by the largest position in the batch: the trial is too short to show it."""
    return any(kind == "longrope" or "dynamic" in kind for kind in _rope_kinds(model.config.to_dict()))


def _rope_kinds(config: Any) -> Iterator[str]:
    """Every ``rope_type`` in a configuration, which may have one for each kind of layer."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _rope_kinds(value)
        elif name == "rope_type" and isinstance(value, str):
            yield value


def _may_pack(reader: Reader) -> bool:
    # Chunked attention cuts by position in the row, and tells only its mask about it.
    chunked = getattr(reader.model.config, "attention_chunk_size", None) is not None
    backend = getattr(reader.model, "_supports_attention_backend", False)
    return bool(backend) and not chunked and (reader.tiled or keeps_logits(reader.model))


def _windows_told(reader: Reader, packed: Packed) -> bool:
    """A window that is longer than the trial cannot show in its numbers; the layers have to have told of it."""
    config = reader.model.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return not (window and slides) or window in packed.layout.windows_seen


def _agrees(reader: Reader, batch: Packed | Batch, expected_N: Tensor) -> bool:
    """Whether one way of reading gives the expected log-probs, pair by pair, chosen before rejected."""
    try:
        with reading(reader, batch):
            logps_RW = weighted_logps(reader, batch)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # Code that was never written for it may fail in any way.
        return False
    difference = (pair_by_pair(batch, logps_RW) - expected_N).abs().mean().item()
    return bool(difference <= _TOLERANCE.get(reader.model.dtype, _TOLERANCE[torch.float32]))


def _name(model: Any) -> str:
    return type(model).__name__
