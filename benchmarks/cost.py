"""What selection costs and saves in floating-point operations: SFT + DPO of an oracle + scoring + SePO, against DPO and
SimPO on the policy.

    python benchmarks/cost.py --model M --dataset pairs.jsonl.gz

The lengths are those of real pairs; the models are Llama-shaped, of the policy's depth and width or narrower. A
product of matrices costs 2 operations a weight and token forward and 4 backward; the head runs on the rows that an
objective needs, and its logits are computed twice in training. Attention's own products are left out (they are small at
these lengths). The prompt counts once for its two answers. One epoch of everything.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from stages.data.layouts import read_pairs
from stages.models.folders import load_tokenizer
from stages.tokens.encode import Encoder
from stages.types import Pair, TokenPair, longest

SHARE = 0.3
VOCABULARY = 32_000


class Model(NamedTuple):
    """A policy or an oracle: weights of its layers, and of its head."""

    name: str
    layers: float
    head: float


POLICY = Model("6.9B", 6.6e9, VOCABULARY * 4096)
ORACLES = (
    Model("6.9B (1:1)", 6.6e9, VOCABULARY * 4096),
    Model("2.8B (1:2.5)", 2.65e9, VOCABULARY * 2560),
    Model("1.1B (1:6)", 0.97e9, VOCABULARY * 2048),
    Model("410M (1:17)", 0.35e9, VOCABULARY * 1024),
)


class Lengths(NamedTuple):
    """Mean tokens of a pair."""

    prompt: float
    chosen: float
    rejected: float

    @property
    def unique(self) -> float:
        return self.prompt + self.chosen + self.rejected

    @property
    def responses(self) -> float:
        return self.chosen + self.rejected


def forward(model: Model, tokens: float, rows: float) -> float:
    return 2 * (model.layers * tokens + model.head * rows)


def training(model: Model, tokens: float, rows: float) -> float:
    return 6 * model.layers * tokens + 8 * model.head * rows


def oracle_cost(oracle: Model, of: Lengths) -> tuple[float, float, float]:
    """SFT, DPO with its reference's log-probs, and scoring, whose reference is known: operations a pair."""
    sft = training(oracle, of.prompt + of.chosen, of.chosen)
    dpo = forward(oracle, of.unique, of.responses) + training(oracle, of.unique, of.responses)
    return sft, dpo, forward(oracle, of.unique, of.responses)


def mean_lengths(model: str, dataset: str, max_length: int) -> Lengths:
    encoder = Encoder(load_tokenizer(Path(model), trust_remote_code=False))
    encoded = (encoder.encode(pair) for pair in read_pairs(dataset) if isinstance(pair, Pair))
    pairs = [pair for pair in encoded if isinstance(pair, TokenPair) and longest(pair) <= max_length]
    return Lengths(*(sum(map(len, ids)) / len(pairs) for ids in zip(*(pair.parts for pair in pairs), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="whose tokenizer measures the lengths")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--max-length", type=int, default=2048)
    options = parser.parse_args()
    of = mean_lengths(options.model, options.dataset, options.max_length)
    sepo = training(POLICY, of.unique, SHARE * of.responses)
    simpo = training(POLICY, of.unique, of.responses)
    dpo = simpo + forward(POLICY, of.unique, of.responses)
    print(
        f"{options.dataset}: prompt {of.prompt:.0f}, chosen {of.chosen:.0f}, rejected {of.rejected:.0f} tokens a pair"
    )
    print(
        f"policy {POLICY.name}, TFLOP a pair: SePO {sepo / 1e12:.1f}, SimPO {simpo / 1e12:.1f}, DPO {dpo / 1e12:.1f}\n"
    )
    print(
        "| oracle | SFT + DPO + scoring, TFLOP a pair | pipeline / DPO | pipeline / SimPO | with 4 policies an oracle |"
    )
    print("|---|---|---|---|---|")
    for oracle in ORACLES:
        parts = oracle_cost(oracle, of)
        whole, shared = sepo + sum(parts), sepo + sum(parts) / 4
        print(
            f"| {oracle.name} | {' + '.join(f'{part / 1e12:.1f}' for part in parts)} | {whole / dpo:.2f} |"
            f" {whole / simpo:.2f} | {shared / dpo:.2f} / {shared / simpo:.2f} |"
        )


if __name__ == "__main__":
    main()
