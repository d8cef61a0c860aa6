"""How fast a data set becomes tokens, in how much memory, and what a second stage saves.

    python benchmarks/tokenise.py MODEL [--rows 1000000] [--folder /tmp/sepo-benchmark]

Writes preference pairs of English prose (Python's own documentation, cut at random places; seeded) to a Parquet file of
`--rows` rows, then reads it as a stage does, twice, each time in a process of its own: first with an empty cache, then
with what the first one left there. MODEL is a folder with a tokenizer.
"""

import argparse
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_AT_ONCE = 10_000
SCHEMA = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
# Words of prompt and answers, which make some 40, 60 and 60 tokens with a chat template.
MEAN_WORDS = (20, 40, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/sepo-benchmark"))
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = options.folder / f"pairs-{options.rows}.parquet"
    cache = options.folder / "cache"
    if options.read:
        return read(options.model, data)
    options.folder.mkdir(parents=True, exist_ok=True)
    if not data.exists():
        write_pairs(data, options.rows)
    shutil.rmtree(cache, ignore_errors=True)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "transformers", "pyarrow", "numpy"))
    print(f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}, {libraries}")
    print(f"{data}: {options.rows:,} rows, {data.stat().st_size / 1e6:,.0f} MB")
    for title in ("first", "second"):
        environment = {**os.environ, "SEPO_CACHE": str(cache)}
        process = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--read"], env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(1)
        seconds, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000
        print(f"{title} process: {seconds:,.0f} s of CPU time, peak memory {peak:,.0f} MB", flush=True)
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    print(f"cache: {size / 1e6:,.0f} MB")


def read(model: str, data: Path) -> None:
    from transformers import AutoTokenizer

    from sepo_cli.console import make_reporter
    from stages.tokens.dataset import LengthLimit, load_pairs
    from stages.tokens.encode import Encoder

    encoder = Encoder(AutoTokenizer.from_pretrained(model))
    start = time.perf_counter()
    pairs, _ = load_pairs(str(data), encoder, LengthLimit(2048), columns={}, reporter=make_reporter())
    seconds = time.perf_counter() - start
    print(f"load_pairs: {seconds:,.2f} s, {len(pairs) / seconds:,.0f} rows/s", flush=True)


def write_pairs(path: Path, rows: int) -> None:
    words = " ".join(topics.values()).split()
    draw = random.Random(0)

    def text(mean: int) -> str:
        length = max(3, round(draw.gauss(mean, mean / 3)))
        start = draw.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            texts = [[text(mean) for mean in MEAN_WORDS] for _ in range(min(ROWS_AT_ONCE, rows - start))]
            writer.write_table(pa.table(dict(zip(SCHEMA.names, zip(*texts, strict=True), strict=True)), SCHEMA))


if __name__ == "__main__":
    main()
