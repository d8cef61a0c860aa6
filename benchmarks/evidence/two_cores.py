"""The recipe on real text, on two cores: oracles on halves, and policies at measured divergence from the reference.

    python -m benchmarks.evidence.two_cores oracles --model M --dataset D --cache C --output-dir S
    sepo denoise --scores S --output-dir S2 --calibrate
    sepo denoise --scores S --output-dir S3 --pool counts
    python -m benchmarks.evidence.two_cores policies --model M --scores S --denoised S2 --counted S3 --samples A \\
        --reward lexical --cache C --output FILE
    python -m benchmarks.evidence.two_cores table FILE [--less RECIPE]

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.evidence.last_layers import LAYERS, Lower, Row, Upper, pair_losses, say, target_logps, train
from benchmarks.evidence.real_text import REWARDS, Reward
from benchmarks.evidence.recipes import BASELINE, recipes
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
SCALES: Final = (0.25, 0.5, 1.0, 1.5)
"""of the way from the reference to a policy, where it is read; beyond 1 on the same line"""
BUDGETS: Final = (0.02, 0.05)
"""nats a response, of the tables"""
DRAWS: Final = 1000
Reading = Callable[[Sequence[dict[str, Any]], float], Any]
"""of a recipe's lines and a divergence: a figure for each draw of prompts"""


def write_scores(options: argparse.Namespace) -> None:
    """Train an oracle a fold; write each pair's scores by the one that has not seen it, and what centres them."""
    if (options.output_dir / "manifest.json").exists():
        return say(f"{options.output_dir} is there already")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    known = _pairs(options.dataset, tokenizer)
    pairs = _pairs(options.to_score, tokenizer) if options.to_score else known
    lower = Lower(model, options.cache)
    lower.read([_row(pair) for pair in (*known, *pairs)])
    reference = Upper(model, lower)
    found: dict[int, tuple[ScoredPair, list[Any]]] = {}
    for fold in range(FOLDS):
        own = [_row(pair) for pair in known if trains(pair, fold, FOLDS)]
        loss = pair_losses(own, objectives.dpo, {"beta": 1.0, "sft_weight": 0.0}, kl_weight=0.3)
        say(f"oracle {fold + 1}: {len(own)} pairs")
        oracle = train(reference, own, loss, options.rate, options.seed)
        for number, pair in enumerate(pairs):
            if not trains(pair, fold, FOLDS):
                found[number] = _scored(pair, _row(pair), reference, oracle)
    _write_folder(options, [found[number] for number in range(len(pairs))], tokenizer)


def _pairs(file: str, tokenizer: Any) -> list[TokenPair]:
    encoded = Encoder(tokenizer, {}).encode_all([p for p in read_pairs(file) if not isinstance(p, Dropped)])
    return [pair for pair in encoded if not isinstance(pair, Dropped)]


def _row(pair: TokenPair) -> Row:
    return Row(pair.prompt_ids, [pair.chosen_ids, pair.rejected_ids])


@torch.no_grad()
def _scored(pair: TokenPair, row: Row, reference: Upper, oracle: Upper) -> tuple[ScoredPair, list[Any]]:
    """A pair with its scores, and KL(reference || oracle) at every token of either response."""
    before_NV, after_NV = reference(row), oracle(row)
    kl_N = (before_NV.exp() * (before_NV - after_NV)).sum(-1)
    logps_N, scores_N = (target_logps(each, row) for each in (before_NV, after_NV - before_NV))
    scores, logps, kl = (
        [part.numpy() for part in torch.split(each, row.lengths)] for each in (scores_N, logps_N, kl_N)
    )
    return ScoredPair(pair, PairLogps(*scores), PairLogps(*logps)), kl


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
        "input_names": {"tokenizer": str(options.model), "dataset": str(options.to_score or options.dataset)},
        "results": {
            "made_by": __name__, "learnt_of": str(options.dataset), "layers": LAYERS, "rate": options.rate,
            "seed": options.seed,
        },
    }  # fmt: skip
    (options.output_dir / "manifest.json").write_text(json.dumps(manifest))


class Sampled(NamedTuple):
    """The reference's own answers to one prompt."""

    question: int
    row: Row
    rewards_N: Tensor
    """what each token adds to the true reward of its answer's text so far"""


class Read(NamedTuple):
    """What a policy does to the reference's samples, one figure for each of ``S`` samples, prompt by prompt."""

    gains_S: list[float]
    kl_S: list[float]
    """nats a response"""
    weights_S: list[float]
    """the greatest of a sample's; where some are large, few samples decide"""


