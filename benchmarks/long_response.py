"""Peak memory of a training step of one pair of two long responses, with a large vocabulary.

    python benchmarks/long_response.py --tokens 32768

A Llama of two layers with 150,000 ids, SePO's loss on a share of the tokens, layers checkpointed, float32: what grows
with the square of a response's length, or with tokens x vocabulary, would be seen at once. At 32,768 tokens a mask
alone would have 4.3 GB, and logits of a tenth of the tokens 3.9 GB.
"""

import argparse
import resource
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stages.logprobs.logps import WeightedLogps, attention_for, make_batch
from stages.logprobs.paths import find_paths
from stages.registry import OBJECTIVES
from stages.reporting import Quiet
from stages.types import Example, PairWeights, TokenPair

VOCABULARY, PROMPT = 150_000, 64


def peak() -> float:
    """Gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--ratio", type=float, default=0.1, help="of the tokens that are selected")
    options = parser.parse_args()
    tokens = options.tokens
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2 * tokens,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    rng = np.random.default_rng(0)
    pair = TokenPair(0, *(rng.integers(0, VOCABULARY, part).astype(np.int32) for part in (PROMPT, tokens, tokens)))
    weights = PairWeights(*((rng.random(tokens) < options.ratio).astype(np.float32) for _ in range(2)))
    forward = find_paths(model, Quiet())
    before, start = peak(), time.perf_counter()
    batch = make_batch([Example(pair, weights)], torch.device("cpu"), packs=forward.packs)
    with attention_for(forward, batch):
        loss = OBJECTIVES["sepo"].load()(WeightedLogps(forward)(batch), batch).loss_B.sum()
        loss.backward()
    seconds = time.perf_counter() - start
    print(f"{tokens:,} tokens: peak {peak():.2f} GB, {peak() - before:.2f} GB above the model's, {seconds:.0f} s")


if __name__ == "__main__":
    main()
