"""A scorer of your own: any function from token ids to one number a token, written as `sepo train-policy` reads it.

    python examples/own_scorer.py MODEL_FOLDER pairs.jsonl OUT

Here a token's score is how rare it is in the responses; put your reward model in the place of `score`. The format is
described in docs/scores-format.md, and `sepo check OUT` says whether a folder keeps to it.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from stages.data.layouts import read_pairs
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import vocabulary_hash
from stages.types import Pair, TokenPair


def main(model: str, dataset: str, out: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [row for row in read_pairs(dataset) if isinstance(row, Pair)]
    pairs = [pair for pair in Encoder(tokenizer).encode_all(rows) if isinstance(pair, TokenPair)]
    counts = Counter(int(id_) for pair in pairs for id_ in (*pair.chosen_ids, *pair.rejected_ids))

    def score(ids):
        return [1.0 / counts[int(id_)] for id_ in ids]

    columns = {"pair_id": [pair.pair_id for pair in pairs]}
    columns |= {
        name: [getattr(pair, name).tolist() for pair in pairs] for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    }
    columns |= {
        f"{side}_scores": [score(getattr(pair, f"{side}_ids")) for pair in pairs] for side in ("chosen", "rejected")
    }
    types = [pa.int64(), *[pa.list_(pa.int32())] * 3, *[pa.list_(pa.float32())] * 2]
    about = {"sepo.format": "1", "sepo.fingerprint": "rarity", "sepo.tokenizer": vocabulary_hash(tokenizer)}
    schema = pa.schema([*zip(columns, types, strict=True)], metadata=about)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pydict(columns, schema=schema), folder / "scores-00000.parquet")
    manifest = {"format": 1, "stage": "score", "fingerprint": "rarity", "files": ["scores-00000.parquet"]}
    manifest |= {
        "counts": {"kept": len(pairs)},
        "tokenizer": {"vocabulary": about["sepo.tokenizer"], "size": len(tokenizer)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    main(*sys.argv[1:])