def read_samples(folder: str, tokenizer: Any, reward: Reward) -> list[Sampled]:
    found: dict[int, list[Any]] = {}
    for file in sorted(Path(folder).rglob("answers-*.parquet")):
        for answer in pq.read_table(file).to_pylist():
            if answer["answer_ids"]:
                found.setdefault(answer["question"], []).append(answer)
    samples = []
    for question, answers in sorted(found.items()):
        prompt = json.loads(answers[0]["row"])
        row = Row(np.array(answers[0]["prompt_ids"], np.int32), [np.array(a["answer_ids"], np.int32) for a in answers])
        steps: list[float] = []
        for ids in row.responses:
            texts = [tokenizer.decode(ids[:end], skip_special_tokens=True) for end in range(len(ids) + 1)]
            sums = [reward(prompt, text) for text in texts]
            steps += np.diff(sums).tolist()
        samples.append(Sampled(question, row, torch.tensor(steps)))
    return samples


@torch.no_grad()
def read_policies(reference: Upper, policies: Sequence[Upper], samples: Sequence[Sampled]) -> list[Read]:
    """Gain in true reward and KL(policy || reference) of each, by weighting the reference's samples token by token."""
    found = [Read([], [], []) for _ in policies]
    for _, row, rewards_N in samples:
        before_NV = reference(row)
        for policy, read in zip(policies, found, strict=True):
            after_NV = policy(row)
            kl_N = (after_NV.exp() * (after_NV - before_NV)).sum(-1)
            ratios_N = target_logps(after_NV - before_NV, row)
            parts = (torch.split(each, row.lengths) for each in (ratios_N, kl_N, rewards_N))
            for ratios, kl, rewards in zip(*parts, strict=True):
                weights = ratios.cumsum(0).exp()
                read.gains_S.append(((weights - 1) * rewards).sum().item())
                # How likely the policy is to come to a token is the weight of what precedes it.
                read.kl_S.append((torch.cat([torch.ones(1), weights[:-1]]) * kl).sum().item())
                read.weights_S.append(weights.max().item())
    return found


@torch.no_grad()
def read_margins(reference: Upper, policies: Sequence[Upper], rows: Sequence[Row]) -> list[list[float]]:
    """Implicit reward of the chosen response less that of the rejected one, of each policy and pair: nats."""
    found: list[list[float]] = [[] for _ in policies]
    for row in rows:
        before_N = reference.logps(row)
        for policy, margins in zip(policies, found, strict=True):
            chosen, rejected = torch.split(target_logps(policy(row), row) - before_N, row.lengths)
            margins.append((chosen.sum() - rejected.sum()).item())
    return found


