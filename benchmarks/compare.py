"""Recipes at equal KL on fresh worlds of the demo, as shares of the best that is possible there: `make compare`.

    python -m benchmarks.compare --seeds 1 2 3 4 --jobs 2 --output-dir runs/compare
    python -m benchmarks.compare --questions --seeds 1 2 3 --output-dir runs/questions

In a world language, labels, model, reference and oracles are drawn anew by its seed; what is run there stands in
examples/compare.yaml. All policies of a world are read on the same samples of its reference: KL by exact sums over the
vocabulary, true reward by importance weights (`stages.demo.shared_samples`). The frontier is the reference tilted by
the true reward. A recipe's gain at some KL is read between the ends of its settings (`stages.demo.frontier.envelope`).
Run again, it goes on where it was.
"""

import argparse
import gc
import json
import multiprocessing
import operator
import os
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from sepo_cli.main import app
from stages.demo.frontier import best_gain, envelope
from stages.demo.language import load_truth
from stages.demo.shared_samples import draw_shared_samples, worth
from stages.logprobs.paths import find_paths
from stages.method.statistics import student_interval
from stages.models.folders import load_model, load_tokenizer
from stages.reporting import Quiet, Table
from stages.tokens.dataset import LengthLimit, load_pairs
from stages.tokens.encode import Encoder

EXAMPLES = Path(__file__).parents[1] / "examples"
BUDGETS = (0.1, 0.2, 0.4)
"""of the tables, nats a response"""
DRAWN = tuple(0.01 * step**2 for step in range(1, 10))
"""of the picture"""
REFERENCE = "published/reference"

World = dict[str, Any]
"""what `read_world` says of one"""
Gains = Sequence[float | None]
"""by world; None where a recipe does not get so far"""


