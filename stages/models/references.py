"""Log-probs of pairs under a model that stays as it is: found where they are known, else computed once."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from stages.devices.engines import refuse_divided
from stages.devices.parts import readable
from stages.errors import SepoError
from stages.logprobs.head import has_head
from stages.logprobs.logps import Forward, response_logps
from stages.logprobs.paths import find_paths
from stages.models.folders import embedding_rows, model_hash
from stages.reporting import Quiet, Reporter, Task
from stages.store.logps import forget_parts, part_name, read_logps, write_logps
from stages.store.score_table import ScoreTable
from stages.store.scores import Scores
from stages.store.shape import lookup
from stages.tokens.fingerprint import vocabulary_hash
from stages.types import CausalLM, Lazily, PairLogps, ScoredPair, Tokenizer, TokenPair

PART_PAIRS: Final = 1024
"""whose log-probs are kept together: what a kill can cost"""


class Frozen(NamedTuple):
    """A model that is not trained."""

    name: str
    """as the user gave it"""
    folder: Path
    hash: str
    """`stages.models.folders.model_hash`"""


class RunContext(NamedTuple):
    """Which processes compute the log-probs of a run, and where they keep them."""

    accelerator: Accelerator
    """its processes divide the work"""
    folder: Path
    """of the run"""
    max_tokens: int
    """of one forward pass; the same in all processes, which divide what follows from it"""
    reporter: Reporter


class WantedLogps(NamedTuple):
    """Log-probs of pairs under a model, which a run keeps in its folder."""

    model: Frozen
    load: Callable[[], CausalLM]
    """gives the model on this process's device; called only if something has to be computed"""
    pairs: Sequence[TokenPair]
    context: RunContext
    file: str
    title: str
    """of the computation, for the user"""

    def known(self, file: str, some: slice | None = None) -> Sequence[PairLogps] | None:
        """What a file of the folder has of the pairs, or of some; None if it does not have all of that."""
        known = read_logps(self.context.folder, self.model.hash, file)
        pairs = self.pairs if some is None else self.pairs[some]
        if known is None or any(known.find(pair) is None for pair in pairs):
            return None

        def find(index: int) -> PairLogps:
            found = known.find(pairs[index])
            assert found is not None
            return found

        return Lazily(len(pairs), find)

    def read_back(self, file: str, some: slice | None = None) -> Sequence[PairLogps]:
        """The same of what was just written."""
        known = self.known(file, some)
        if known is None:
            where = self.context.folder / file
            raise SepoError(f"{where} is not what was just written", hint="see whether another run writes it")
        return known


def frozen(name: str, folder: Path, quantize: str | None = None) -> Frozen:
    """A model by its folder; one whose weights are held in few bits is another than the exact one."""
    return Frozen(name, folder, model_hash(folder) + (f" in {quantize}" if quantize else ""))


def refuse_other_vocabulary(tokenizer: Tokenizer, scores: Scores, model: str) -> None:
    """Refuse a model, by its name, that gives the scored ids another meaning."""
    theirs = scores.manifest["tokenizer"]
    if vocabulary_hash(tokenizer) == theirs["vocabulary"]:
        return
    sizes = f"{len(tokenizer):,} and {theirs.get('size', 0):,} tokens"
    raise SepoError(
        f"the token->id map of {model} is not the one {scores.folder} was made with ({sizes})",
        hint="`sepo project-scores` carries scores over to another tokenizer, or score with an oracle of its family",
    )


def highest_id(pairs: Iterable[TokenPair]) -> int:
    """Of all tokens of the pairs."""
    return max(int(ids.max(initial=0)) for pair in pairs for ids in pair.parts)


def refuse_unknown_ids(model: CausalLM, highest: int, name: str) -> None:
    """Refuse a model that has no embedding for the highest id of some pairs."""
    if highest >= embedding_rows(model):
        raise SepoError(
            f"the pairs hold token id {highest:,}, but {name} has embeddings for {embedding_rows(model):,}",
            hint="resize the model's embeddings to its tokenizer, or use another model",
        )


def refuse_other_head(policy: CausalLM, reference: Any, name: str) -> None:
    """A divergence over the whole vocabulary needs two heads of the same size."""
    sizes = [len(each.get_output_embeddings().weight) for each in (policy, reference) if has_head(each)]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        raise SepoError(
            f"no KL between heads of {sizes[0]:,} rows (the policy's) and {sizes[1]:,} ({name}'s)",
            hint="resize the embeddings of one model to those of the other",
        )


def logps_of_rows(
    model: Frozen, load: Callable[[], CausalLM], rows: ScoreTable, scores: Scores, context: RunContext, *, file: str
) -> Sequence[PairLogps]:
    """Log-probs of every response token of the rows of some scores under a model, in their order.

    From the shards where the scores' reference is that very model, to the bit, in float32; else from `kept_logps`.
    """
    if rows.referenced and _is_reference(model, scores):
        context.reporter.say(f"log-probs under {model.name}: in {scores.folder}, whose reference it is")
        return rows.map(_reference_of)
    title = f"log-probs under {model.name}"
    return kept_logps(WantedLogps(model, load, rows.map(lambda row: row.pair), context, file, title))


