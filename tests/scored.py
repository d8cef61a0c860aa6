"""Folders of scores of any texts, scored by chance."""

import json

import numpy as np

from stages.report.vocabulary import Vocabulary
from stages.store.place import place_of
from stages.store.shards import shard_name, write_shard
from stages.types import PairLogps, ScoredPair
from tests.conftest import token_pair

ENGLISH = ("What is it?", "It is 42, of course.\n\nI think.", "I do not know, sorry.")
FOREIGN = ("日本の首都は?", "東京です。🙂👩‍👩‍👧 café", "مرحبا بالعالم، كيف الحال؟")
HOSTILE = (
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;owned\x07[bold]x[/bold]\u202eevil\u2028",
    "[link=file:///etc]|y|`z`\r\x9b31m",
)


def encoded(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def scored_pair(pair_id, prompt, chosen, rejected, *, reference=True, seed=0):
    rng = np.random.default_rng([seed, pair_id])
    scores, logps = ([rng.normal(size=len(ids)).astype(np.float32) for ids in (chosen, rejected)] for _ in range(2))
    pair = token_pair(pair_id, prompt, chosen, rejected)
    return ScoredPair(pair, PairLogps(*scores), PairLogps(*(-np.abs(side) for side in logps)) if reference else None)


def score_folder(folder, rows, tokenizer=None, *, noise=None, shards=1):
    """A finished folder of these rows, beside the tokenizer that its manifest names, if there is one."""
    folder.mkdir(parents=True)
    vocabulary = "sha256:none"
    manifest = {"format": 1, "stage": "score", "fingerprint": "sha256:f", "counts": {"kept": len(rows)}}
    if tokenizer is not None:
        named = folder.parent / "tokenizer"
        named.mkdir(exist_ok=True)
        tokenizer.save(str(named / "tokenizer.json"))
        vocabulary = Vocabulary(tokenizer).hash
        manifest["input_names"] = {"tokenizer": str(named)}
    manifest |= {"tokenizer": {"vocabulary": vocabulary}, "results": {} if noise is None else {"noise": {"p99": noise}}}
    manifest["files"] = [shard_name(index) for index in range(shards)]
    for index, name in enumerate(manifest["files"]):
        write_shard(
            place_of(folder),
            name,
            rows[index * len(rows) // shards : (index + 1) * len(rows) // shards],
            "sha256:f",
            vocabulary,
        )
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def text_folder(folder, tokenizer, texts, **options):
    """The same of triples of texts; every response ends with </s>, which the tokenizer has to have."""
    end = [tokenizer.token_to_id("</s>")]
    rows = [scored_pair(number, encoded(tokenizer, asked), encoded(tokenizer, good) + end, encoded(tokenizer, bad) + end)
            for number, (asked, good, bad) in enumerate(texts)]  # fmt: skip
    return score_folder(folder, rows, tokenizer, **options)
