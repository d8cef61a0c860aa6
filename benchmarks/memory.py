"""Peak memory of `sepo score`: against the number of pairs, and against a long response with a large vocabulary.

    python benchmarks/memory.py --oracle runs/demo/oracle

The pairs are those of `sepo make-demo`, 1,000, 10,000 and 100,000 of them. The long response has 4,096 tokens and the
vocabulary 150,000; its logits alone would fill 2.5 GB. Every measurement is a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

COUNTS = (1_000, 10_000, 100_000)
VOCABULARY, RESPONSE = 150_000, 4_096


def peak() -> float:
    """Gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def score_pairs(oracle: str, pairs: int) -> dict[str, float]:
    from stages import make_demo, score
    from stages.configs import DemoConfig, ScoreConfig
    from stages.reporting import Quiet

    with tempfile.TemporaryDirectory() as folder:
        make_demo.run(DemoConfig(output_dir=f"{folder}/demo", train_pairs=pairs, test_pairs=1), Quiet())
        before = peak()
        config = ScoreConfig(
            oracle=oracle,
            dataset=f"{folder}/demo/train.jsonl",
            output_dir=f"{folder}/scores",
            max_tokens_per_device=16_384,
            noise_check=0.0,
        )
        score.run(config, Quiet())
    return {"before": before, "peak": peak()}


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
    parser.add_argument("--work", choices=["long", *map(str, COUNTS)])
    options = parser.parse_args()
    if options.work:
        found = long_response() if options.work == "long" else score_pairs(options.oracle, int(options.work))
        print("RESULT " + json.dumps(found))
        return
    print("| work | peak memory, GB | above what stood before, GB |\n|---|---|---|")
    for work in (*map(str, COUNTS), "long"):
        command = [sys.executable, str(Path(__file__)), "--oracle", options.oracle, "--work", work]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        found = json.loads(line.removeprefix("RESULT "))
        name = "a response of 4,096 tokens, vocabulary 150,000" if work == "long" else f"{int(work):,} pairs"
        print(f"| {name} | {found['peak']:.2f} | {found['peak'] - found['before']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