def train_policies(options: argparse.Namespace) -> None:
    """Train each recipe that the output does not hold yet, and add a line for its figures."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    scored = list(open_scores(options.scores).rows())
    rows = [_row(each.pair) for each in scored]
    raw, denoised, counted = (
        [torch.from_numpy(np.concatenate(each.scores)) for each in open_scores(folder).rows()]
        for folder in (options.scores, options.denoised, options.counted)
    )
    samples = read_samples(options.samples, tokenizer, REWARDS[options.reward])
    held_out = held_out_rows(options.held_out, tokenizer, samples) if options.held_out else []
    lower = Lower(model, options.cache)
    lower.read([*rows, *(each.row for each in samples), *held_out])
    reference = Upper(model, lower)
    of_samples = {
        "prompts_S": [number for number, each in enumerate(samples) for _ in each.row.responses],
        "rewards_S": [part.sum().item() for each in samples for part in torch.split(each.rewards_N, each.row.lengths)],
    }
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    done = {(line["recipe"], line["rate"], line["setting"], line["seed"]) for line in map(json.loads, lines)}
    found = recipes(rows, raw, denoised, counted, options.rate, options.seed)
    # The first setting of all, then the next one: what has been trained when time is up can be compared.
    for number, recipe in itertools.product(range(options.settings), options.recipe or found):
        setting, name = found[recipe][number], recipe + options.suffix
        if (name, setting.rate, number, options.seed) in done:
            continue
        policy = train(reference, rows, setting.loss, setting.rate, options.seed)
        line = {"recipe": name, "setting": number, "seed": options.seed, "rate": setting.rate} | of_samples
        policies = [policy.towards(reference, 1 - scale) for scale in SCALES]
        read, margins = read_policies(reference, policies, samples), read_margins(reference, policies, held_out)
        text = ""
        for scale, each, margins_P in zip(SCALES, read, margins, strict=True):
            text += json.dumps(line | {"scale": scale, "margins_P": margins_P} | each._asdict()) + "\n"
            say(f"{name} {number}, {scale:g} of it: {np.mean(each.gains_S):+.3f} at KL {np.mean(each.kl_S):.3f}")
        with options.output.open("a") as file:
            file.write(text)


def held_out_rows(file: str, tokenizer: Any, samples: Sequence[Sampled]) -> list[Row]:
    """Labelled pairs of the prompts that were sampled, one each, in their order."""
    pairs = {pair.pair_id: pair for pair in _pairs(file, tokenizer)}
    return [_row(pairs[each.question]) for each in samples]


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
    if any(any(line["rewards_S"]) for line in lines):
        _show("gain", found, options.less, _gains, _most)
    if all(line["margins_P"] for line in lines):
        _show("held-out accuracy", found, options.less, _accuracies)


def _show(
    what: str, found: dict[str, dict[int, list[Any]]], other: str, read: Reading, most: Reading | None = None
) -> None:
    share = "| share " if most else ""
    print(f"| recipe | KL | seeds | {what} {share}| less {other} | by seed |")
    print("|---" * (7 if most else 6) + "|")
    for name, by_seed in found.items():
        for kl in BUDGETS:
            ours = {seed: read(by_seed[seed], kl) for seed in by_seed}
            theirs = {seed: read(found[other][seed], kl) for seed in ours if seed in found.get(other, {})}
            figure = np.mean([*ours.values()], 0)
            cells = [f"{name} | {kl:g} | {len(ours)}", _interval(figure)]
            if most:
                cells.append(_interval(figure / np.mean([most(by_seed[seed], kl) for seed in ours], 0)))
            less = by = ""
            if name != other and theirs:
                differences = [ours[seed] - theirs[seed] for seed in theirs]
                less = _interval(np.mean(differences, 0))
                by = ", ".join(f"{each[0]:+.3f}" for each in differences)
            print(f"| {' | '.join([*cells, less, by])} |")


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


def _accuracies(lines: Sequence[dict[str, Any]], kl: float) -> Any:
    """How often a recipe prefers the chosen response, so far from the reference, of each draw of prompts, (1 + DRAWS,).

    Of several settings the best; straight in the square root of KL between the points where a policy was read. Not a
    number nearer to the reference than the first of them, or beyond the last.
    """
    drawn, sizes_Q = _drawn(lines[0])
    best = np.full(len(drawn), np.nan)
    for _, setting in itertools.groupby(lines, lambda line: line["setting"]):
        theres, rights = [], []
        for line in sorted(setting, key=lambda line: line["scale"]):
            theres.append(drawn @ np.bincount(line["prompts_S"], weights=line["kl_S"]) / (drawn @ sizes_Q))
            rights.append(drawn @ (np.sign(line["margins_P"]) / 2 + 0.5) / drawn.sum(1))
        # An estimate may fall where the truth rises: what has been reached is not left again.
        far = np.sqrt(np.maximum.accumulate(theres))
        for draw, (there, right) in enumerate(zip(far.T, np.transpose(rights), strict=True)):
            best[draw] = np.fmax(best[draw], np.interp(np.sqrt(kl), there, right, left=np.nan, right=np.nan))
    return best


def _most(lines: Sequence[dict[str, Any]], kl: float) -> Any:
    """What can be gained so far from the reference, to first order, of each draw of prompts, (1 + DRAWS,)."""
    line = lines[0]
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
    oracles.add_argument("--dataset", required=True, help="labelled pairs that the oracles learn of")
    oracles.add_argument("--to-score", help="other pairs, which are scored instead of these")
    oracles.add_argument("--output-dir", type=Path, required=True)
    oracles.set_defaults(run=write_scores)
    policies.add_argument("--scores", required=True)
    policies.add_argument("--denoised", required=True)
    policies.add_argument("--counted", required=True)
    policies.add_argument("--samples", required=True)
    policies.add_argument("--reward", choices=REWARDS, required=True)
    policies.add_argument("--held-out", help="labelled pairs of the samples' prompts, one each, in their order")
    policies.add_argument("--recipe", action="append", help="this one alone; may be given several times")
    policies.add_argument("--settings", type=int, default=1, choices=(1, 2), help="of each recipe, its first")
    policies.add_argument("--suffix", default="", help="of the recipes' names, where tables tell scores apart")
    policies.add_argument("--output", type=Path, required=True)
    policies.set_defaults(run=train_policies)
    table = commands.add_parser("table")
    table.add_argument("output", type=Path, nargs="+")
    table.add_argument("--less", default=BASELINE, metavar="RECIPE", help="from which differences are counted")
    table.set_defaults(run=show)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
