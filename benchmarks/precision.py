"""How far each way of computing moves scores and the selection, beside float32, and what it costs.

    python benchmarks/precision.py --oracle runs/oracle --dataset pairs.jsonl.gz --pairs 48

The last three recipes are not offered by `sepo score --precision`; they stand here to show why.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages.devices.precision import products, weights_of
from stages.logprobs.logps import Forward, response_logps
from stages.logprobs.paths import find_paths
from stages.method.noise import measure_noise
from stages.models.folders import load_model, load_tokenizer
from stages.models.scorer import difference
from stages.reporting import Quiet
from stages.tokens.dataset import LengthLimit, load_pairs
from stages.tokens.encode import Encoder
from stages.types import PairLogps, TokenPair

CPU = torch.device("cpu")


def half_layers(model: Any) -> Any:
    """The first half of the layers in bfloat16, the rest, the head and what flows between the layers in float32."""
    layers = model.base_model.layers
    for layer in layers[: len(layers) // 2]:
        layer.to(torch.bfloat16)
        layer.register_forward_pre_hook(_cast(torch.bfloat16), with_kwargs=True)
        layer.register_forward_hook(lambda layer, given, result: result.float())
    return model


def _cast(dtype: torch.dtype) -> Callable[..., Any]:
    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(move, value))
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return lambda layer, given, named: (move(given), {name: move(value) for name, value in named.items()})


def forwards(
    folders: list[Path], dtype: torch.dtype, change: Callable[[Any], Any] = lambda model: model
) -> list[Forward]:
    loaded = [change(load_model(folder, trust_remote_code=False, dtype=dtype)) for folder in folders]
    found = [find_paths(model, Quiet()) for model in loaded]
    return [forward._replace(packs=True) for forward in found]


def score(given: list[Forward], pairs: list[TokenPair], max_tokens: int) -> list[PairLogps]:
    oracle, reference = response_logps(given, pairs, max_tokens=max_tokens, device=CPU, task=Quiet())
    return [difference(ours, theirs) for ours, theirs in zip(oracle, reference, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--oracle", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=4096)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folders = [options.oracle / name for name in ("oracle", "reference")]
    encoder = Encoder(load_tokenizer(folders[0], trust_remote_code=False))
    kept, _ = load_pairs(options.dataset, encoder, LengthLimit(512), columns={}, reporter=Quiet())
    pairs = kept[: options.pairs]

    exact, half = forwards(folders, torch.float32), forwards(folders, weights_of("bfloat16"))
    autocast = [r._replace(context=lambda: torch.autocast("cpu", torch.bfloat16)) for r in exact]
    own_head = [r._replace(chunked=False) for r in half]
    recipes: dict[str, tuple[list[Forward], str]] = {
        "float32": (exact, "float32"),
        "medium": (exact, "medium"),
        "bfloat16": (half, "bfloat16"),
        "(bfloat16 with its own bfloat16 head)": (own_head, "bfloat16"),
        "(float32 weights under autocast)": (autocast, "float32"),
        "(first half of the layers in bfloat16)": (forwards(folders, torch.float32, half_layers), "float32"),
    }
    scores: dict[str, list[PairLogps]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(options.rounds):
        for name, (given, precision) in recipes.items():
            with products(precision):
                start = time.perf_counter()
                scores[name] = score(given, pairs, options.max_tokens)
                seconds[name].append(time.perf_counter() - start)
    print(f"{len(pairs)} pairs of {options.dataset}, torch {torch.__version__}, {options.threads} threads")
    print("| recipe | mean / p99 error, nats | same tokens selected, k = 0.3 / 0.1 | time |\n|---|---|---|---|")
    for name, found in scores.items():
        noise = measure_noise(found, scores["float32"])
        ratio = statistics.median(ours / exact for ours, exact in zip(seconds[name], seconds["float32"], strict=True))
        agreement = f"{noise.agreement['0.3']:.3f} / {noise.agreement['0.1']:.3f}"
        print(f"| {name} | {noise.mean:.2g} / {noise.p99:.2g} | {agreement} | {ratio:.2f} |")
    print(f"median |score| {noise.median_score:.3f} nats")


if __name__ == "__main__":
    main()
