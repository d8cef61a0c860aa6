"""Peak memory and time of `sepo score` by phase, against the number of pairs; memory of a long response.

    python benchmarks/memory.py --oracle runs/demo/oracle

The pairs are 4,096 of `sepo make-demo`, once, 16 and 64 times. Times are seconds of the process on the processor, which
other work on the machine does not lengthen much; nothing is cached before. The long response has 4,096 tokens and the
vocabulary 150,000; its logits alone would fill 2.5 GB. Every measurement is a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DEMO_PAIRS = 4_096
COUNTS = (DEMO_PAIRS, 16 * DEMO_PAIRS, 64 * DEMO_PAIRS)
PHASES = ("hash", "tokenise", "score", "write", "judge", "noise check", "all")
VOCABULARY, RESPONSE = 150_000, 4_096


def peak() -> float:
    """Gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Clock:
    """Seconds on the processor by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def time(self, phase: str, holder: object, name: str) -> None:
        """Count every call of a function in a phase from now on."""
        work = getattr(holder, name)

        def timed(*given: object, **named: object) -> object:
            start = time.process_time()
            try:
                return work(*given, **named)
            finally:
                self.seconds[phase] += time.process_time() - start

        setattr(holder, name, timed)


def score_pairs(oracle: str, pairs: int) -> dict[str, float]:
    from stages import make_demo, score
    from stages.configs import DemoConfig, ScoreConfig
    from stages.method.score_totals import ScoreTotals
    from stages.models.scorer import Scorer
    from stages.reporting import Quiet

    clock = Clock()
    for phase, holder, name in (
        ("hash", score, "scorer_inputs"),
        ("hash", score, "dataset_hash"),
        ("tokenise", score, "load_pairs"),
        ("score", Scorer, "score"),
        ("write", score, "write_shard"),
        ("judge", ScoreTotals, "add"),
        ("judge", score, "_gather"),
        ("judge", ScoreTotals, "drift"),
        ("noise check", score, "_noise"),
        ("all", score, "run"),
    ):
        clock.time(phase, holder, name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEPO_CACHE"] = f"{folder}/cache"
        make_demo.run(DemoConfig(output_dir=f"{folder}/demo", train_pairs=DEMO_PAIRS, test_pairs=1), Quiet())
        lines = Path(folder, "demo/train.jsonl").read_text()
        with Path(folder, "pairs.jsonl").open("w") as file:
            file.writelines(lines for _ in range(pairs // DEMO_PAIRS))
        before = peak()
        config = ScoreConfig(
            oracle_model=f"{oracle}/oracle",
            reference_model=f"{oracle}/reference",
            dataset=f"{folder}/pairs.jsonl",
            output_dir=f"{folder}/scores",
            max_tokens_per_device=16_384,
        )
        score.run(config, Quiet())
    return {"before": before, "peak": peak(), **clock.seconds}


def long_response() -> dict[str, float]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.logprobs.logps import response_logps
    from stages.logprobs.paths import find_paths
    from stages.reporting import Quiet
    from stages.types import TokenPair

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=8_192,
    )
    models = [LlamaForCausalLM(config).eval() for _ in range(2)]
    forwards = [find_paths(model, Quiet()) for model in models]
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, VOCABULARY, length).astype(np.int32) for length in (64, RESPONSE, RESPONSE)]
    before = peak()
    response_logps(forwards, [TokenPair(0, *ids)], max_tokens=4_096, device=torch.device("cpu"), task=Quiet())
    return {"before": before, "peak": peak()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--oracle", required=True)
    parser.add_argument("--pairs", type=int, nargs="*", default=COUNTS, help="multiples of 4,096")
    parser.add_argument("--work", help="of one of the processes that this one starts")
    options = parser.parse_args()
    if options.work:
        found = long_response() if options.work == "long" else score_pairs(options.oracle, int(options.work))
        print("RESULT " + json.dumps(found))
        return
    print(f"| work | peak memory, GB | above what stood before, GB | {' | '.join(PHASES)} |")
    print("|---" * (3 + len(PHASES)) + "|")
    for work in (*map(str, options.pairs), "long"):
        command = [sys.executable, str(Path(__file__)), "--oracle", options.oracle, "--work", work]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        found = json.loads(line.removeprefix("RESULT "))
        name = "a response of 4,096 tokens, vocabulary 150,000" if work == "long" else f"{int(work):,} pairs"
        seconds = " | ".join(f"{found[phase]:.1f} s" if phase in found else "" for phase in PHASES)
        print(f"| {name} | {found['peak']:.2f} | {found['peak'] - found['before']:.2f} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