def sepo(line: str, **more: Any) -> None:
    """Run a command line of `sepo` in this process, with further options."""
    options = [text for name, value in more.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    texts = [text.replace("{recipe}", str(EXAMPLES / "denoised")) for text in shlex.split(line)]
    code = app([*texts, *options, "--overwrite"], prog_name="sepo", standalone_mode=False)
    if code:
        # Interrupted or terminated; an error of any other kind was raised.
        raise SystemExit(code)


def run_world(seed: int, recipes: Mapping[str, Any], folder: Path, samples: int, demo: str) -> World:
    """Everything of one world, in a folder and a process of its own; what the commands say goes to log.txt."""
    place = folder / str(seed)
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    # Every training ends in a collection, which would go through all that the libraries hold.
    gc.freeze()
    with open("log.txt", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        policies = make_world(seed, recipes, demo)
        world = {"seed": seed} | read_world(policies, seed, samples)
    Path("world.json").write_text(json.dumps(world, indent=1))
    return world


def make_world(seed: int, recipes: Mapping[str, Any], demo: str) -> dict[str, list[Path]]:
    """Run all commands; the policies of each recipe, a setting each."""
    for line in recipes["world"]:
        seeded = {} if line.startswith(("score ", "denoise ", "cut-model ")) else {"seed": seed}
        sepo(f"{line} {demo}" if line.startswith("make-demo ") else line, **seeded)
    policies = {
        name: [Path("policies", f"{name} {number}") for number in range(len(settings))]
        for name, settings in recipes["recipes"].items()
    }
    for name, settings in recipes["recipes"].items():
        for setting, output in zip(settings, policies[name], strict=True):
            sepo(f"train-policy {recipes['policy']} {setting}", output_dir=output, seed=seed)
    return policies


def read_world(policies: Mapping[str, Sequence[Path]], seed: int, samples: int) -> World:
    """What each setting of each recipe is worth, in the folder of a world."""

    def forward(folder: Path) -> Any:
        return find_paths(load_model(folder, trust_remote_code=False), Quiet())

    base, tokenizer = forward(Path(REFERENCE)), load_tokenizer(Path(REFERENCE), trust_remote_code=False)
    held_out, _ = load_pairs("demo/test.jsonl", Encoder(tokenizer), LengthLimit(512), columns={}, reporter=Quiet())
    prompts = [pair.prompt_ids for pair in held_out]
    shared = draw_shared_samples(base, tokenizer, load_truth(Path("demo")), prompts, pairs=samples // 2, seed=seed)
    return {
        "cpu_seconds": time.process_time(),
        "recipes": {
            name: [worth(forward(folder), base, shared)._asdict() for folder in folders]
            for name, folders in policies.items()
        },
        "frontier": {f"{kl:g}": best_gain(shared.rewards_S, kl) for kl in (*BUDGETS, *DRAWN)},
        "denoise": json.loads(Path("denoised/manifest.json").read_text())["results"],
    }


def frontier(worlds: Sequence[World], kl: float) -> Gains:
    return [world["frontier"][f"{kl:g}"] for world in worlds]


def gains(worlds: Sequence[World], name: str, kl: float) -> Gains:
    return [envelope([(each["kl"], each["gain"]) for each in world["recipes"][name]], kl) for world in worlds]


def both(function: Callable[[float, float], float], ours: Gains, theirs: Gains) -> Gains:
    """World by world, where both get so far."""
    return [None if a is None or b is None else function(a, b) for a, b in zip(ours, theirs, strict=True)]


def reached(values: Gains) -> list[float]:
    """Of the worlds where a recipe gets so far."""
    return [value for value in values if value is not None]


def over(values: Gains, form: str = "+.2f") -> str:
    """The mean over worlds with Student's 95% interval; and of how many, where not all get so far."""
    there = reached(values)
    fewer = f" ({len(there)} of {len(values)} worlds)" if len(there) < len(values) else ""
    if len(there) < 2:
        return "".join(f"{value:{form}}" for value in there) + fewer
    return f"{student_interval(there):{form}}{fewer}"


def tables(worlds: Sequence[World], against: str) -> list[Table]:
    names = list(worlds[0]["recipes"])
    lines: dict[str, list[list[str]]] = {"Gain in true reward": [["frontier"]], "Share of the frontier": [], "Less": []}
    gained, shares, less = lines.values()
    gained[0] += [over(frontier(worlds, kl)) for kl in BUDGETS]
    for name in names:
        found = {kl: gains(worlds, name, kl) for kl in BUDGETS}
        gained.append([name, *map(over, found.values())])
        shares.append([name, *(over(both(operator.truediv, found[kl], frontier(worlds, kl)), ".2f") for kl in BUDGETS)])
        differences = [both(operator.sub, found[kl], gains(worlds, against, kl)) for kl in BUDGETS]
        less += [[name, *(over(each, "+.3f") for each in differences)]] if name != against else []
    of = f"{len(worlds)} worlds, mean and Student's 95% interval over worlds"
    columns = ["recipe", *(f"KL {kl:g}" for kl in BUDGETS)]
    return [
        Table(f"Gain in true reward over the reference at equal KL, nats a response ({of})", columns, gained),
        Table(f"Share of the frontier ({of})", columns, shares),
        Table(
            f"Gain less that of {against}, paired by world ({of}; not corrected for {len(less)} lines)", columns, less
        ),
        labels(worlds, of),
    ]


def labels(worlds: Sequence[World], of: str) -> Table:
    """What the labels of pairs that the oracles had not seen say of the scores."""
    found = [world["denoise"] for world in worlds]
    parts, kinds = found[0]["calibration"], found[0]["accuracy_on_unseen_pairs"]
    rows = [
        [f"coefficient of the {part}", over([each["calibration"][part]["coefficient"] for each in found])]
        for part in parts
    ] + [
        [f"accuracy, {kind}", over([each["accuracy_on_unseen_pairs"][kind]["value"] for each in found], ".3f")]
        for kind in kinds
    ]
    return Table(f"What unseen labels say of the scores ({of})", ["figure", "scores of the denoised recipe"], rows)


def draw(worlds: Sequence[World], path: Path) -> None:
    """Gain against KL, a line a recipe: the mean over the worlds, as far as all of them get."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.2), layout="constrained", dpi=110)
    axes: Any = figure.add_subplot()
    curves = {"frontier": [frontier(worlds, kl) for kl in DRAWN]}
    curves |= {name: [gains(worlds, name, kl) for kl in DRAWN] for name in worlds[0]["recipes"]}
    for number, (name, curve) in enumerate(curves.items()):
        points = [
            (kl, statistics.mean(reached(each))) for kl, each in zip(DRAWN, curve, strict=True) if None not in each
        ]
        style = {"color": "black", "linestyle": "--"} if number == 0 else {"color": f"C{number - 1}", "marker": "."}
        axes.plot(*zip((0.0, 0.0), *points, strict=True), label=name, **style)
    axes.set_xlabel("KL from the reference, nats a response")
    axes.set_ylabel("gain in true reward of a response")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4], help="of the worlds")
    made = "its commands have to make published/reference, where policies start, and denoised/"
    parser.add_argument("--recipes", type=Path, default=EXAMPLES / "compare.yaml", help=made)
    parser.add_argument("--questions", action="store_true", help="its questions, not its recipes")
    parser.add_argument("--recipe", action="append", help="of these, this one alone; may be given several times")
    parser.add_argument("--demo", default="", help="further options of make-demo, such as '--rewards contextual'")
    parser.add_argument("--samples", type=int, default=2048, help="of each world's reference, two to a prompt")
    parser.add_argument("--jobs", type=int, default=1, help="worlds at once")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/compare"))
    given = parser.parse_args()
    recipes = yaml.safe_load(given.recipes.read_text())
    if given.questions:
        recipes["recipes"] = recipes["questions"]
    if given.recipe:
        if unknown := {*given.recipe} - {*recipes["recipes"]}:
            parser.error(f"no recipe {', '.join(unknown)}; there are {', '.join(recipes['recipes'])}")
        # What the others are compared with is always there.
        recipes["recipes"] = {
            name: recipes["recipes"][name] for name in {recipes["against"]: 0} | dict.fromkeys(given.recipe)
        }
    folder = given.output_dir.resolve()
    one = partial(run_world, recipes=recipes, folder=folder, samples=given.samples, demo=given.demo)
    worlds = []
    # A process a world: what runs in one changes its folder, and torch must not be forked.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        running = [pool.submit(one, seed) for seed in given.seeds]
        try:
            for each in running:
                worlds.append(world := each.result())
                print(f"world {world['seed']}: {world['cpu_seconds']:.0f} CPU-seconds", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    found = tables(worlds, recipes["against"])
    (folder / "compare.json").write_text(json.dumps(worlds, indent=1))
    (folder / "compare.md").write_text("\n".join(table.markdown() for table in found))
    draw(worlds, folder / "compare.png")
    print((folder / "compare.md").read_text())


if __name__ == "__main__":
    main()
