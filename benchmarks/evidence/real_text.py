"""Preference pairs of real texts with planted rewards: what is true of them is counted in the text.

    python -m benchmarks.evidence.real_text prompts PROMPTS ... --train 512 --test 96 --output-dir D
    python -m benchmarks.evidence.real_text pairs PAIRS --model M --train 512 --test 256 --output-dir D
    sepo pair ANSWERS --verifier benchmarks.evidence.real_text:bradley_terry --output PAIRS.jsonl
    python -m benchmarks.evidence.real_text label PAIRS.jsonl --output LABELLED.jsonl
    python -m benchmarks.evidence.real_text truth --reward lexical --model M SCORES ...
    python -m benchmarks.evidence.real_text samples --reward lexical EVALUATION.json ...

``prompts`` takes the shortest prompts of files, and ``pairs`` the shortest labelled pairs, one a prompt, so that two
cores do. The verifier labels a model's answers to them by Bradley-Terry from the difference of the rewards ($REWARD;
labels are drawn by $LABELS, a number), and ``label`` pairs by others likewise. ``truth`` says how folders of scores,
summed over a response, agree with these rewards; ``samples`` what policies gained on what `sepo evaluate` sampled of
them.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from transformers import AutoTokenizer

from stages.benchmarks.ifeval_verifier import Followed, open_verifier
from stages.data.layouts import read_pairs
from stages.data.read import read_rows
from stages.method.statistics import Ratio, bootstrap_differences, wilson
from stages.store.scores import open_scores
from stages.tokens.encode import Encoder
from stages.types import Dropped

SYSTEM: Final = {"role": "system", "content": ""}
"""Where a conversation has none, many a chat template puts one of its own there, longer than these answers."""


Reward = Callable[[dict[str, Any], str], float]
"""of a prompt's row and an answer's text, or its beginning"""


def lexical(text: str) -> float:
    """What an instruction may ask for, word by word: the reader is spoken to, and there are no commas."""
    return 1.5 * _spoken_to(text) - 1.5 * text.count(",")


def contextual(text: str) -> float:
    """A word that is good in an answer that begins with "I" and bad in any other: no type has a reward of its own."""
    return (1.5 if re.match(r"\s*I\b", text) else -1.5) * _spoken_to(text)


def _spoken_to(text: str) -> int:
    return len(re.findall(r"\b(?:you|your|yours|yourself)\b", text, re.IGNORECASE))


@cache
def _verifier() -> Callable[[Any, str], Followed]:
    return open_verifier()


def followed(row: dict[str, Any], text: str) -> float:
    """The share of its prompt's instructions that IFEval's verifier finds followed, strictly."""
    return float(np.mean(_verifier()(row, text).strict))


REWARDS: Final[dict[str, Reward]] = {
    "lexical": lambda row, text: lexical(text),
    "contextual": lambda row, text: contextual(text),
    "ifeval": followed,
    "none": lambda row, text: 0.0,
}
"""none: where labels are real, nobody knows it"""
PLANTED: Final = ("lexical", "contextual")
"""those that hang on the text alone"""


def bradley_terry(row: dict[str, Any], answer: str) -> float:
    """A verifier for `sepo pair`: by rewards with Gumbel noise, of which the greater is Bradley-Terry's choice."""
    labels = int(os.environ.get("LABELS", "0"))
    noise = np.random.default_rng([labels, *json.dumps([row, answer], sort_keys=True).encode()]).gumbel()
    return REWARDS[os.environ.get("REWARD", "lexical")](row, answer) + float(noise)