def kept_logps(wanted: WantedLogps) -> Sequence[PairLogps]:
    """Log-probs of every response token of the pairs, in their order; quickest when read in that order.

    From their file, where an earlier attempt left them; else computed by all processes, and kept there. Every process
    has to call it, and gets them all. What is computed waits in parts, whatever happens meanwhile.
    """
    context, file = wanted.context, wanted.file
    known = wanted.known(file)
    # One process that cannot read them needs the help of all.
    lacking = any(gather_object([known is None]))
    if known is None or lacking:
        parts = _make_parts(wanted)
        if context.accelerator.is_main_process:
            logps = (wanted.read_back(part, some) for part, some in parts.items())
            write_logps(context.folder, wanted.pairs, chain.from_iterable(logps), wanted.model.hash, file)
        context.accelerator.wait_for_everyone()
        # Pairs of one content share a row there: a run that goes on must not find other bits than this one has.
        known = wanted.read_back(file)
    if context.accelerator.is_main_process:
        forget_parts(context.folder, file)
    return known


def _make_parts(wanted: WantedLogps) -> dict[str, slice]:
    """Compute the parts that are not there yet; returns where the pairs of each are.

    A part's bits do not depend on which others were there: each is divided into batches on its own.
    """
    model, load, pairs, context, file, title = wanted
    starts = range(0, len(pairs), PART_PAIRS)
    parts = {part_name(file, number): slice(start, start + PART_PAIRS) for number, start in enumerate(starts)}
    missing = sorted(set(gather_object([name for name, some in parts.items() if wanted.known(name, some) is None])))
    if len(missing) < len(parts):
        context.reporter.say(f"{title}: {len(parts) - len(missing):,} of {len(parts):,} parts are there already")
    if missing:
        loaded = load()
        refuse_unknown_ids(loaded, highest_id(pairs), model.name)
        forward = find_paths_of(loaded, context.accelerator, context.reporter)
        total = sum(len(range(len(pairs))[parts[name]]) for name in missing)
        with context.reporter.task(title, total, "pairs") as task:
            for name in missing:
                some = [*pairs[parts[name]]]
                logps = _compute(forward, some, context, task)
                if context.accelerator.is_main_process:
                    write_logps(context.folder, some, logps, model.hash, name)
    return parts


def logps_of(model: CausalLM, pairs: list[TokenPair], context: RunContext, title: str) -> list[PairLogps]:
    """Log-probs of every response token of the pairs; each process computes its share, and has them all."""
    with context.reporter.task(title, len(pairs), "pairs") as task:
        return _compute(find_paths_of(model, context.accelerator, context.reporter), pairs, context, task)


def find_paths_of(model: CausalLM, accelerator: Accelerator, reporter: Reporter) -> Forward:
    """`find_paths` of a model, or of a copy of it that is divided among the processes, where it waits for that.

    Every process has to call it, and to make the same forward passes.
    """
    forward = find_paths(readable(model, accelerator), reporter)
    if forward.alone:
        refuse_divided(accelerator, "this model's responses are read one by one")
    return forward


def refuse_not_finite(model: CausalLM, pair: TokenPair, context: RunContext) -> None:
    """Refuse a model whose log-probs of a pair are not finite, though its weights may be."""
    # A model whose parts are spread over processes has to run in all of them at once.
    if not context.accelerator.is_fsdp2:
        _compute(Forward(model, chunked=has_head(model)), [pair], context, Quiet())


def _compute(forward: Forward, pairs: list[TokenPair], context: RunContext, task: Task) -> list[PairLogps]:
    [logps] = response_logps(
        [forward],
        pairs,
        max_tokens=context.max_tokens,
        device=context.accelerator.device,
        task=task,
        accelerator=context.accelerator,
    )
    broken = [
        pair.pair_id for pair, each in zip(pairs, logps, strict=True) if not np.isfinite(np.concatenate(each)).all()
    ]
    if broken:
        raise SepoError(
            f"the model's log-probs of {len(broken):,} of {len(pairs):,} pairs are not finite, as of pair {broken[0]}",
            hint="if this run trained it, lower --learning-rate and begin anew with --overwrite",
        )
    return logps


def _is_reference(model: Frozen, scores: Scores) -> bool:
    # What a scorer computed in half precision, or of weights in few bits, is not what training would compute.
    settings = lookup(scores.manifest, "settings")
    exact = lookup(settings, "precision") == "float32" and not lookup(settings, "quantize")
    return exact and lookup(scores.manifest, "inputs.reference") == model.hash


def _reference_of(row: ScoredPair) -> PairLogps:
    assert row.reference is not None
    return row.reference
