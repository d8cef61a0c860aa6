"""The recipe on real text, on two cores: oracles on halves, and policies at measured divergence from the reference.

    python -m benchmarks.evidence.two_cores oracles --model M --dataset D --cache C --output-dir S
    sepo denoise --scores S --output-dir S2 --calibrate
    python -m benchmarks.evidence.two_cores policies --model M --scores S --denoised S2 --samples A --reward lexical \\
        --cache C --output FILE
    python -m benchmarks.evidence.two_cores table FILE

``oracles`` does what `train-oracle --folds 2 --beta 1 --kl-weight 0.3` and `score --center` do, of the last layers
alone (`benchmarks.evidence.last_layers`); the folder S is read by the shipped `denoise`. ``policies`` reads gain
and divergence on the reference's own samples A (a folder of `sepo generate`): rewards weighted by the policy's
probability of the prefix over the reference's, KL(policy || reference) exact over the vocabulary.

Each policy is read as it is, and nearer to its reference and farther (`sepo extrapolate`), so that recipes can be
compared at equal divergence; gains are nearly linear in its square root. To first order the most that any policy gains
at KL k is s sqrt(2 k), s the standard deviation of the reward over a prompt's answers: ``table`` gives shares of it.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.evidence.last_layers import LAYERS, Loss, Lower, Row, Upper, pair_losses, say, train
from benchmarks.evidence.real_text import REWARDS
from stages.data.layouts import read_pairs
from stages.demo.frontier import envelope
from stages.method import objectives
from stages.method.folds import trains
from stages.store.place import place_of
from stages.store.rows import KL
from stages.store.scores import open_scores
from stages.store.shards import shard_name, write_shard
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import vocabulary_hash
from stages.types import Dropped, PairLogps, ScoredPair, TokenPair

FOLDS: Final = 2
BASELINE: Final = "DPO, beta 1, with KL"
"""from which differences are counted"""
SETTINGS: Final = 2
"""of each recipe"""
SCALES: Final = (0.5, 1.0, 1.5)
"""of the way from the reference to a policy, where it is read; beyond 1 on the same line"""
BUDGETS: Final = (0.02, 0.05)
"""nats a response, of the tables"""
DRAWS: Final = 1000


def write_scores(options: argparse.Namespace) -> None:
    """Train an oracle a fold; write each pair's scores by the one that has not seen it, and what centres them."""
    if (options.output_dir / "manifest.json").exists():
        return say(f"{options.output_dir} is there already")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    encoded = Encoder(tokenizer, {}).encode_all([p for p in read_pairs(options.dataset) if not isinstance(p, Dropped)])
    pairs = [pair for pair in encoded if not isinstance(pair, Dropped)]
    rows = [Row(pair.prompt_ids, [pair.chosen_ids, pair.rejected_ids]) for pair in pairs]
    lower = Lower(model, options.cache)
    lower.read(rows)
    reference = Upper(model, lower)
    found: dict[int, tuple[ScoredPair, list[Any]]] = {}
    for fold in range(FOLDS):
        seen = [number for number, pair in enumerate(pairs) if trains(pair, fold, FOLDS)]
        own = [rows[number] for number in seen]
        loss = pair_losses(own, objectives.dpo, {"beta": 1.0, "sft_weight": 0.0}, kl_weight=0.3)
        say(f"oracle {fold + 1}: {len(own)} pairs")
        oracle = train(reference, own, loss, options.rate, options.seed)
        for number in sorted({*range(len(pairs))} - {*seen}):
            found[number] = _scored(pairs[number], rows[number], reference, oracle)
    _write_folder(options, [found[number] for number in range(len(pairs))], tokenizer)


@torch.no_grad()
def _scored(pair: TokenPair, row: Row, reference: Upper, oracle: Upper) -> tuple[ScoredPair, list[Any]]:
    """A pair with its scores, and KL(reference || oracle) at every token of either response."""
    before_NV, after_NV = reference(row), oracle(row)
    kl_N = (before_NV.exp() * (before_NV - after_NV)).sum(-1)
    logps_N, scores_N = (each.gather(-1, row.targets[:, None])[:, 0] for each in (before_NV, after_NV - before_NV))
    sides = [PairLogps(*(part.numpy() for part in each.split(row.lengths))) for each in (scores_N, logps_N)]
    return ScoredPair(pair, *sides), [part.numpy() for part in kl_N.split(row.lengths)]


