"""Training and scoring on a GPU: tokens a second and the share of the card's peak, on models of random weights.

    python benchmarks/gpu.py --shape 1b --mixed-precision bf16
    python benchmarks/gpu.py --shape 8b --mixed-precision bf16 --lora-rank 16 --pairs-a-step 32
    python benchmarks/gpu.py --shape 8b --score bfloat16

Pairs are random ids: prompts of 64 to 256 tokens, answers of about 256 (lognormal). Prints the median step behind the
first two, in which memory is claimed and kernels are chosen. Counted are the products of the layers' matrices with
every token of the packed rows, and of the head's with the rows that are needed: 2 operations a weight and token in the
forward pass, twice as many in the backward pass, half of that for weights that are frozen. Attention is not counted.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stages.configs import OptimizerConfig
from stages.devices.precision import products, weights_of
from stages.devices.processes import join_processes
from stages.logprobs.batches import whole
from stages.logprobs.logps import response_logps
from stages.logprobs.packing import unique_tokens
from stages.logprobs.paths import find_paths
from stages.method.selection import select_by_keys
from stages.registry import OBJECTIVES
from stages.reporting import Quiet
from stages.training.loop import fit
from stages.training.lora import make_trainee
from stages.types import Example, PairLogps, PairWeights, TokenPair

SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 512),
    "135m": (576, 1536, 30, 9, 3, 49_152),
    "1b": (2048, 8192, 16, 32, 8, 128_256),
    "8b": (4096, 14_336, 32, 32, 8, 128_256),
}
"""hidden size, that of the MLP, layers, heads, heads of keys, vocabulary: SmolLM2-135M's, Llama 3.2's and 3.1's"""
PEAK = 989e12
"""operations a second of an H100 or H200 (SXM) in bfloat16, dense, as published"""


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    hidden, inner, layers, heads, key_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape != "8b",
        attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def random_pairs(count: int, vocabulary: int) -> list[TokenPair]:
    rng = np.random.default_rng(0)

    def ids(length: float) -> Any:
        return rng.integers(0, vocabulary, int(np.clip(length, 16, 1024))).astype(np.int32)

    def answer() -> Any:
        return ids(rng.lognormal(5.4, 0.6))

    return [TokenPair(number, ids(int(rng.integers(64, 257))), answer(), answer()) for number in range(count)]


def keys_only(pair: TokenPair, rng: Any) -> Example:
    """Which tokens are selected does not matter to the cost."""
    keys = PairLogps(*(rng.standard_normal(len(part)).astype(np.float32) for part in pair.parts[1:]))
    return Example(pair, PairWeights(*(mask.astype(np.float32) for mask in select_by_keys(keys, 0.3, 0.3))))


def operations(model: Any, examples: list[Example], *, every_row: bool, passes: float, head_passes: float) -> float:
    """Of the matrices alone; passes: 1 forward, 3 with the backward pass, 2 where the weights are frozen."""
    head: int = model.get_output_embeddings().weight.numel()
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)) - head
    tokens = sum(map(unique_tokens, examples))
    rows = sum(
        len(weights) if every_row else int((weights > 0).sum()) for example in examples for weights in example.weights
    )
    return 2.0 * (passes * matrices * tokens + head_passes * head * rows)


class Aloud(Quiet):
    """Says what the paths and the token budget are."""

    def say(self, text: str) -> None:
        print(text, flush=True)


class Steps:
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def tick(self, steps: int = 0) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return list(np.diff(self.ends)[1:])


def trained(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    model = random_model(options.shape, torch.float32, device)
    rng, size = np.random.default_rng(0), options.pairs_a_step
    pairs = random_pairs(size * options.steps, SHAPES[options.shape][-1])
    examples = [keys_only(pair, rng) for pair in pairs] if options.objective == "sepo" else list(map(whole, pairs))
    passes = 3.0
    config = OptimizerConfig(
        batch_size=size,
        lora_rank=options.lora_rank,
        learning_rate=1e-6,
        save_steps=0,
        mixed_precision=options.mixed_precision,
        max_tokens_per_device=options.max_tokens,
        gradient_checkpointing=options.gradient_checkpointing,
        max_length=4096,
    )
    if options.lora_rank:
        passes = 2.0
        model = make_trainee(model, config, "random", Quiet(), merged=False).model
    steps = Steps()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        objective = OBJECTIVES["sepo"].load()
        fit(
            model,
            examples,
            objective,
            config,
            phase="sepo",
            folder=Path(folder),
            reporter=Aloud(),
            after_step=steps.tick,
        )
    a_step = operations(model, examples, every_row=False, passes=passes, head_passes=passes) / options.steps
    tokens = sum(map(unique_tokens, examples)) / options.steps
    return rates(steps.seconds(), tokens, a_step)


def scored(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    model = random_model(options.shape, weights_of(options.score), device)
    pairs = random_pairs(options.pairs_a_step, SHAPES[options.shape][-1])
    steps = Steps()
    with products(options.score):
        forward = find_paths(model.eval(), Aloud())
        for _ in range(options.steps):
            steps.tick()
            response_logps([forward], pairs, max_tokens=options.max_tokens or 16_384, device=device, task=Quiet())
        steps.tick()
    examples = list(map(whole, pairs))
    a_round = operations(model, examples, every_row=True, passes=1.0, head_passes=1.0)
    return rates(steps.seconds(), sum(map(unique_tokens, examples)), a_round)


def rates(seconds: list[float], tokens: float, counted: float) -> dict[str, Any]:
    a_step = statistics.median(seconds)
    return {
        "seconds": [round(each, 3) for each in seconds],
        "tokens a step": round(tokens),
        "tokens a second": round(tokens / a_step),
        "TFLOP/s": round(counted / a_step / 1e12, 1),
        "share of the peak": round(counted / a_step / PEAK, 3),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--score", choices=("float32", "tf32", "bfloat16"), help="score, in this precision; else train")
    parser.add_argument("--objective", choices=("sepo", "simpo"), default="sepo", help="key tokens, or all of them")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--pairs-a-step", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--max-tokens", type=int)
    return parser.parse_args()


def main() -> None:
    options = parse()
    device = join_processes(options.mixed_precision).device
    result = scored(options, device) if options.score else trained(options, device)
    if device.type == "cuda":
        result |= {
            "card": torch.cuda.get_device_name(),
            "peak memory, GB": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        }
    versions = {name: version(name) for name in ("torch", "transformers")}
    print(json.dumps({"options": " ".join(sys.argv[1:]), **result, **versions}))


if __name__ == "__main__":
    main()
