"""Training beside TRL: the same model, the same pairs, the same pairs a step, the same precision, in turns.

    python benchmarks/training.py --model M --dataset pairs.jsonl.gz --pairs 16 --rounds 3
    python benchmarks/training.py --model M --dataset pairs.jsonl.gz --pairs 256 --step 32 --max-tokens 16384 \
        --mixed-precision bf16 --rounds 1                                                    # on a GPU

Every contestant runs in a process of its own, so that its peak memory is its own. The time is that of the steps behind
the first one; for DPO with the reference's log-probs, which TRL computes in every step and sepo once.
Needs TRL: pip install 'sepo[bench]'.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

OURS = ("dpo", "dpo+checkpointing", "simpo", "sepo", "sepo+checkpointing", "floor")
THEIRS = ("trl-dpo", "trl-simpo")


def pairs_of(options: argparse.Namespace) -> tuple[Any, list[Any], list[Any]]:
    """Encoder, pairs as text and the same as ids: the first that are short enough."""
    from stages.data.layouts import read_pairs
    from stages.models.folders import load_tokenizer
    from stages.tokens.encode import Encoder
    from stages.types import Pair, TokenPair, longest

    encoder = Encoder(load_tokenizer(Path(options.model), trust_remote_code=False))
    texts, ids = [], []
    for pair in read_pairs(options.dataset):
        encoded = encoder.encode(pair) if isinstance(pair, Pair) else pair
        if isinstance(encoded, TokenPair) and longest(encoded) <= options.max_length:
            texts.append(pair)
            ids.append(encoded)
        if len(ids) == options.pairs:
            break
    return encoder, texts, ids


class Clock:
    """The time of the steps behind the first one, in which memory is claimed and kernels are chosen."""

    def __init__(self, step: int) -> None:
        self.step, self.ends = step, list[float]()

    def tick(self, steps: int = 0) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def seconds_a_pair(self) -> float:
        return (self.ends[-1] - self.ends[0]) / ((len(self.ends) - 1) * self.step)


def selected(pair: Any, rng: Any) -> Any:
    """Which tokens are selected does not matter to the cost, only how many, and where the last one is."""
    from stages.method.selection import select_by_keys
    from stages.types import Example, PairLogps, PairWeights

    keys = PairLogps(*(rng.standard_normal(len(part)).astype(np.float32) for part in pair[2:]))
    return Example(pair, PairWeights(*(mask.astype(np.float32) for mask in select_by_keys(keys, 0.3, 0.3))))


def ours(options: argparse.Namespace) -> float:
    from stages.configs import OptimizerConfig
    from stages.devices.processes import join_processes
    from stages.logprobs.batches import reference_sums, whole
    from stages.logprobs.logps import response_logps
    from stages.logprobs.paths import find_paths
    from stages.models.folders import load_model
    from stages.registry import OBJECTIVES
    from stages.reporting import Quiet
    from stages.training.loop import fit
    from stages.types import ReferenceSums

    device = join_processes(options.mixed_precision).device
    pairs = options.data or pairs_of(options)[2]
    model = load_model(Path(options.model), trust_remote_code=False).to(device)
    name, _, checkpointing = options.who.partition("+")
    config = OptimizerConfig(
        batch_size=options.step,
        learning_rate=1e-6,
        save_steps=0,
        max_tokens_per_device=options.max_tokens,
        max_length=4096,
        mixed_precision=options.mixed_precision,
        gradient_checkpointing=bool(checkpointing),
    )
    start = time.perf_counter()
    examples = [whole(pair) for pair in pairs]
    if name == "dpo":
        forward = find_paths(model, Quiet())
        [logps] = response_logps([forward], pairs, max_tokens=options.max_tokens, device=device, task=Quiet())
        examples = [
            whole(pair, ReferenceSums(*sums)) for pair, sums in zip(pairs, reference_sums(logps).tolist(), strict=True)
        ]
    reference = time.perf_counter() - start
    if name == "sepo":
        rng = np.random.default_rng(0)
        examples = [selected(pair, rng) for pair in pairs]
    if name == "sft":
        examples = [whole(pair._replace(rejected_ids=np.empty(0, np.int32))) for pair in pairs]
    # SimPO is SePO's loss on all tokens.
    objective = OBJECTIVES[name if name in ("dpo", "sft") else "sepo"].load()

    clock = Clock(options.step)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            examples,
            objective,
            config,
            phase=name,
            folder=Path(folder),
            reporter=Quiet(),
            after_step=clock.tick,
        )
    return clock.seconds_a_pair() + (reference / len(pairs) if name == "dpo" else 0.0)


def floor(options: argparse.Namespace) -> float:
    """Forward and backward of the same unique tokens, a row a pair, and of the head on the rows that SePO needs."""
    from stages.logprobs.packing import pack
    from stages.models.folders import load_model

    rng = np.random.default_rng(0)
    pairs = options.data or pairs_of(options)[2]
    model = load_model(Path(options.model), trust_remote_code=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    clock = Clock(options.step)
    for start in range(0, len(pairs), options.step):
        for pair in pairs[start : start + options.step]:
            row = pack([selected(pair, rng)], torch.device("cpu"))
            hidden_TH = model.model(input_ids=row.ids_T[None], use_cache=False).last_hidden_state[0]
            logits_NV = model.lm_head(hidden_TH[row.sources_N])
            torch.autograd.backward(torch.nn.functional.cross_entropy(logits_NV, row.targets_N))
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    return clock.seconds_a_pair()


def theirs(options: argparse.Namespace) -> float:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    clock = Clock(options.step)

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    _, texts, _ = pairs_of(options)
    rows = [
        {
            "prompt": pair.prompt,
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in texts
    ]
    trainer_class, config_class = DPOTrainer, DPOConfig
    more: dict[str, Any] = {"beta": 0.1}
    if options.who == "trl-simpo":
        trainer_class, config_class = CPOTrainer, CPOConfig
        more = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.1, "simpo_gamma": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            per_device_train_batch_size=options.step,
            num_train_epochs=1,
            learning_rate=1e-6,
            bf16=options.mixed_precision == "bf16",
            gradient_checkpointing=False,
            max_length=4096,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            optim="adamw_torch_fused",
            **more,
        )
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            callbacks=[Ticks()],
        )
        trainer.train()
    return clock.seconds_a_pair()


def by_length(options: argparse.Namespace) -> None:
    """Ours on random pairs: 64 tokens of prompt, and responses of a given length."""
    from stages.types import TokenPair

    rng = np.random.default_rng(0)
    print("| response tokens | SePO, s a pair | s a 1,000 tokens |\n|---|---|---|")
    for length in options.lengths:
        parts = [
            [rng.integers(0, 40_000, n).astype(np.int32) for n in (64, length, length)] for _ in range(2 * options.step)
        ]
        options.data, options.who = [TokenPair(number, *part) for number, part in enumerate(parts)], "sepo"
        seconds = ours(options)
        print(f"| {length} | {seconds:.2f} | {1000 * seconds / (64 + 2 * length):.2f} |", flush=True)


def by_budget(options: argparse.Namespace) -> None:
    """Ours on the same pairs with several token budgets of a micro-batch, in turns, each in a process of its own."""
    found: dict[int, list[dict[str, float]]] = {budget: [] for budget in options.budgets}
    for _ in range(options.rounds):
        for budget, results in found.items():
            results.append(apart("sepo", "--max-tokens", str(budget), "--step", str(options.step)))
            print(budget, results[-1], flush=True)
    print("| budget, tokens | SePO, s a pair | peak memory, GB |\n|---|---|---|")
    for budget, results in found.items():
        seconds, gigabytes = (statistics.median(r[name] for r in results) for name in ("seconds", "gigabytes"))
        print(f"| {budget} | {seconds:.2f} | {gigabytes:.1f} |", flush=True)


def apart(who: str, *more: str) -> dict[str, float]:
    """The result of a contestant in a process of its own."""
    command = [sys.executable, *sys.argv, "--who", who, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        sys.exit(f"{who} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
    return result


def contestant(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    run = {"floor": floor, **dict.fromkeys(THEIRS, theirs)}.get(options.who, ours)
    seconds = run(options)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 1e9
    print("RESULT " + json.dumps({"seconds": seconds, "gigabytes": memory}), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--who", choices=[*OURS, *THEIRS])
    parser.add_argument("--lengths", type=int, nargs="*", help="only ours, on random responses so long")
    parser.add_argument("--budgets", type=int, nargs="*", help="only ours, with these budgets of a micro-batch")
    parser.add_argument("--step", type=int, default=4, help="pairs a step")
    parser.set_defaults(data=None)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.who:
        contestant(options)
        return
    if options.lengths:
        torch.set_num_threads(options.threads)
        by_length(options)
        return
    if options.budgets:
        by_budget(options)
        return
    found: dict[str, list[dict[str, float]]] = {who: [] for who in (*OURS, *THEIRS)}
    for number in range(options.rounds):
        for who, results in found.items():
            results.append(apart(who))
            print(number, who, results[-1], flush=True)
    how = f"mixed precision {options.mixed_precision}, {options.threads} threads"
    print(f"{options.pairs} pairs of {options.dataset}, {options.step} a step, {how}")
    print(f"torch {version('torch')}, transformers {version('transformers')}, trl {version('trl')}")
    print("| who | s a pair | x TRL's pairs/s | peak memory, GB | x TRL's memory |\n|---|---|---|---|---|")
    for who, results in found.items():
        rival = found[who if who in THEIRS else "trl-dpo" if who.startswith("dpo") else "trl-simpo"]
        pace = statistics.median(r["seconds"] / o["seconds"] for r, o in zip(rival, results, strict=True))
        memory = statistics.median(o["gigabytes"] / r["gigabytes"] for r, o in zip(rival, results, strict=True))
        seconds = statistics.median(o["seconds"] for o in results)
        gigabytes = statistics.median(o["gigabytes"] for o in results)
        print(f"| {who} | {seconds:.2f} | {pace:.2f} | {gigabytes:.1f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
