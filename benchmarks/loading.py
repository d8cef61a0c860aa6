"""Peak memory of each process that trains a model by FSDP2: loading, reading log-probs, two steps and saving.

    python benchmarks/loading.py

makes a Llama with random weights (160 million of them, in bfloat16, two files), and says for 2 and 4 processes on the
CPU, with gloo, how much memory each took at most: its own, and mapped from files, in MB. `--whole` loads as one process
would. Beside it stands what `sepo validate --plan` says of such a process. How long each part took goes to stderr.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SIZES = {
    "vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 8,
}  # fmt: skip


def make(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16()
    model.save_pretrained(folder, max_shard_size="200MB")
    print(f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.0f} million weights")


def megabytes() -> tuple[float, float]:
    """Of this process now: its own memory, and what is mapped from files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


class Peak(threading.Thread):
    """The most that this process has had since it was last asked."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.most = megabytes(), (0.0, 0.0)
        self.since = time.perf_counter()
        self.start()

    def run(self) -> None:
        while True:
            now = megabytes()
            self.most = max(self.most, now, key=sum)
            time.sleep(0.005)

    def said(self) -> str:
        (own, mapped), (before, mapped_before) = self.most, self.before
        self.most, seconds, self.since = (0.0, 0.0), time.perf_counter() - self.since, time.perf_counter()
        print(f"{seconds:.0f} s", file=sys.stderr, flush=True)
        return f"{own - before:,.0f} + {mapped - mapped_before:,.0f}"


def work(folder: Path, *, whole: bool, trains: bool) -> None:
    import numpy as np
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    from stages.configs import OptimizerConfig
    from stages.devices.engines import gather_weights
    from stages.devices.processes import join_processes
    from stages.logprobs.batches import whole as all_tokens
    from stages.models.folders import load_model, load_waiting
    from stages.models.references import RunContext, logps_of
    from stages.registry import OBJECTIVES
    from stages.reporting import Quiet
    from stages.training.loop import fit
    from stages.types import TokenPair

    torch.set_num_threads(1)
    state = join_processes().state
    for each in (state, PartialState()):
        # FSDP2 wants a GPU a process; accelerate is told that a CPU will do.
        each.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    config = OptimizerConfig(
        batch_size=4, num_train_epochs=1, max_tokens_per_device=64, save_steps=0, mixed_precision="no"
    )
    accelerator = join_processes()
    rng = np.random.default_rng(0)
    pairs = [TokenPair(n, *(rng.integers(0, 32_000, 12).astype(np.int32) for _ in range(3))) for n in range(8)]
    peak = Peak()
    model = (load_model if whole else load_waiting)(folder, trust_remote_code=False)
    found = [peak.said()]
    logps_of(model, pairs, RunContext(accelerator, folder, 64, Quiet()), "")
    found.append(peak.said())
    if trains:
        with tempfile.TemporaryDirectory() as output:
            sepo = OBJECTIVES["sepo"].load()
            fit(
                model, [all_tokens(pair) for pair in pairs],
                lambda logps_RW, batch: sepo(logps_RW, batch, gamma=2.1, margin=0.5), config,
                phase="sepo", folder=Path(output), reporter=Quiet(),
            )  # fmt: skip
        found.append(peak.said())
        gather_weights(model)
        found.append(peak.said())
    print(f"| {accelerator.process_index + 1} of {accelerator.num_processes} | {' | '.join(found)} |", flush=True)


def plan(folder: Path, processes: int) -> str:
    """What `sepo validate --plan` would say of a process: while log-probs are read, and in training."""
    import torch

    from stages.configs import OptimizerConfig
    from stages.models.folders import load_without_weights
    from stages.reporting import Quiet
    from stages.training.footprint import Machine, footprint, planned

    config = OptimizerConfig(model=str(folder), max_tokens_per_device=64)
    with torch.device("meta"):
        made = planned(load_without_weights(folder, trust_remote_code=False), config, Quiet())
    found = footprint(made, config, Machine(processes, True, "cpu", 0), 36, 64)
    return f"| planned for each of {processes} | | {found.loading / 1e6:,.0f} | {found.total / 1e6:,.0f} | |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--read-only", action="store_true")
    options = parser.parse_args()
    if "RANK" in os.environ:
        work(options.folder, whole=options.whole, trains=not options.read_only)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        if not options.folder:
            make(folder)
        print("| process | loading | log-probs | training | saving |\n|---|---|---|---|---|", flush=True)
        for count in options.processes:
            there = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29511}
            # What is freed is the system's again at once: what an allocator keeps is not what is measured.
            there |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1, "MALLOC_MMAP_THRESHOLD_": 1 << 18}
            more = [flag for flag, on in (("--whole", options.whole), ("--read-only", options.read_only)) if on]
            running = [
                subprocess.Popen(
                    [sys.executable, __file__, "--folder", str(folder), *more],
                    env=os.environ | {name: str(value) for name, value in there.items()} | place,
                )
                for place in ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
            ]
            for process in running:
                process.wait()
            print(plan(folder, count), flush=True)


if __name__ == "__main__":
    main()
