"""Which Llama shapes train on 1, 8 and 64 GPUs of 80 GB, as `sepo validate --plan` says, and what torch itself counts.

    python benchmarks/plan.py [--shape 8b|70b]

Mixed precision bf16, gradient checkpointing, AdamW, LoRA of rank 16, FSDP2 from two GPUs on, the longest pair of 2,048
tokens. Beside what the plan adds up of weights, gradients and moments stands what `fully_shard` leaves to the first
rank of a fake process group of that size, on the meta device (of weights in 4 bits, which stay whole, the plan's own
count). Nothing is downloaded, and no memory is needed.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig

from stages.compat import unsplit_modules
from stages.configs import OptimizerConfig
from stages.models.folders import load_without_weights
from stages.report.estimate import verdict
from stages.reporting import Quiet
from stages.training.budget import UNMEASURED
from stages.training.footprint import Machine, Planned, footprint, planned

SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"lora_rank": 16},
    "QLoRA": {"lora_rank": 16, "quantize": "4bit"},
}
GPUS = (1, 8, 64)
MEMORY = 80 * 10**9


def counted_by_torch(plan: Planned, processes: int) -> int:
    """Bytes of weights, gradients and moments of the first rank."""
    model: Any = copy.deepcopy(plan.model)
    pairs = zip(plan.model.parameters(), model.parameters(), strict=True)
    few = {theirs: plan.in_few_bits[id(ours)] for ours, theirs in pairs if id(ours) in plan.in_few_bits}
    if processes > 1:
        dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
        mesh = init_device_mesh("cpu", (processes,))
        kinds = unsplit_modules(model)
        for layer in [module for module in model.modules() if type(module).__name__ in kinds]:
            fully_shard(layer, mesh=mesh, ignored_params=set(few))
        fully_shard(model, mesh=mesh, ignored_params=set(few))
        dist.destroy_process_group()
    total = sum(few.values())
    for weight in model.parameters():
        if weight not in few:
            local = weight.to_local() if processes > 1 else weight
            total += local.numel() * (4 + (12 if weight.requires_grad else 0))
    return total


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=[*SHAPES])
    options = parser.parse_args()
    columns = "model|GPUs|weights|gradients|moments|torch counts of these|gathered|activations|head, casts|together"
    print(f"| {' | '.join(columns.split('|'))} | while loading | verdict |\n|" + "---|" * 12)
    for shape in [options.shape] if options.shape else SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            LlamaConfig(num_key_value_heads=8, vocab_size=128_256, **SHAPES[shape]).save_pretrained(folder)
            for kind, settings in KINDS.items():
                start = time.perf_counter()
                config = OptimizerConfig(model=folder, mixed_precision="bf16", gradient_checkpointing=True, **settings)
                with torch.device("meta"):
                    plan = planned(load_without_weights(Path(folder), trust_remote_code=False), config, Quiet())
                for gpus in GPUS:
                    machine = Machine(gpus, gpus > 1, "cuda", MEMORY)
                    found = footprint(plan, config, machine, 2048, UNMEASURED if gpus > 1 else 10**6)
                    exact = found.weights + found.gradients + found.moments
                    theirs = counted_by_torch(plan, gpus)
                    parts = (found.weights, found.gradients, found.moments)
                    rest = (
                        found.gathered,
                        found.activations or 0,
                        found.head + found.casts,
                        found.total,
                        found.loading,
                    )
                    cells = [
                        *map(gigabytes, parts),
                        f"{gigabytes(theirs)} ({exact / theirs - 1:+.2%})",
                        *map(gigabytes, rest),
                    ]
                    said = verdict(found, machine).split(", with")[0]
                    print(f"| {shape.upper()} {kind} | {gpus} | {' | '.join(cells)} | {said} |", flush=True)
                print(f"{shape} {kind}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