def _write_folder(options: argparse.Namespace, found: list[tuple[ScoredPair, list[Any]]], tokenizer: Any) -> None:
    """A folder of scores as docs/scores-format.md has it."""
    options.output_dir.mkdir(parents=True, exist_ok=True)
    rows, kl = zip(*found, strict=True)
    vocabulary, fingerprint = vocabulary_hash(tokenizer), "sha256:top-layers"
    beside = dict(zip(KL, zip(*kl, strict=True), strict=True))
    write_shard(place_of(options.output_dir), shard_name(0), list(rows), fingerprint, vocabulary, beside=beside)
    manifest = {
        "format": 1, "stage": "score", "fingerprint": fingerprint, "files": [shard_name(0)],
        "counts": {"kept": len(rows)}, "tokenizer": {"vocabulary": vocabulary}, "settings": {"folds": FOLDS},
        "input_names": {"tokenizer": str(options.model), "dataset": str(options.dataset)},
        "results": {"made_by": __name__, "layers": LAYERS, "rate": options.rate, "seed": options.seed},
    }  # fmt: skip
    (options.output_dir / "manifest.json").write_text(json.dumps(manifest))


class Sampled(NamedTuple):
    """The reference's own answers to one prompt."""

    row: Row
    rewards_N: Tensor
    """what each token adds to the true reward of its answer's text so far"""


class Read(NamedTuple):
    """What a policy does to the reference's samples, one figure for each of ``S`` samples, prompt by prompt."""

    gains_S: list[float]
    kl_S: list[float]
    """nats a response"""
    most_weight: float
    """of a sample; where it is large, few samples decide"""


def read_samples(folder: str, tokenizer: Any, reward: Callable[[str], float]) -> list[Sampled]:
    found: dict[Any, list[Any]] = {}
    for file in sorted(Path(folder).rglob("answers-*.parquet")):
        for answer in pq.read_table(file).to_pylist():
            if answer["answer_ids"]:
                found.setdefault(answer["question"], []).append(answer)
    samples = []
    for answers in found.values():
        row = Row(np.array(answers[0]["prompt_ids"], np.int32), [np.array(a["answer_ids"], np.int32) for a in answers])
        steps: list[float] = []
        for ids in row.responses:
            sums = [reward(tokenizer.decode(ids[:end], skip_special_tokens=True)) for end in range(len(ids) + 1)]
            steps += np.diff(sums).tolist()
        samples.append(Sampled(row, torch.tensor(steps)))
    return samples


@torch.no_grad()
def read_policy(reference: Upper, policy: Upper, samples: Sequence[Sampled]) -> Read:
    """Gain in true reward and KL(policy || reference), by weighting the reference's samples token by token."""
    gains: list[float] = []
    divergences: list[float] = []
    most = 0.0
    for row, rewards_N in samples:
        before_NV, after_NV = reference(row), policy(row)
        kl_N = (after_NV.exp() * (after_NV - before_NV)).sum(-1)
        ratios_N = (after_NV - before_NV).gather(-1, row.targets[:, None])[:, 0]
        for ratios, kl, rewards in zip(*(each.split(row.lengths) for each in (ratios_N, kl_N, rewards_N)), strict=True):
            weights = ratios.cumsum(0).exp()
            gains.append(((weights - 1) * rewards).sum().item())
            # How likely the policy is to come to a token is the weight of what precedes it.
            divergences.append((torch.cat([torch.ones(1), weights[:-1]]) * kl).sum().item())
            most = max(most, weights.max().item())
    return Read(gains, divergences, most)


def selected(row: Row, scores_N: Tensor, share: float = 0.3) -> Tensor:
    """Weights of SePO's selection: the best tokens of the chosen response, the worst of the rejected one."""
    weights = []
    for sign, part in zip((1, -1), scores_N.split(row.lengths), strict=True):
        best = (sign * part).topk(math.ceil(share * len(part))).indices
        weights.append(torch.zeros_like(part).index_fill(0, best, 1.0))
    return torch.cat(weights)


