"""Which of the ways of `stages.model.logps` a model can take, found by trying them on it.

No list of architectures could be complete: models mix tokens by attention, state spaces and convolutions, count
positions in ways of their own, and scale or cap their logits. So every model is shown two short pairs of random ids,
each response in a row of its own through the model's own forward, and then by each faster way. A way that gives other
log-probs is not taken, and the log says so.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stages.currency import Batch
from stages.model.batches import collate, whole
from stages.model.head import has_head
from stages.model.logps import Reader, keeps_logits, pair_by_pair, reading, weighted_logps
from stages.model.packing import Packed, pack
from stages.model.trial import agree, trial_logps, trial_pairs
from stages.reporting import Reporter


@torch.no_grad()
def find_paths(model: Any, reporter: Reporter) -> Reader:
    """The model with the fastest ways that give its own log-probs."""
    training = model.training
    model.eval()
    examples = [whole(pair) for pair in trial_pairs(model)]
    padded = collate(examples, model.device)
    expected_N = trial_logps(model)
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
    return agree(pair_by_pair(batch, logps_RW), expected_N, reader.model.dtype)


def _name(model: Any) -> str:
    return type(model).__name__
