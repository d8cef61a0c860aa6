"""Log-probs of pairs under a model that stays as it is: found where they are known, else computed once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import gather_object

from stages.currency import PairLogps, ScoredPair, TokenPair
from stages.errors import SepoError
from stages.model.folders import embedding_rows, load_tokenizer, model_hash, vocabulary_hash
from stages.model.head import has_head
from stages.model.logps import response_logps
from stages.model.paths import find_paths
from stages.reporting import Reporter
from stages.store.logps import read_logps, write_logps
from stages.store.scores import Scores, lookup


class Frozen(NamedTuple):
    """A model that is not trained."""

    name: str
    """as the user gave it"""
    folder: Path
    hash: str
    """`stages.model.folders.model_hash`"""


class Around(NamedTuple):
    """Where log-probs are kept, and how they are computed."""

    accelerator: Accelerator
    """its processes divide the work"""
    folder: Path
    """of the run"""
    max_tokens: int
    """of one forward pass"""
    reporter: Reporter


def frozen(name: str, folder: Path, quantize: str | None = None) -> Frozen:
    """A model by its folder; one whose weights are held in few bits is another than the exact one."""
    return Frozen(name, folder, model_hash(folder) + (f" in {quantize}" if quantize else ""))


def refuse_other_vocabulary(tokenizer: Any, scores: Scores, model: str) -> None:
    """Refuse a model that gives the scored ids another meaning.

    Args:
        model: its name, as the user gave it.
    """
    theirs = scores.manifest["tokenizer"]
    if vocabulary_hash(tokenizer) == theirs["vocabulary"]:
        return
    sizes = f"{len(tokenizer):,} and {theirs.get('size', 0):,} tokens"
    raise SepoError(
        f"the token->id map of {model} is not the one {scores.folder} was made with ({sizes})",
        hint="`sepo project-scores` carries scores over to another tokenizer, or score with an oracle of its family",
    )


def refuse_unknown_ids(model: Any, rows: Sequence[ScoredPair], name: str) -> None:
    """Refuse a model that has no embedding for some scored id."""
    highest = max(int(ids.max()) for row in rows for ids in row.pair[1:])
    if highest >= embedding_rows(model):
        raise SepoError(
            f"the scores hold token id {highest:,}, but {name} has embeddings for {embedding_rows(model):,}",
            hint="resize the model's embeddings to its tokenizer, or use another model",
        )


def refuse_other_reference(model: Frozen, scores: Scores, *, trust_remote_code: bool) -> None:
    """Refuse a reference with another token->id map, before it is loaded."""
    refuse_other_vocabulary(load_tokenizer(model.folder, trust_remote_code=trust_remote_code), scores, model.name)


def refuse_other_head(policy: Any, reference: Any, name: str) -> None:
    """A divergence over the whole vocabulary needs two heads of the same size."""
    sizes = [len(each.get_output_embeddings().weight) for each in (policy, reference) if has_head(each)]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        raise SepoError(
            f"no KL between heads of {sizes[0]:,} rows (the policy's) and {sizes[1]:,} ({name}'s)",
            hint="resize the embeddings of one model to those of the other",
        )


def logps_of_rows(
    model: Frozen, load: Callable[[], Any], rows: Sequence[ScoredPair], scores: Scores, around: Around, *, file: str
) -> list[PairLogps]:
    """Log-probs of every response token of the rows of some scores under a model, in their order.

    From the shards where the scores' reference is that very model, to the bit, in float32; else from `kept_logps`.

    Args:
        load: gives the model on this process's device; called only if something has to be computed.
    """
    in_shards = _in_shards(model, rows, scores)
    if in_shards is not None:
        around.reporter.say(f"log-probs under {model.name}: in {scores.folder}, whose reference it is")
        return in_shards

    def load_fitting() -> Any:
        loaded = load()
        refuse_unknown_ids(loaded, rows, model.name)
        return loaded

    pairs = [row.pair for row in rows]
    return kept_logps(model, load_fitting, pairs, around, file=file, title=f"log-probs under {model.name}")


def kept_logps(
    model: Frozen, load: Callable[[], Any], pairs: list[TokenPair], around: Around, *, file: str, title: str
) -> list[PairLogps]:
    """Log-probs of every response token of the pairs under a model, in their order.

    From `file` in the run's folder, where an earlier attempt left them; else computed by all processes, and kept there.
    Every process has to call it, and gets them all.

    Args:
        load: gives the model on this process's device; called only if something has to be computed.
        title: of the computation, for the user.

    Raises:
        SepoError: the file cannot be read back.
    """
    known = _known(model, pairs, around.folder, file)
    # One process that cannot read them needs the help of all.
    if any(gather_object([known is None])):
        logps = logps_of(load(), pairs, around, title)
        if around.accelerator.is_main_process:
            write_logps(around.folder, pairs, logps, model.hash, file)
        around.accelerator.wait_for_everyone()
        # Pairs of one content share a row there: a run that goes on must not find other bits than this one has.
        known = _known(model, pairs, around.folder, file)
    if known is None:
        raise SepoError(
            f"{around.folder / file} is not what was just written", hint="see whether another run writes it"
        )
    return known


def logps_of(model: Any, pairs: list[TokenPair], around: Around, title: str) -> list[PairLogps]:
    """Log-probs of every response token of the pairs; each process computes its share, and has them all."""
    with around.reporter.task(title, len(pairs), "pairs") as task:
        [logps] = response_logps(
            [find_paths(model, around.reporter)],
            pairs,
            max_tokens=around.max_tokens,
            device=around.accelerator.device,
            task=task,
            accelerator=around.accelerator,
        )
    return logps


def _in_shards(model: Frozen, rows: Sequence[ScoredPair], scores: Scores) -> list[PairLogps] | None:
    # What a scorer computed in half precision is not what training would compute.
    exact = lookup(scores.manifest, ("settings", "precision")) == "float32"
    if not exact or lookup(scores.manifest, ("inputs", "reference")) != model.hash:
        return None
    found = [row.reference for row in rows if row.reference is not None]
    return found if len(found) == len(rows) else None


def _known(model: Frozen, pairs: list[TokenPair], folder: Path, file: str) -> list[PairLogps] | None:
    known = read_logps(folder, model.hash, file)
    found = [logps for pair in pairs if known is not None and (logps := known.find(pair)) is not None]
    return found if len(found) == len(pairs) else None
