"""`sepo compare`: recipes side by side on the demo, by true reward and divergence along training, over several runs.

A run is one evaluation (`sepo evaluate --demo --output E.json`) of a policy and of its snapshots, named by their steps.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.configs import CompareConfig
from stages.demo.frontier import Point, budgets, paired, reward_at
from stages.errors import SepoError, borrowed, shortened
from stages.method.statistics import student_interval
from stages.report.curves import draw_frontiers
from stages.reporting import Reporter, Summary, Table
from stages.store.files import hash_file, write_json, write_text
from stages.store.manifest import Input, differences
from stages.store.results import read_results
from stages.store.run import Run, open_stage

STAGE: Final = "compare"
PICTURE: Final = "compare.png"
REFERENCE: Final = "reference"
REMEDY: Final = "make it by `sepo evaluate --demo D --reference-model R --model STEP=FOLDER ... --output E.json`"

SAME_SETTINGS: Final = ("columns", "max_length", "overlong", "samples", "max_new_tokens")
SAME_INPUTS: Final = ("dataset", "truth", REFERENCE)
"""what decides prompts, answers and rewards, but for the seed"""

FIGURES: Final = ("true_reward", "sample_kl_per_response", "sample_tokens")
STEP: Final = re.compile(r"[0-9]{1,15}")
LARGEST: Final = 1e15
"""beyond it the mean and the square of a figure are no longer to be had"""
ROUNDING: Final = 0.01
"""nats a response: how far below 0 the float32 sums of a divergence of 0 may come out"""

RunPath = list[Point]
"""of a run, by step"""
Runs = dict[str, dict[int, RunPath]]
"""by recipe, and by the seed of the evaluation"""


class Measure(NamedTuple):
    """Something that is said of a run."""

    title: str
    of: Callable[[Sequence[Point]], Any]
    """a number; None where the run does not get so far"""
    form: str


ENDS: Final = {
    "true_reward": Measure("true reward at the end", lambda path: path[-1].reward, "+.2f"),
    "kl_per_response": Measure("KL, nats a response", lambda path: path[-1].kl, ".2f"),
    "tokens": Measure("tokens", lambda path: path[-1].tokens, ".1f"),
}


def run(config: CompareConfig, reporter: Reporter) -> Summary:
    """Write compare.json, compare.md and compare.png."""
    files, runs, against = _check(config)
    inputs = {f"{name} {path}": Input(str(path), hash_file(path)) for name, path in files}
    settings = {"against": against, "recipes": list(runs)}
    with open_stage(STAGE, config, inputs, settings=settings) as work:
        return work.nothing_to_do("comparison") if work.finished else _write(work, runs, against)


def _check(config: CompareConfig) -> tuple[list[tuple[str, Path]], Runs, str]:
    """The evaluations with the names of their recipes, what is in them, and the recipe to compare with."""
    files = [(name, Path(file).expanduser()) for name, _, file in (item.partition("=") for item in config.runs)]
    for name, path in files:
        if not path.is_file():
            raise SepoError(f"there is no evaluation {path} (run {name})", hint=REMEDY)
    runs: Runs = {}
    wanted: dict[str, Any] = {}
    for name, file in files:
        decided_by, seed, points = _evaluation(file)
        wanted = wanted or decided_by
        if decided_by != wanted:
            raise SepoError(
                f"{file} cannot be compared with {files[0][1]}: {'; '.join(differences(wanted, decided_by, {}))}",
                hint="evaluate all runs on the same demo and from the same reference, in the same way",
            )
        if seed in runs.setdefault(name, {}):
            raise SepoError(
                f"{file} is a second run of {name} by the seed {seed}",
                hint="give each run once, trained and evaluated by a --seed of its own",
            )
        runs[name][seed] = points
    if config.against is not None and config.against not in runs:
        hint = f"--against takes one of {', '.join(runs)}"
        raise SepoError(f"there is no run of {config.against} to compare with", hint=hint)
    return files, runs, config.against or next(iter(runs))


def _evaluation(file: Path) -> tuple[dict[str, Any], int, RunPath]:
    """Of one file what must be the same in all, in the form of a manifest; the seed; and the models by step."""
    report = read_results(file, REMEDY)
    with borrowed(f"{file} is not what `sepo evaluate` writes", REMEDY):
        settings, inputs = report["settings"], report["inputs"]
        decided_by = {
            "stage": report["stage"],
            "format": _number(report["format"]),
            "settings": {name: settings[name] for name in SAME_SETTINGS},
            "inputs": {name: inputs[name] for name in SAME_INPUTS if name in inputs},
        }
        if type(seed := settings["seed"]) is not int:
            raise TypeError(f"its seed is {seed!r}")
        path = sorted(_point(file, name, model["figures"]) for name, model in report["models"].items())
    if not path or path[0].step > 0:
        raise SepoError(f"{file} has no {REFERENCE}", hint=REMEDY)
    return decided_by, seed, path


def _point(file: Path, name: str, figures: dict[str, Any]) -> Point:
    """One model of a run, which is named by its step; the reference is step 0."""
    step = "0" if name == REFERENCE else name
    if not STEP.fullmatch(step):
        raise SepoError(f"{file}: model {name!r} is not named by its step", hint=REMEDY)
    missing = [wanted for wanted in FIGURES if wanted not in figures]
    if missing:
        raise SepoError(f"{file} has no {missing[0]} of model {name}", hint=REMEDY)
    reward, kl, tokens = (_number(figures[wanted]["value"]) for wanted in FIGURES)
    if kl < -ROUNDING:
        raise SepoError(f"{file}: model {name} has a divergence of {kl:g}, which is below 0", hint=REMEDY)
    return Point(int(step), max(kl, 0.0), reward, tokens)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= LARGEST:
        raise ValueError(f"{shortened(repr(value))} is no number of at most {LARGEST:g}")
    return float(value)


def _write(work: Run, runs: Runs, against: str) -> Summary:
    at = budgets(paths.values() for paths in runs.values())
    tables = [_recipes(runs, at), *([_differences(runs, against, at)] if len(runs) > 1 else [])]
    write_json(work.folder / "compare.json", _as_json(runs, against, at))
    write_text(work.folder / "compare.md", "\n".join(table.markdown() for table in tables))
    draw_frontiers({name: list(paths.values()) for name, paths in runs.items()}, work.folder / PICTURE)
    work.finish(files=["compare.json", "compare.md", PICTURE], device="cpu", results={"recipes": len(runs)})
    rows = [("written", str(work.folder / "compare.md")), ("picture", str(work.folder / PICTURE))]
    return Summary(f"comparison in {work.folder}", rows, tables=tuple(tables))


def _recipes(runs: Runs, at: Sequence[float]) -> Table:
    ends = [*ENDS.values(), Measure("gain at the end", lambda path: path[-1].reward - path[0].reward, "+.2f")]
    gains = [Measure(f"gain at KL {kl:g}", partial(_gain_at, kl=kl), "+.2f") for kl in at]
    # Runs by one seed have the same samples of the reference.
    starts = {seed: path[:1] for paths in runs.values() for seed, path in paths.items()}
    rows = [[REFERENCE, *_line(starts.values(), ends), *("" for _ in gains)]]
    rows += [[name, *_line(paths.values(), [*ends, *gains])] for name, paths in runs.items()]
    title = (
        f"The demo's recipes over {max(map(len, runs.values()))} runs"
        " (mean, Student's 95% interval over runs; a gain is over the same run's reference)"
    )
    return Table(title, ["recipe", "runs", *(measure.title for measure in (*ends, *gains))], rows)


def _line(paths: Collection[RunPath], measures: Sequence[Measure]) -> list[str]:
    """How many runs there are, and each measure over them."""
    return [f"{len(paths)}", *(_over([each.of(path) for path in paths], each.form) for each in measures)]


def _gain_at(path: Sequence[Point], kl: float) -> float | None:
    there = reward_at(path, kl)
    return None if there is None else there - path[0].reward


def _differences(runs: Runs, against: str, at: Sequence[float]) -> Table:
    """The others less one recipe: runs by one seed saw the pairs in one order, and answered the same prompts."""
    measures = [*ENDS.values(), *(Measure(f"true reward at KL {kl:g}", partial(reward_at, kl=kl), "+.2f") for kl in at)]
    rows = []
    for name, paths in runs.items():
        if name != against:
            found = [list(paired(paths, runs[against], measure.of).values()) for measure in measures]
            forms = ["+" + measure.form.lstrip("+") for measure in measures]
            rows.append([name, f"{len(found[0])}", *map(_over, found, forms)])
    title = (
        f"Differences from {against}, paired by seed (mean, Student's 95% interval over seeds; each stands alone:"
        f" not corrected for {len(rows)} comparisons)"
    )
    return Table(title, ["recipe", "seeds", *(measure.title for measure in measures)], rows)


def _over(values: Sequence[float | None], form: str) -> str:
    """The mean over all runs; none where some get not so far, for it would be that of the furthest runs alone."""
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return f"{len(there)} of {len(values)} runs reach it"
    if not there:
        return ""
    interval = student_interval(there)
    return format(interval, form) if interval.low > float("-inf") else format(interval.value, form)


def _as_json(runs: Runs, against: str, at: Sequence[float]) -> dict[str, Any]:
    rewards = [partial(reward_at, kl=kl) for kl in at]
    return {
        "kl": list(at),
        "against": against,
        "recipes": {
            name: {
                "seeds": list(paths),
                "runs": [[point._asdict() for point in path] for path in paths.values()],
                **{
                    figure: student_interval([each.of(path) for path in paths.values()]).as_json()
                    for figure, each in ENDS.items()
                },
                "true_reward_at_kl": [[reward(path) for path in paths.values()] for reward in rewards],
                "less": {figure: paired(paths, runs[against], each.of) for figure, each in ENDS.items()}
                | {"true_reward_at_kl": [paired(paths, runs[against], reward) for reward in rewards]},
            }
            for name, paths in runs.items()
        },
    }
