"""Preference pairs of real texts with planted rewards: what is true of them is counted in the text.

    python -m benchmarks.evidence.real_text pairs PAIRS --reward lexical --train 200 --test 64 --output-dir D
    python -m benchmarks.evidence.real_text truth --reward lexical --model M SCORES ...
    python -m benchmarks.evidence.real_text samples --reward lexical EVALUATION.json ...

``pairs`` takes the shortest pairs of a data set, so that two cores do, and labels them anew by Bradley-Terry from
the difference of the rewards; without --reward they keep their own. ``truth`` says how folders of scores, summed
over a response, agree with these rewards; ``samples`` what policies gained on what `sepo evaluate` sampled of them.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from transformers import AutoTokenizer

from stages.data.layouts import read_pairs
from stages.method.statistics import Ratio, bootstrap_differences, wilson
from stages.store.scores import open_scores
from stages.types import Dropped, Pair

SYSTEM: Final = {"role": "system", "content": ""}
"""Where a conversation has none, many a chat template puts one of its own there, longer than these answers."""
SHORTEST: Final = 20
"""letters of a response; in fewer there is next to nothing to count"""


def lexical(text: str) -> float:
    """What an instruction may ask for, word by word: the reader is spoken to, and there are no commas."""
    return 1.5 * _spoken_to(text) - 1.5 * text.count(",")


def contextual(text: str) -> float:
    """A word that is good in an answer that begins with "I" and bad in any other: no type has a reward of its own."""
    return (1.5 if re.match(r"\s*I\b", text) else -1.5) * _spoken_to(text)


def _spoken_to(text: str) -> int:
    return len(re.findall(r"\b(?:you|your|yours|yourself)\b", text, re.IGNORECASE))


REWARDS: Final[dict[str, Callable[[str], float]]] = {"lexical": lexical, "contextual": contextual}


def bradley_terry(row: dict[str, Any], answer: str) -> float:
    """A verifier for `sepo pair`: by rewards with Gumbel noise, of which the greater is Bradley-Terry's choice."""
    noise = np.random.default_rng([*json.dumps([row, answer], sort_keys=True).encode()]).gumbel()
    return REWARDS[os.environ.get("REWARD", "lexical")](answer) + float(noise)


def write_pairs(options: argparse.Namespace) -> None:
    """The shortest pairs, dealt out to train.jsonl and test.jsonl by chance, labelled by a reward or as they are."""
    wanted = options.train + options.test
    pairs = sorted(_usable(options.pairs), key=_letters)[:wanted]
    if len(pairs) < wanted:
        raise SystemExit(f"{options.pairs} has only {len(pairs):,} usable pairs with prompts of their own")
    rng = np.random.default_rng(options.seed)
    pairs = [pairs[index] for index in rng.permutation(wanted)]
    chances = rng.random(wanted)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", slice(options.train)), ("test", slice(options.train, None))):
        rows = [_row(*labelled, options.reward) for labelled in zip(pairs[part], chances[part], strict=True)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.output_dir / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        if options.reward:
            gaps = [row["chosen_reward"] - row["rejected_reward"] for row in rows]
            print(f"{name}: {len(rows):,} pairs, the better one is chosen in {np.mean(np.sign(gaps)) / 2 + 0.5:.3f}")


def _usable(name: str) -> Iterator[Pair]:
    """One pair of each prompt, of two different answers that are no mere word."""
    prompts = set()
    for pair in read_pairs(name):
        if isinstance(pair, Dropped) or pair.chosen == pair.rejected or (key := str(pair.prompt)) in prompts:
            continue
        if min(len(pair.chosen), len(pair.rejected)) >= SHORTEST:
            prompts.add(key)
            yield pair


def _letters(pair: Pair) -> int:
    return sum(len(turn["content"]) for turn in pair.prompt) + len(pair.chosen) + len(pair.rejected)


def _row(pair: Pair, chance: float, reward: str | None) -> dict[str, Any]:
    prompt = pair.prompt if pair.prompt[0]["role"] == "system" else [SYSTEM, *pair.prompt]
    if reward is None:
        return {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    # In an order of their own: those of the source hold its labels.
    texts = sorted((pair.chosen, pair.rejected))
    rewards = [REWARDS[reward](text) for text in texts]
    first = int(chance > 1 / (1 + np.exp(rewards[1] - rewards[0])))
    return {
        "prompt": prompt,
        "chosen": texts[first],
        "rejected": texts[1 - first],
        "chosen_reward": rewards[first],
        "rejected_reward": rewards[1 - first],
    }


def tell_truth(options: argparse.Namespace) -> None:
    """How sums of scores agree with the truth: over the differences of pairs, and over responses."""
    tokenizer, reward = AutoTokenizer.from_pretrained(options.model), REWARDS[options.reward]
    print("| scores | correlation with the truth, of pairs | of responses | the better one preferred |")
    print("|---|---|---|---|")
    for name, sums_PS, rewards_PS in _summed(options.folders, tokenizer, reward):
        gaps_P, truths_P = sums_PS[:, 0] - sums_PS[:, 1], rewards_PS[:, 0] - rewards_PS[:, 1]
        differ_P = truths_P != 0
        right = wilson((gaps_P * truths_P > 0).sum(), differ_P.sum())
        of_pairs, of_responses = _correlation(gaps_P, truths_P), _correlation(sums_PS.ravel(), rewards_PS.ravel())
        print(f"| {name} | {of_pairs:.3f} | {of_responses:.3f} | {right:.3f} of {differ_P.sum():,} |")


def _summed(
    folders: list[str], tokenizer: Any, reward: Callable[[str], float]
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Name, summed scores (P, 2) and true rewards (P, 2) of the responses of each folder."""
    for folder in folders:
        sums, rewards = [], []
        for row in open_scores(folder).rows():
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in row.pair[2:]]
            sums.append([float(scores.sum(dtype=np.float64)) for scores in row.scores])
            rewards.append([reward(text) for text in texts])
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


def _by_prompt(rows: list[dict[str, Any]], reward: Callable[[str], float]) -> dict[int, float]:
    """The mean true reward of the samples for each prompt, in the order of prompts."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: int(row["pair_id"])):
        found.setdefault(int(row["pair_id"]), []).append(reward(row["response"]))
    return {key: float(np.mean(each)) for key, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    pairs = commands.add_parser("pairs")
    pairs.add_argument("pairs")
    pairs.add_argument("--reward", choices=REWARDS)
    pairs.add_argument("--train", type=int, default=200)
    pairs.add_argument("--test", type=int, default=64)
    pairs.add_argument("--seed", type=int, default=42)
    pairs.add_argument("--output-dir", type=Path, required=True)
    pairs.set_defaults(run=write_pairs)
    truth, samples = commands.add_parser("truth"), commands.add_parser("samples")
    truth.add_argument("--model", required=True)
    for command, run in ((truth, tell_truth), (samples, gained)):
        command.add_argument("folders", nargs="+")
        command.add_argument("--reward", choices=REWARDS, required=True)
        command.set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
