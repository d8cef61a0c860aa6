"""Scores that a page is tested on: real token ids with planted ties, and texts that mean harm."""

import json

import numpy as np

from stages import report_page
from stages.configs import ReportConfig
from stages.reporting import Quiet
from stages.store.place import place_of
from stages.store.shards import write_shard
from stages.tokens.fingerprint import vocabulary_hash
from stages.types import PairLogps, ScoredPair
from tests.conftest import token_pair

HOSTILE = "</script><script>alert(1)</script><b>\u2028\u202eevil\x00\x1b[31m &amp; <!--"
TEXTS = ["the quick fox", "it is Paris, of course.\n\nSorry!", "日本語 👍 مرحبا", HOSTILE]
NOISE = 0.06


def write_scores(folder, tokenizer, tokenizer_folder, pairs=12, seed=0, **manifest):
    """Scores on a grid of eighths, so that most cuts go through ties; a few are like none other."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(pairs):
        texts = [TEXTS[(number + step) % len(TEXTS)] for step in range(3)]
        prompt, chosen, rejected = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        # 0.28 of 25 is a little more than 7 in floating point.
        chosen, rejected = (chosen * 9)[: (10, 20, 25, 40)[number % 4]], (rejected * 9)[: 1 + number % 7]
        sides = [np.round(rng.normal(0.3, 0.4, len(ids)) * 8).astype(np.float32) / 8 for ids in (chosen, rejected)]
        sides[0][::5] += rng.normal(0, 0.1, len(sides[0][::5])).astype(np.float32)
        # As a float32 it is less than as a number with more digits.
        sides[0][3::7] = 0.7
        logps = PairLogps(*(-np.abs(side) - 1 for side in sides))
        rows.append(ScoredPair(token_pair(number, prompt, chosen, rejected), PairLogps(*sides), logps))
    folder.mkdir(parents=True)
    write_shard(place_of(folder), "scores-00000.parquet", rows, "mine", vocabulary_hash(tokenizer))
    found = {"format": 1, "stage": "score", "fingerprint": "mine", "files": ["scores-00000.parquet"]}
    found |= {"counts": {"kept": pairs}, "tokenizer": {"vocabulary": vocabulary_hash(tokenizer)}}
    found |= {"input_names": {"tokenizer": str(tokenizer_folder)}, "results": {"noise": {"p99": NOISE}}}
    (folder / "manifest.json").write_text(json.dumps(found | manifest))
    return rows


def write_page(output, *folders, reporter=None, **options):
    config = ReportConfig(folders=tuple(map(str, folders)), output=str(output), **options)
    return report_page.run(config, reporter or Quiet())
