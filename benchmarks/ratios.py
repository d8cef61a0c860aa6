"""What selection costs in seconds: SFT + DPO of an oracle + scoring + SePO beside DPO and SimPO, by the oracle's size.

    python -m benchmarks.ratios --model M --dataset pairs.jsonl.gz --pairs 12

The policy has the shape of M, the oracles are narrower and shallower Llamas with M's tokenizer; all weights are random,
for speed does not depend on them. Everything on the same pairs, one epoch, float32, in turns; the time is that of the
steps behind the first one (`benchmarks.training`). `benchmarks/cost.py` counts the same in operations.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.training import ours, pairs_of
from stages.logprobs.logps import response_logps
from stages.logprobs.paths import find_paths
from stages.models.folders import load_model
from stages.reporting import Quiet


class Size(NamedTuple):
    """An oracle's shape; its heads have 64 numbers each."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    groups: int


ORACLES = (Size(576, 30, 1536, 9, 3), Size(384, 27, 1024, 6, 2), Size(256, 24, 704, 4, 2), Size(192, 16, 512, 3, 1))
"""of a policy with SmolLM2-135M's 106M parameters in the layers: as many, and 1/2.5, 1/6 and 1/17 of them"""


def make(size: Size, like: str, folder: Path) -> tuple[Path, int]:
    """A folder with a random model of that shape, and how many parameters its layers have."""
    config = LlamaConfig(
        **{
            **AutoConfig.from_pretrained(like).to_dict(),
            "hidden_size": size.hidden,
            "num_hidden_layers": size.layers,
            "intermediate_size": size.intermediate,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.groups,
            "head_dim": 64,
        }
    )
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder, sum(weight.numel() for weight in model.model.layers.parameters())


def scoring(options: argparse.Namespace) -> float:
    """Seconds a pair of one reading; the reference's log-probs are known from its training."""
    forward = find_paths(load_model(Path(options.model), trust_remote_code=False), Quiet())
    start = time.perf_counter()
    response_logps([forward], options.data, max_tokens=options.max_tokens, device=torch.device("cpu"), task=Quiet())
    return (time.perf_counter() - start) / len(options.data)


def seconds(options: argparse.Namespace, model: Path, who: str) -> float:
    part = argparse.Namespace(**{**vars(options), "model": str(model), "who": who})
    return scoring(part) if who == "score" else ours(part)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--step", type=int, default=4, help="pairs a step")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.set_defaults(mixed_precision="no")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    options.data = pairs_of(options)[2]
    with tempfile.TemporaryDirectory() as folder:
        made = [make(size, options.model, Path(folder) / str(number)) for number, size in enumerate(ORACLES)]
        policy, policy_size = made[0]
        jobs = [(policy, who) for who in ("dpo", "simpo", "sepo")]
        jobs += [(oracle, who) for oracle, _ in made for who in ("sft", "dpo", "score")]
        found: dict[tuple[Path, str], list[float]] = {job: [] for job in jobs}
        for _ in range(options.rounds):
            for (model, who), times in found.items():
                times.append(seconds(options, model, who))
                print(model.name, who, f"{times[-1]:.3f}", flush=True)
    time_of = {job: statistics.median(times) for job, times in found.items()}
    dpo, simpo, sepo = (time_of[policy, who] for who in ("dpo", "simpo", "sepo"))
    print(f"policy, s a pair: DPO {dpo:.2f}, SimPO {simpo:.2f}, SePO {sepo:.2f}")
    print("| oracle | SFT + DPO + scoring, s a pair | pipeline / DPO | pipeline / SimPO | with 4 policies an oracle |")
    print("|---|---|---|---|---|")
    for oracle, size in made:
        parts = [time_of[oracle, who] for who in ("sft", "dpo", "score")]
        whole, shared = sepo + sum(parts), sepo + sum(parts) / 4
        print(
            f"| {size / 1e6:.1f}M (1:{policy_size / size:.1f}) | {' + '.join(f'{part:.2f}' for part in parts)} |"
            f" {whole / dpo:.2f} | {whole / simpo:.2f} | {shared / dpo:.2f} / {shared / simpo:.2f} |"
        )


if __name__ == "__main__":
    main()
