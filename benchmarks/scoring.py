"""How fast `sepo score` is, beside the arithmetic floor and the published procedure, in one run.

    python benchmarks/scoring.py --oracle runs/oracle --dataset pairs.jsonl.gz --pairs 24 --dtype float32 --rounds 5

Every round runs, one after the other on the same pairs:

floor       the bare forward of the same unique tokens, packed, and the head's matrix product on the response rows;
            both models; no log-softmax, no data, no files
ours        the whole stage without loading models: tokenise, score, write shards, read them back and judge
unshared    the same log-probs with each prompt computed for each answer
known       ours where the reference's log-probs are known from training
published   one response at a time, float32, full log-softmax, both models, as the paper's authors' script has it, with
            its gradients switched off (it keeps them, which only makes it slower)

Prints medians, and ratios within a round (their median), which a noisy machine moves least.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import torch

from stages import score
from stages.configs import ScoreConfig
from stages.devices.precision import products, weights_of
from stages.logprobs.attention import packed_attention
from stages.logprobs.batches import whole
from stages.logprobs.logps import Forward, response_logps
from stages.logprobs.packing import pack, packed_groups
from stages.logprobs.paths import find_paths
from stages.models import loading
from stages.models.folders import load_model, load_tokenizer, model_hash
from stages.reporting import Quiet
from stages.store.logps import FILE, write_logps
from stages.tokens.dataset import LengthLimit, load_pairs
from stages.tokens.encode import Encoder
from stages.types import SIDES, TokenPair

CPU = torch.device("cpu")
HEAD_ROWS = 256


@torch.inference_mode()
def floor(forwards: list[Forward], pairs: list[TokenPair], max_tokens: int) -> None:
    examples = [whole(pair) for pair in pairs]
    for group in packed_groups(examples, max_tokens):
        batch = pack([examples[place] for place in group], CPU)
        for forward in forwards:
            with packed_attention(forward.model, batch.layout):
                inputs = {"input_ids": batch.ids_T[None], "position_ids": batch.positions_T[None], "use_cache": False}
                hidden_TH = forward.model.base_model(**inputs).last_hidden_state[0]
            for rows in torch.split(batch.sources_N, HEAD_ROWS):
                forward.model.get_output_embeddings()(hidden_TH[rows])


@torch.no_grad()
def published(models: list[torch.nn.Module], pairs: list[TokenPair]) -> None:
    for pair in pairs:
        for response in (pair.chosen_ids, pair.rejected_ids):
            ids = torch.tensor([[*pair.prompt_ids.tolist(), *response.tolist()]])
            logps = [model(input_ids=ids).logits.float().log_softmax(-1).cpu() for model in models]
            taken = [each[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1) for each in logps]
            (taken[0] - taken[1])[0, len(pair.prompt_ids) - 1 :].tolist()


def logps(forwards: list[Forward], pairs: list[TokenPair], max_tokens: int) -> None:
    response_logps(forwards, pairs, max_tokens=max_tokens, device=CPU, task=Quiet())


def apart(pairs: list[TokenPair]) -> list[TokenPair]:
    """Each answer as a pair of its own, so that no two share a prompt."""
    sides = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    return [TokenPair(number, pairs[number // 2].prompt_ids, ids, ids[:0]) for number, ids in enumerate(sides)]


class Stage:
    """`sepo score` on models that are loaded already."""

    def __init__(self, oracle: Path, dataset: str, options: argparse.Namespace) -> None:
        self._options = options
        self._oracle = oracle
        self._dataset = dataset
        patch.object(loading, "load_model", cache(load_model)).start()

    def run(self, *, known: bool) -> dict[str, object]:
        with tempfile.TemporaryDirectory() as folder:
            config = ScoreConfig(
                oracle=str(self._oracle) if known else None,
                oracle_model=None if known else str(self._oracle / "oracle"),
                reference_model=None if known else str(self._oracle / "reference"),
                dataset=self._dataset,
                output_dir=f"{folder}/scores",
                max_length=self._options.max_length,
                max_tokens_per_device=self._options.max_tokens,
                precision=self._options.dtype,
                noise_check=0.0,
            )
            score.run(config, Quiet())
            return dict(json.loads(Path(folder, "scores/manifest.json").read_text())["counts"])


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--oracle", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=ScoreConfig.max_tokens_per_device)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    folders = [options.oracle / name for name in ("oracle", "reference")]
    tokenizer = load_tokenizer(folders[0], trust_remote_code=False)
    limit = LengthLimit(options.max_length)
    kept, _ = load_pairs(options.dataset, Encoder(tokenizer), limit, columns={}, reporter=Quiet())
    pairs = kept[: options.pairs]
    last = pairs[-1].pair_id
    exact = [load_model(folder, trust_remote_code=False).eval() for folder in folders]
    dtype = weights_of(options.dtype)
    models = exact if dtype == torch.float32 else [load_model(f, trust_remote_code=False, dtype=dtype) for f in folders]
    forwards = [find_paths(model, Quiet()) for model in models]
    if not (options.oracle / FILE).exists():
        [known] = response_logps([find_paths(exact[1], Quiet())], pairs, max_tokens=4096, device=CPU, task=Quiet())
        write_logps(options.oracle, pairs, known, model_hash(folders[1]))
    stage = Stage(options.oracle, f"{options.dataset}[:{last + 1}]", options)
    stage.run(known=False)
    works: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(forwards, pairs, options.max_tokens),
        "ours": lambda: stage.run(known=False),
        "unshared": lambda: logps(forwards, apart(pairs), options.max_tokens),
        "shared": lambda: logps(forwards, pairs, options.max_tokens),
        "published": lambda: published(exact, pairs),
    }
    if options.dtype == "float32":
        works["known"] = lambda: stage.run(known=True)
    rounds: list[dict[str, float]] = []
    with products(options.dtype):
        for number in range(options.rounds):
            rounds.append({name: timed(work) for name, work in works.items()})
            print(number, {name: round(seconds, 2) for name, seconds in rounds[-1].items()}, flush=True)
    ratios = {
        "floor / ours": [r["floor"] / r["ours"] for r in rounds],
        "published / ours": [r["published"] / r["ours"] for r in rounds],
        "unshared / shared": [r["unshared"] / r["shared"] for r in rounds],
    }
    if options.dtype == "float32":
        ratios["published / known"] = [r["published"] / r["known"] for r in rounds]
    parts = zip(("prompt", *SIDES), zip(*(pair.parts for pair in pairs), strict=True), strict=True)
    report = {
        "pairs": len(pairs),
        "tokens": {part: sum(map(len, ids)) for part, ids in parts},
        "seconds": {name: round(statistics.median(r[name] for r in rounds), 2) for name in works},
        "ratios": {name: round(statistics.median(values), 2) for name, values in ratios.items()},
        "options": {name: str(value) for name, value in vars(options).items()},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
