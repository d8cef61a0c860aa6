"""Which paths of `stages.logprobs.logps` a model can take, found by trying them on it.

No list of architectures could be complete: models mix tokens by attention, state spaces and convolutions, count
positions in ways of their own, and scale or cap their logits. So every model is shown two short pairs of random ids,
each response in a row of its own through the model's own forward, and then by each faster path. One that gives other
log-probs is not taken, nor a row in which answers see each other, and the log says so.
"""

from typing import Final

import torch
from torch import Tensor

from stages.compat import attention_of, takes_attention
from stages.devices.parts import class_of
from stages.devices.placement import input_device
from stages.devices.precision import products
from stages.errors import SepoError
from stages.logprobs.batches import collate, looks_at_the_batch, whole
from stages.logprobs.flex import compiled_flex
from stages.logprobs.flex_trial import TriedFlex
from stages.logprobs.head import has_head
from stages.logprobs.logps import Forward, attention_for, keeps_logits, make_batch, pair_by_pair, weighted_logps
from stages.logprobs.packing import Packed, pack
from stages.logprobs.trial import agree, apart, rounding_of, sees_later_tokens, trial_logps, trial_pairs
from stages.reporting import Reporter
from stages.types import Batch, CausalLM, TokenPair

_NEARLY_EXACT: Final = 2e-6
"""nats; in tests/logprobs/zoo.py nothing moves where nothing leaks, and by 5e-5 at least where something does"""
_NOISE: Final = 4.0
"""how much farther than by other rows of a batch an answer's log-probs may move by others in its own"""


@torch.no_grad()
@products("float32")
def find_paths(model: CausalLM, reporter: Reporter) -> Forward:
    """The model with the fastest paths that give its own log-probs; one that sees later tokens is refused.

    Tried in exact products, whatever the recipe that is open: the rounding of TF32 would look like another model.
    """
    training = model.training
    model.eval()
    examples = [whole(pair) for pair in trial_pairs(model)]
    padded = collate(examples, input_device(model))
    expected_N = trial_logps(model)
    if sees_later_tokens(model, expected_N):
        raise SepoError(
            f"{model.config.name_or_path or _name(model)} sees later tokens: another last token changes what it says of"
            " those before it",
            hint="give a causal language model; an embedding model, or one made for masked tokens, is none",
        )
    forward = Forward(model, alone=looks_at_the_batch(model))
    padded_N = _tried(forward, padded)
    if not forward.alone and not agree(padded_N, expected_N, model.dtype):
        reporter.say(f"{_name(model)}: the rows of a batch change each other in it")
        forward = forward._replace(alone=True)
        padded_N = _tried(forward, padded)
    limit = rounding_of(padded_N, expected_N, model.dtype)
    if has_head(model):
        chunked = forward._replace(chunked=True)
        chunked_N = _tried(chunked, padded)
        if apart(chunked_N, expected_N) <= limit:
            forward, limit = chunked, max(limit, rounding_of(chunked_N, expected_N, model.dtype))
        else:
            reporter.say(f"{_name(model)}: its head is more than a matrix; its own forward computes the logits")
    packed = pack(examples, input_device(model))
    if forward.alone:
        reporter.say(f"{_name(model)}: log-probs depend on the rest of a batch; responses are read one by one")
    elif getattr(model, "own_attention", False):
        reporter.say(f"{_name(model)}: attends by {attention_of(model)}; every response has a padded row of its own")
    elif (
        _may_pack(forward)
        and apart(_tried(forward, packed), expected_N) <= limit
        and _windows_told(forward, packed)
        and not _leaks(forward._replace(packs=True))
    ):
        forward = forward._replace(packs=True, fused=_fused(model, reporter))
    else:
        reporter.say(f"{_name(model)}: pairs cannot share a row in it; every response has a padded row of its own")
    model.train(training)
    return forward


def _fused(model: CausalLM, reporter: Reporter) -> TriedFlex | None:
    """On a GPU, what attends in one kernel a layer where FlashAttention cannot; it is tried when it is first asked."""
    return TriedFlex(_name(model), reporter, compiled_flex()) if input_device(model).type == "cuda" else None


def _may_pack(forward: Forward) -> bool:
    # Chunked attention cuts by position in the row, and tells only its mask about it.
    cut_up = getattr(forward.model.config, "attention_chunk_size", None) is not None
    return takes_attention(forward.model) and not cut_up and (forward.chunked or keeps_logits(forward.model))


def _windows_told(forward: Forward, packed: Packed) -> bool:
    """A window that is longer than the trial cannot show in its numbers; the layers have to have told of it."""
    config = forward.model.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return not (window and slides) or window in packed.layout.windows_seen


def _leaks(packing: Forward) -> bool:
    """Whether an answer's log-probs move with the other answers in its row, more than with other rows of a batch.

    In one shape and precision they keep every bit, but where what is computed together is rounded together: by experts,
    or in few bits.
    """
    moved = _moved(packing)
    return moved > _NEARLY_EXACT and moved > _NOISE * _moved(packing._replace(packs=False))


def _moved(forward: Forward) -> float:
    """Largest change of an answer's log-prob when the other answer of every pair is another one, nats."""
    pairs = trial_pairs(forward.model)
    vocabulary = int(forward.model.get_input_embeddings().weight.shape[0])

    def logps_of(pairs: list[TokenPair]) -> Tensor:
        examples = [whole(pair) for pair in pairs]
        return _logps(forward, make_batch(examples, input_device(forward.model), packs=forward.packs))

    before_N = logps_of(pairs)
    lengths = [len(ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    moved: list[Tensor] = []
    for side, other in (("chosen_ids", 1), ("rejected_ids", 0)):
        changed = [pair._replace(**{side: (getattr(pair, side) + 1) % vocabulary}) for pair in pairs]
        moved += torch.split((logps_of(changed) - before_N).abs(), lengths)[other::2]
    return float(torch.cat(moved).max())


def _logps(forward: Forward, batch: Packed | Batch) -> Tensor:
    """Log-probs by one path, (N,), pair by pair, chosen before rejected."""
    with attention_for(forward, batch):
        return pair_by_pair(batch, weighted_logps(forward, batch))


def _tried(forward: Forward, batch: Packed | Batch) -> Tensor:
    """The same; infinitely far from all others where the model cannot do that."""
    try:
        return _logps(forward, batch)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # Code that was never written for it may fail in any way.
        return torch.tensor(torch.inf)


def _name(model: CausalLM) -> str:
    return class_of(model).__name__