def write_labelled(options: argparse.Namespace) -> None:
    """The pairs of a file, of which the planted reward and chance choose anew."""
    lines = []
    for pair in read_pairs(options.pairs):
        if not isinstance(pair, Dropped):
            rejected, chosen = sorted((pair.rejected, pair.chosen), key=partial(bradley_terry, {"prompt": pair.prompt}))
            lines.append(json.dumps({"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    options.output.write_text("".join(lines))


def write_prompts(options: argparse.Namespace) -> None:
    """The shortest prompts, each once, dealt out by chance to train.jsonl and test.jsonl."""
    columns = [row.columns for name in options.prompts for row in read_rows(name)]
    texts = sorted({row.get("instruction") or row["prompt"] for row in columns}, key=lambda text: (len(text), text))
    wanted = options.train + options.test
    if len(texts) < wanted:
        raise SystemExit(f"{' '.join(options.prompts)}: only {len(texts):,} prompts, not {wanted:,}")
    _deal_out(options, [{"prompt": [SYSTEM, {"role": "user", "content": text}]} for text in texts[:wanted]])


def write_pairs(options: argparse.Namespace) -> None:
    """The shortest pairs, one a prompt, dealt out by chance to train.jsonl and test.jsonl."""
    pairs = {pair.pair_id: pair for pair in read_pairs(options.pairs) if not isinstance(pair, Dropped)}
    encoded = Encoder(AutoTokenizer.from_pretrained(options.model), {}).encode_all([*pairs.values()])
    tokens = [each for each in encoded if not isinstance(each, Dropped)]
    found: dict[str, dict[str, Any]] = {}
    for each in sorted(tokens, key=lambda each: sum(map(len, each.parts))):
        pair = pairs[each.pair_id]
        row = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        found.setdefault(json.dumps(pair.prompt), row)
    wanted = options.train + options.test
    if len(found) < wanted:
        raise SystemExit(f"{options.pairs}: only {len(found):,} prompts, not {wanted:,}")
    _deal_out(options, [*found.values()][:wanted])


def _deal_out(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    order = np.random.default_rng(options.seed).permutation(len(rows))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", order[: options.train]), ("test", order[options.train :])):
        lines = "".join(json.dumps(rows[index], ensure_ascii=False) + "\n" for index in part)
        (options.output_dir / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def tell_truth(options: argparse.Namespace) -> None:
    """How sums of scores agree with the truth: over the differences of pairs, and over responses."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    print("| scores | correlation with the truth, of pairs | of responses | the better one preferred |")
    print("|---|---|---|---|")
    for name, sums_PS, rewards_PS in _summed(options.folders, tokenizer, REWARDS[options.reward]):
        gaps_P, truths_P = sums_PS[:, 0] - sums_PS[:, 1], rewards_PS[:, 0] - rewards_PS[:, 1]
        differ_P = truths_P != 0
        right = wilson((gaps_P * truths_P > 0).sum(), differ_P.sum())
        of_pairs, of_responses = _correlation(gaps_P, truths_P), _correlation(sums_PS.ravel(), rewards_PS.ravel())
        print(f"| {name} | {of_pairs:.3f} | {of_responses:.3f} | {right:.3f} of {differ_P.sum():,} |")


def _summed(folders: list[str], tokenizer: Any, reward: Reward) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Name, summed scores (P, 2) and true rewards (P, 2) of the responses of each folder."""
    for folder in folders:
        sums, rewards = [], []
        for row in open_scores(folder).rows():
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in row.pair[2:]]
            sums.append([float(scores.sum(dtype=np.float64)) for scores in row.scores])
            rewards.append([reward({}, text) for text in texts])
        yield folder, np.array(sums), np.array(rewards)


def _correlation(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.corrcoef(ours, theirs)[0, 1])


def gained(options: argparse.Namespace) -> None:
    """True rewards of samples and KL, and what each model gained over the reference, paired by prompt."""
    print("| evaluation | model | true reward | gain | KL, nats a response | tokens |\n|---|---|---|---|---|---|")
    for name in options.folders:
        rows = pq.read_table(Path(name).with_suffix(".samples.parquet")).to_pylist()
        found: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            found.setdefault(row["model"], []).append(row)
        rewards = {model: _by_prompt(each, REWARDS[options.reward]) for model, each in found.items()}
        for model, each in found.items():
            of_model, of_reference = rewards[model], rewards["reference"]
            ratios = [{"gain": Ratio(np.array([mine[key] for key in of_reference]), np.ones(len(of_reference)))}
                      for mine in (of_model, of_reference)]  # fmt: skip
            gain = bootstrap_differences(*ratios, seed=0)["gain"]
            kl, tokens = (np.mean([row[column] for row in each]) for column in ("kl", "tokens"))
            mean = np.mean([*of_model.values()])
            print(f"| {Path(name).stem} | {model} | {mean:+.2f} | {gain:+.2f} | {kl:.3f} | {tokens:.1f} |")


def _by_prompt(rows: list[dict[str, Any]], reward: Reward) -> dict[int, float]:
    """The mean true reward of the samples for each prompt, in the order of prompts."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: int(row["pair_id"])):
        found.setdefault(int(row["pair_id"]), []).append(reward({}, row["response"]))
    return {key: float(np.mean(each)) for key, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    prompts = commands.add_parser("prompts")
    prompts.add_argument("prompts", nargs="+")
    pairs = commands.add_parser("pairs")
    pairs.add_argument("pairs")
    pairs.add_argument("--model", required=True)
    for command, run in ((prompts, write_prompts), (pairs, write_pairs)):
        command.add_argument("--train", type=int, default=512)
        command.add_argument("--test", type=int, default=96)
        command.add_argument("--seed", type=int, default=42)
        command.add_argument("--output-dir", type=Path, required=True)
        command.set_defaults(run=run)
    label = commands.add_parser("label")
    label.add_argument("pairs")
    label.add_argument("--output", type=Path, required=True)
    label.set_defaults(run=write_labelled)
    truth, samples = commands.add_parser("truth"), commands.add_parser("samples")
    truth.add_argument("--model", required=True)
    for command, run in ((truth, tell_truth), (samples, gained)):
        command.add_argument("folders", nargs="+")
        command.add_argument("--reward", choices=PLANTED, required=True)
        command.set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