class Setting(NamedTuple):
    """One way to train by a recipe."""

    loss: Loss
    rate: float


def recipes(
    rows: Sequence[Row], raw: Sequence[Tensor], denoised: Sequence[Tensor], rate: float
) -> dict[str, list[Setting]]:
    """Those that are compared, each at its own settings, as on the demo (examples/compare.yaml)."""
    simpo = {"gamma": 2.1, "margin": 0.5, "sft_weight": 0.0, "kl_weight": 0.0, "anchor_margin": False}
    weights = [selected(row, scores_N) for row, scores_N in zip(rows, raw, strict=True)]

    def loss(objective: Callable[..., Any], options: dict[str, Any], **more: Any) -> Loss:
        return pair_losses(rows, objective, options, **more)

    dpo = {"beta": 1.0, "sft_weight": 0.0}
    # Without a reference in the loss a policy goes so far at a rate that no sample of the reference tells of it.
    return {
        "regression, denoised": [
            Setting(loss(objectives.regress, {"scale": scale}, scores=denoised), rate) for scale in (0.4, 1.0)
        ],
        BASELINE: [Setting(loss(objectives.dpo, dpo, kl_weight=weight), rate) for weight in (0.3, 0.03)],
        "SimPO": [Setting(loss(objectives.sepo, simpo), rate * share) for share in (0.3, 0.1)],
        "DPO, beta 0.1": [Setting(loss(objectives.dpo, dpo | {"beta": 0.1}), rate * share) for share in (0.3, 0.1)],
        "SePO, as published": [
            Setting(loss(objectives.sepo, simpo, weights=weights), rate * share) for share in (0.1, 0.03)
        ],
        "regression, as measured": [
            Setting(loss(objectives.regress, {"scale": scale}, scores=raw), rate) for scale in (0.4, 1.0)
        ],
    }


