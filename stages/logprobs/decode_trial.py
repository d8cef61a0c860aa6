"""How a model's answers can be decoded, found by trying it, as `stages.logprobs.paths` finds its fast paths.

Models hold their past in caches of many kinds, and take padding before a prompt well or badly. So every model answers
two short prompts of random ids, twice each, in a batch from which rows leave; what it then said of its tokens has to be
what its plain forward says of them. Otherwise the batch has rows of one length, or a row alone, or no cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from stages.devices.precision import products
from stages.logprobs.decode import Decoded, DecodePlan, DecodeRequest, decode
from stages.logprobs.logps import Forward
from stages.logprobs.trial import agree, rounds_as, trial_logps, trial_pairs
from stages.reporting import Reporter
from stages.types import TokenPair

_ROOMS = (2, 5, 3, 6)
"""tokens of the answers: two to the first prompt, two to the second"""


@products("float32")
def find_decoding(forward: Forward, reporter: Reporter) -> DecodePlan:
    """The fastest way to decode that gives a model's own log-probs; its model is in eval mode afterwards.

    Tried in exact products, whatever the recipe that is open, as `stages.logprobs.paths.find_paths` does.
    """
    forward.model.eval()
    name = type(forward.model).__name__
    for decoding, said in _ways(forward):
        if _is_right(decoding):
            if said:
                reporter.say(f"{name}: {said}")
            return decoding
    reporter.say(f"{name}: its cache cannot be used, each token takes a pass over its whole row")
    return DecodePlan(forward, alone=True, cached=False)


def _ways(forward: Forward) -> Iterator[tuple[DecodePlan, str]]:
    """From the fastest on, and what to say of it."""
    if not forward.alone:
        yield DecodePlan(forward), ""
        yield DecodePlan(forward, mixed=False), "only prompts of one length are answered together"
    yield DecodePlan(forward, alone=True), "prompts are answered one by one"


def _is_right(decoding: DecodePlan) -> bool:
    pairs = trial_pairs(decoding.forward.model)
    if not decoding.mixed:
        width = min(len(pair.prompt_ids) for pair in pairs)
        pairs = [pair._replace(prompt_ids=pair.prompt_ids[:width]) for pair in pairs]
    prompts = [pair.prompt_ids for pair in pairs for _ in range(2)]
    asked = [
        DecodeRequest(prompt, 1.0, 1.0, room, seed)
        for seed, (prompt, room) in enumerate(zip(prompts, _ROOMS, strict=True))
    ]
    try:
        found = dict(decode(decoding, asked, ends=(), max_tokens=1_000_000))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # Code that was never written for it may fail in any way.
        return False
    answers = [found[index] for index in range(len(asked))]
    model = decoding.forward.model
    return agree(torch.cat([*map(_logps, answers)]), _expected(decoding.forward, pairs, answers), rounds_as(model))


def _logps(answer: Decoded) -> Tensor:
    return torch.from_numpy(answer.logps)


def _expected(forward: Forward, pairs: list[TokenPair], answers: list[Decoded]) -> Tensor:
    """By the plain forward of each row by itself."""
    answered = [
        pair._replace(chosen_ids=chosen.answer_ids, rejected_ids=rejected.answer_ids)
        for pair, chosen, rejected in zip(pairs, answers[::2], answers[1::2], strict=True)
    ]
    with forward.context():
        return trial_logps(forward.model, answered).cpu()
