"""Pairs that judge a model: a data set in the model's own ids, and prompts drawn from it."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.configs import EvaluateConfig, column_names
from stages.data.template_arguments import given_arguments
from stages.demo.language import TRUTH
from stages.errors import SepoError
from stages.reporting import Reporter, counted
from stages.store.files import hash_bytes, hash_file
from stages.store.manifest import FINISHED, read_manifest, refuse_altered
from stages.store.scores import Scores, open_scores
from stages.tokens.dataset import Counts, LengthLimit, load_pairs, refuse_dropped, shorten
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import tokenizer_hash, vocabulary_hash
from stages.types import Dropped, Ids, Tokenizer, TokenPair, content_hash, longest


class HeldOut(NamedTuple):
    """A data set as one tokenizer has it."""

    tokenizer: Tokenizer
    encoder: Encoder
    pairs: list[TokenPair]
    counts: Counts

    @property
    def tokenizer_hash(self) -> str:
        return tokenizer_hash(self.tokenizer)


class Prompt(NamedTuple):
    """A prompt to be answered."""

    key: int
    """the same for the same prompt in the ids of another tokenizer; unlike that of its second answer"""
    pair_id: int
    """the first pair of this prompt"""
    ids: Ids


def scored_pairs(dataset: str) -> Scores | None:
    """The scores in a folder of `sepo score`, whose pairs can be a data set too; None for any other data set."""
    folder = Path(dataset).expanduser()
    return open_scores(folder) if (folder / FINISHED).exists() else None


def truth_hash(demo: Path) -> str:
    """Hash of the planted rewards of a folder of `sepo make-demo`."""
    read_manifest(demo, "make-demo", "run `sepo make-demo` first")
    refuse_altered(demo)
    return hash_file(demo / TRUTH)


def hashes_of(pairs: Sequence[TokenPair]) -> NDArray[np.uint64]:
    return np.array([content_hash(pair) for pair in pairs], np.uint64)


def content_of(pairs: list[TokenPair]) -> str:
    """Hash of the ids of some pairs in their order, whatever their numbers."""
    return hash_bytes([hashes_of(pairs).tobytes()])


def read_held_out(name: str, tokenizer: Tokenizer, config: EvaluateConfig, reporter: Reporter) -> HeldOut:
    """The data set (files, a hub name, or a folder of `sepo score`) in the ids of the tokenizer of a model."""
    dataset = str(config.dataset)
    encoder = Encoder(tokenizer, given_arguments(config.chat_template_kwargs))
    scores = scored_pairs(dataset)
    limit = LengthLimit(config.max_length, config.overlong)
    if scores is None:
        found, counts = load_pairs(dataset, encoder, limit, columns=column_names(config.columns), reporter=reporter)
        pairs = list(found)
    elif scores.manifest["tokenizer"]["vocabulary"] != vocabulary_hash(tokenizer):
        raise SepoError(
            f"the pairs in {dataset} are in the ids of another tokenizer than that of {name}",
            hint="give the data set that they were scored from",
        )
    elif (config.columns or config.chat_template_kwargs) and not config.training_data:
        raise SepoError(
            f"{dataset} holds scored pairs, which have no columns to name and no template to fill",
            hint="leave out --columns and --chat-template-kwargs",
        )
    else:
        pairs, counts = _within(scores, limit, reporter)
    if config.strict:
        refuse_dropped(counts, dataset)
    if len({pair.prompt_ids.tobytes() for pair in pairs}) < 2:
        words = "1 pair is" if len(pairs) == 1 else f"{len(pairs):,} pairs of one prompt are"
        raise SepoError(
            f"{dataset}: {words} too few: an interval needs at least 2 prompts ({counts})",
            hint="give more held-out pairs",
        )
    return HeldOut(tokenizer, encoder, pairs, counts)


def prompts_of(pairs: list[TokenPair]) -> NDArray[np.int64]:
    """The number of the first pair that has the same prompt, for each pair, (N,)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(pair.prompt_ids.tobytes(), pair.pair_id) for pair in pairs], np.int64)


def prompts_for(
    name: str, pairs: list[TokenPair], positions: int | None, config: EvaluateConfig, reporter: Reporter
) -> list[Prompt]:
    """The prompts to be answered by a model, which leave room for an answer in its positions."""
    if not config.samples:
        return []
    prompts: dict[bytes, TokenPair] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt_ids.tobytes(), pair)
    room = math.inf if positions is None else positions - config.max_new_tokens
    fitting = [pair for pair in prompts.values() if len(pair.prompt_ids) <= room]
    if len(fitting) < 2:
        raise SepoError(
            f"{name}: {len(fitting) or 'no'} prompt leaves room for {config.max_new_tokens:,} tokens in"
            f" {positions:,} positions (an interval needs 2)",
            hint="lower --max-new-tokens, or leave sampling out with --samples 0",
        )
    if len(fitting) < len(prompts):
        left = len(prompts) - len(fitting)
        reporter.say(f"{name}: not sampled from: {counted(left, 'prompt')} without room for an answer")
    return draw_prompts(fitting, config.samples, config.seed)


def draw_prompts(pairs: list[TokenPair], count: int, seed: int) -> list[Prompt]:
    """The prompts of pairs in a random order, each once; from the first again where there are fewer than `count`.

    Whether a prompt comes before another depends on the seed and their numbers alone: models whose tokenizers drop
    other pairs are asked the same, wherever both have it.
    """
    order = sorted(pairs, key=lambda pair: random.Random(f"{seed}/{pair.pair_id}").random())
    drawn = [divmod(number, len(order)) for number in range(count)]
    return [Prompt((turn << 40) + order[at].pair_id, order[at].pair_id, order[at].prompt_ids) for turn, at in drawn]


def _within(scores: Scores, limit: LengthLimit, reporter: Reporter) -> tuple[list[TokenPair], Counts]:
    """The pairs of a folder of scores that a limit keeps."""
    kept: list[TokenPair] = []
    counts = Counts()
    for row in scores.rows():
        counts.read += 1
        fits = longest(row.pair) <= limit.max_length
        pair = row.pair if fits else shorten(row.pair, limit, str(scores.folder))
        if isinstance(pair, Dropped):
            counts.drop(pair.reason, pair.pair_id)
        else:
            counts.truncated += not fits
            kept.append(pair)
    counts.kept = len(kept)
    for side in ("prompt", "chosen", "rejected"):
        counts.tokens[side] = sum(len(getattr(pair, f"{side}_ids")) for pair in kept)
    reporter.say(f"{scores.folder}: {counts}")
    return kept, counts