def train_policies(options: argparse.Namespace) -> None:
    """Train each recipe that the output does not hold yet, and add a line for its figures."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    scored = list(open_scores(options.scores).rows())
    rows = [Row(each.pair.prompt_ids, [each.pair.chosen_ids, each.pair.rejected_ids]) for each in scored]
    raw, denoised = ([torch.from_numpy(np.concatenate(each.scores)) for each in open_scores(folder).rows()]
                     for folder in (options.scores, options.denoised))  # fmt: skip
    samples = read_samples(options.samples, tokenizer, REWARDS[options.reward])
    lower = Lower(model, options.cache)
    lower.read([*rows, *(each.row for each in samples)])
    reference = Upper(model, lower)
    of_samples = {
        "prompts_S": [number for number, each in enumerate(samples) for _ in each.row.responses],
        "rewards_S": [part.sum().item() for each in samples for part in each.rewards_N.split(each.row.lengths)],
    }
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    done = {(line["recipe"], line["rate"], line["setting"], line["seed"]) for line in map(json.loads, lines)}
    found = recipes(rows, raw, denoised, options.rate)
    # The first setting of all, then the next one: what has been trained when time is up can be compared.
    for number, name in itertools.product(range(SETTINGS), options.recipe or found):
        setting = found[name][number]
        if (name, setting.rate, number, options.seed) in done:
            continue
        policy = train(reference, rows, setting.loss, setting.rate, options.seed)
        line = {"recipe": name, "setting": number, "seed": options.seed, "rate": setting.rate} | of_samples
        text = ""
        for scale in SCALES:
            read = read_policy(reference, policy.towards(reference, 1 - scale), samples)
            text += json.dumps(line | {"scale": scale} | read._asdict()) + "\n"
            gain, kl = np.mean(read.gains_S), np.mean(read.kl_S)
            say(f"{name} {number}, {scale:g} of it: gain {gain:+.3f} at KL {kl:.3f}")
        with options.output.open("a") as file:
            file.write(text)


def show(options: argparse.Namespace) -> None:
    """What recipes gain at equal divergence by the settings that all have, means over seeds, intervals over prompts.

    Not a number where a seed, or a draw of prompts, does not come so far from the reference.
    """
    lines = [json.loads(line) for name in options.output for line in name.read_text().splitlines()]
    settings = [{line["setting"] for line in lines if line["recipe"] == name} for name in {x["recipe"] for x in lines}]
    lines = [line for line in lines if line["setting"] in set.intersection(*settings)]
    found: dict[str, dict[int, list[Any]]] = {}
    for line in lines:
        found.setdefault(line["recipe"], {}).setdefault(line["seed"], []).append(line)
    print(f"| recipe | KL | seeds | gain | share | less {BASELINE} | by seed |\n|---|---|---|---|---|---|---|")
    for name, by_seed in found.items():
        for kl in BUDGETS:
            ours = {seed: _gains(by_seed[seed], kl) for seed in by_seed}
            theirs = {seed: _gains(found[BASELINE][seed], kl) for seed in ours if seed in found.get(BASELINE, {})}
            gain, most = np.mean([*ours.values()], 0), np.mean([_most(by_seed[seed][0], kl) for seed in ours], 0)
            less = by = ""
            if name != BASELINE and theirs:
                differences = [ours[seed] - theirs[seed] for seed in theirs]
                less = _interval(np.mean(differences, 0))
                by = ", ".join(f"{each[0]:+.3f}" for each in differences)
            print(f"| {name} | {kl:g} | {len(ours)} | {_interval(gain)} | {_interval(gain / most)} | {less} | {by} |")


def _drawn(line: dict[str, Any]) -> tuple[Any, Any]:
    """How often each prompt is taken, (1 + DRAWS, Q): once, and then by the same draws for every line; samples (Q,)."""
    sizes_Q = np.bincount(line["prompts_S"])
    count = len(sizes_Q)
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(DRAWS)]
    return np.stack([np.ones(count), *draws]), sizes_Q


def _gains(lines: Sequence[dict[str, Any]], kl: float) -> Any:
    """What a recipe gains so far from the reference, of each draw of prompts, (1 + DRAWS,); not a number beyond it."""
    drawn, sizes_Q = _drawn(lines[0])
    means = [
        [drawn @ np.bincount(line["prompts_S"], weights=line[name]) / (drawn @ sizes_Q) for name in ("kl_S", "gains_S")]
        for line in lines
    ]
    found = [envelope([(there[draw], gain[draw]) for there, gain in means], kl) for draw in range(1 + DRAWS)]
    return np.array(found, dtype=float)


def _most(line: dict[str, Any], kl: float) -> Any:
    """What can be gained so far from the reference, to first order, of each draw of prompts, (1 + DRAWS,)."""
    drawn, sizes_Q = _drawn(line)
    rewards_Q, squares_Q = (
        np.bincount(line["prompts_S"], weights=each) for each in (line["rewards_S"], np.square(line["rewards_S"]))
    )
    # Unbiased within a prompt; prompts with one sample say nothing of it.
    variances_Q = np.where(sizes_Q > 1, (squares_Q - rewards_Q**2 / sizes_Q) / np.maximum(1, sizes_Q - 1), 0.0)
    return np.sqrt(2 * kl * (drawn @ variances_Q) / (drawn @ (sizes_Q > 1)))


def _interval(draws: Any) -> str:
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return f"{draws[0]:+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    oracles, policies = commands.add_parser("oracles"), commands.add_parser("policies")
    for command in (oracles, policies):
        command.add_argument("--model", required=True)
        command.add_argument("--cache", type=Path, required=True)
        command.add_argument("--rate", type=float, default=1e-4)
        command.add_argument("--seed", type=int, default=42)
    oracles.add_argument("--dataset", required=True)
    oracles.add_argument("--output-dir", type=Path, required=True)
    oracles.set_defaults(run=write_scores)
    policies.add_argument("--scores", required=True)
    policies.add_argument("--denoised", required=True)
    policies.add_argument("--samples", required=True)
    policies.add_argument("--reward", choices=REWARDS, required=True)
    policies.add_argument("--recipe", action="append", help="this one alone; may be given several times")
    policies.add_argument("--output", type=Path, required=True)
    policies.set_defaults(run=train_policies)
    table = commands.add_parser("table")
    table.add_argument("output", type=Path, nargs="+")
    table.set_defaults(run=show)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
