"""Time and memory of `sepo inspect` on made-up scores: `python -m benchmarks.inspect_scores [--pairs 10000 100000]`."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.store.parquet import parquet_bytes
from stages.store.rows import SCHEMA
from stages.store.shards import shard_name
from stages.types import SIDES

SHARD = 4096
VOCABULARY = 128_000
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, done.returncode)
"""


def make_scores(folder: Path, pairs: int, tokens: int, seed: int = 0) -> None:
    """A finished folder of scores whose responses have half to one and a half times so many tokens."""
    rng = np.random.default_rng(seed)
    names = [shard_name(index) for index in range(-(-pairs // SHARD))]
    said = {"sepo.format": "1", "sepo.fingerprint": "made up", "sepo.tokenizer": "none"}
    for index, name in enumerate(names):
        rows = min(SHARD, pairs - index * SHARD)
        columns = {"pair_id": pa.array(np.arange(rows) + index * SHARD)}
        columns["prompt_ids"] = _lists(rng.integers(5, 50, rows), lambda n: rng.integers(0, VOCABULARY, n, np.int32))
        for side in SIDES:
            lengths = rng.integers(tokens // 2, tokens * 3 // 2, rows)
            columns[f"{side}_ids"] = _lists(lengths, lambda n: (rng.zipf(1.2, n) % VOCABULARY).astype(np.int32))
            columns[f"{side}_scores"] = _lists(lengths, lambda n: rng.standard_t(3, n).astype(np.float32) / 10)
            columns[f"{side}_reference_logps"] = _lists(lengths, lambda n: -rng.exponential(1.0, n).astype(np.float32))
        table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA.with_metadata(said))
        (folder / name).write_bytes(parquet_bytes(table))
    manifest = {"format": 1, "stage": "score", "fingerprint": "made up", "files": names, "counts": {"kept": pairs}}
    manifest |= {"tokenizer": {"vocabulary": "none", "size": VOCABULARY}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _lists(lengths: NDArray[np.int64], values: Callable[[int], NDArray[Any]]) -> pa.ListArray:
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values(int(offsets[-1]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--tokens", type=int, default=200, help="mean of a response")
    parser.add_argument("--options", nargs="*", default=[], help="of sepo inspect, without their dashes")
    arguments = parser.parse_args()
    for pairs in arguments.pairs:
        with tempfile.TemporaryDirectory() as folder:
            make_scores(Path(folder), pairs, arguments.tokens)
            options = [f"--{option}" for option in arguments.options]
            command = [sys.executable, "-m", "sepo_cli", "inspect", folder, "--quiet", *options]
            started = time.monotonic()
            found = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True)
            seconds, (megabytes, code) = time.monotonic() - started, found.stdout.split()
            print(f"{pairs:,} pairs: {seconds:.1f} s, {int(megabytes):,} MB at most, exit code {code}", flush=True)


if __name__ == "__main__":
    main()
