"""`sepo compare`: recipes side by side on the demo, by true reward and divergence along training, over several runs.

A run is one evaluation (`sepo evaluate --demo --output E.json`) of a policy and of its snapshots, named by their steps.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.configs import CompareConfig
from stages.demo.frontier import Point, budgets, over_runs, paired, reward_at
from stages.errors import SepoError, shortened
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
KINDS: Final[dict[type, str]] = {
    dict: "an object",
    int: "a whole number",
    float: f"a number of at most {LARGEST:g}",
    object: "given",
}

ENDS: Final[dict[str, tuple[Callable[[Sequence[Point]], float], str]]] = {
    "true_reward": (lambda path: path[-1].reward, "+.2f"),
    "kl_per_response": (lambda path: path[-1].kl, ".2f"),
    "tokens": (lambda path: path[-1].tokens, ".1f"),
}
"""what is said of the end of a run, and in which form"""


class Evaluation(NamedTuple):
    """What is read of one file."""

    decided_by: dict[str, Any]
    """what must be the same in all of them, in the form of a manifest"""
    seed: int
    path: list[Point]


Paths = dict[int, list[Point]]
"""of one recipe: by the seed of the evaluation, the path of a run"""
Runs = dict[str, Paths]


def run(config: CompareConfig, reporter: Reporter) -> Summary:
    """Write compare.json, compare.md and compare.png."""
    files = [_named(item) for item in config.runs]
    runs = _read(files)
    inputs = {f"{name} {path}": Input(str(path), hash_file(path)) for name, path in files}
    against = _baseline(config.against, runs)
    settings = {"against": against, "recipes": list(runs)}
    with open_stage(STAGE, config, inputs, settings=settings) as work:
        return work.nothing_to_do("comparison") if work.finished else _compare(work, runs, against)


def _compare(work: Run, runs: Runs, against: str) -> Summary:
    at = budgets(paths.values() for paths in runs.values())
    tables = [_table(runs, at), *([_differences(runs, against, at)] if len(runs) > 1 else [])]
    write_json(work.folder / "compare.json", _as_json(runs, against, at))
    write_text(work.folder / "compare.md", "\n".join(table.markdown() for table in tables))
    draw_frontiers({name: list(paths.values()) for name, paths in runs.items()}, work.folder / PICTURE)
    work.finish(files=["compare.json", "compare.md", PICTURE], device="cpu", results={"recipes": len(runs)})
    rows = [("written", str(work.folder / "compare.md")), ("picture", str(work.folder / PICTURE))]
    return Summary(f"comparison in {work.folder}", rows, tables=tuple(tables))


def _named(item: str) -> tuple[str, Path]:
    name, _, file = item.partition("=")
    path = Path(file).expanduser()
    if not path.is_file():
        raise SepoError(f"there is no evaluation {file} (run {name})", hint=REMEDY)
    return name, path


def _read(files: Sequence[tuple[str, Path]]) -> Runs:
    """The runs of every recipe.

    Raises:
        SepoError: evaluations of other prompts, answers or rewards, or two of one recipe by the same seed.
    """
    runs: Runs = {}
    (_, first), *_ = files
    wanted = _evaluation(first).decided_by
    for name, file in files:
        found = _evaluation(file)
        if found.decided_by != wanted:
            raise SepoError(
                f"{file} cannot be compared with {first}: {'; '.join(differences(wanted, found.decided_by, {}))}",
                hint="evaluate all runs on the same demo and from the same reference, in the same way",
            )
        paths = runs.setdefault(name, {})
        if found.seed in paths:
            raise SepoError(
                f"{file} is a second run of {name} by the seed {found.seed}",
                hint="give each run once, trained and evaluated by a --seed of its own",
            )
        paths[found.seed] = found.path
    return runs


def _baseline(name: str | None, runs: Runs) -> str:
    """The recipe that the others are compared with.

    Raises:
        SepoError: no run is of that name.
    """
    if name is not None and name not in runs:
        raise SepoError(f"there is no run of {name} to compare with", hint=f"--against takes one of {', '.join(runs)}")
    return name or next(iter(runs))


def _evaluation(file: Path) -> Evaluation:
    """What is read of one file.

    Raises:
        SepoError: it is no evaluation on the demo, or something in it is missing or of another kind.
    """
    report = read_results(file, REMEDY)
    settings, inputs, models = (_field(file, report, name, dict) for name in ("settings", "inputs", "models"))
    decided_by = {
        "stage": report["stage"],
        "format": _field(file, report, "format", int),
        "settings": {name: _field(file, settings, name, object) for name in SAME_SETTINGS},
        "inputs": {name: inputs[name] for name in SAME_INPUTS if name in inputs},
    }
    points = [_point(file, name, _field(file, models, name, dict)) for name in models]
    if not any(point.step == 0 for point in points):
        raise SepoError(f"{file} has no {REFERENCE}", hint=REMEDY)
    return Evaluation(decided_by, _field(file, settings, "seed", int), sorted(points))


def _point(file: Path, name: str, model: dict[str, Any]) -> Point:
    """One model of a run, which is named by its step; the reference is step 0."""
    step = "0" if name == REFERENCE else name
    if not STEP.fullmatch(step):
        raise SepoError(f"{file}: model {name!r} is not named by its step", hint=REMEDY)
    figures = _field(file, model, "figures", dict)
    missing = [wanted for wanted in FIGURES if wanted not in figures]
    if missing:
        raise SepoError(f"{file} has no {missing[0]} of model {name}", hint=REMEDY)
    reward, kl, tokens = (_field(file, _field(file, figures, wanted, dict), "value", float) for wanted in FIGURES)
    if kl < -ROUNDING:
        raise SepoError(f"{file}: model {name} has a divergence of {kl:g}, which is below 0", hint=REMEDY)
    return Point(int(step), max(kl, 0.0), reward, tokens)


def _field(file: Path, holder: dict[str, Any], name: str, kind: type) -> Any:
    """What a part of a report has under a name, of that kind; whole numbers are numbers too, which are finite.

    Raises:
        SepoError: it is missing, or of another kind.
    """
    if name not in holder:
        raise SepoError(f"{file} is not what `sepo evaluate` writes: it has no {name!r}", hint=REMEDY)
    found = holder[name]
    if kind is float and isinstance(found, (int, float)) and not isinstance(found, bool) and abs(found) <= LARGEST:
        return float(found)
    if kind is float or not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise SepoError(
            f"{file} is not what `sepo evaluate` writes: {name!r} must be {KINDS[kind]}, got {shortened(repr(found))}",
            hint=REMEDY,
        )
    return found


def _table(runs: Runs, at: Sequence[float]) -> Table:
    columns = ["recipe", "runs", "true reward at the end", "KL, nats a response", "tokens", "gain at the end"]
    columns += [f"gain at KL {kl:g}" for kl in at]
    count = max(len(paths) for paths in runs.values())
    # Runs by one seed have the same samples of the reference.
    starts = {seed: path[:1] for paths in runs.values() for seed, path in paths.items()}
    rows = [["reference", f"{len(starts)}", *_ends(starts.values()), *["" for _ in at]]]
    rows += [
        [name, f"{len(paths)}", *_ends(paths.values()), *(_gain_at(paths.values(), kl) for kl in at)]
        for name, paths in runs.items()
    ]
    title = (
        f"The demo's recipes over {count} runs (mean, Student's 95% interval over runs; a gain is over the same run's"
    )
    return Table(f"{title} reference)", columns, rows)


def _ends(paths: Collection[list[Point]]) -> list[str]:
    ends = [_over([value(path) for path in paths], form) for value, form in ENDS.values()]
    return [*ends, _over([path[-1].reward - path[0].reward for path in paths], "+.2f")]


def _gain_at(paths: Collection[list[Point]], kl: float) -> str:
    rewards = [(path[0].reward, reward_at(path, kl)) for path in paths]
    return _over([None if there is None else there - start for start, there in rewards], "+.2f")


def _differences(runs: Runs, against: str, at: Sequence[float]) -> Table:
    """The others less one recipe: runs by one seed saw the pairs in one order, and answered the same prompts."""
    columns = ["recipe", "seeds", "true reward at the end", "KL, nats a response", "tokens"]
    columns += [f"true reward at KL {kl:g}" for kl in at]
    rows = [_difference(name, paths, runs[against], at) for name, paths in runs.items() if name != against]
    title = f"Differences from {against}, paired by seed (mean, Student's 95% interval over seeds; each stands alone:"
    return Table(f"{title} not corrected for {len(rows)} comparisons)", columns, rows)


def _difference(name: str, ours: Paths, theirs: Paths, at: Sequence[float]) -> list[str]:
    values = [value for value, _ in ENDS.values()] + [partial(reward_at, kl=kl) for kl in at]
    forms = ["+" + form.lstrip("+") for _, form in ENDS.values()] + ["+.2f"] * len(at)
    found = [list(paired(ours, theirs, value).values()) for value in values]
    return [name, f"{len(found[0])}", *(_over(some, form) for some, form in zip(found, forms, strict=True))]


def _over(values: Sequence[float | None], form: str) -> str:
    """The mean over all runs; none where some get not so far, for it would be that of the furthest runs alone."""
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return f"{len(there)} of {len(values)} runs reach it"
    if not there:
        return ""
    interval = over_runs(there)
    return format(interval, form) if interval.low > float("-inf") else format(interval.value, form)


def _as_json(runs: Runs, against: str, at: Sequence[float]) -> dict[str, Any]:
    return {
        "kl": list(at),
        "against": against,
        "recipes": {
            name: {
                "seeds": list(paths),
                "runs": [[point._asdict() for point in path] for path in paths.values()],
                **{
                    figure: over_runs([value(path) for path in paths.values()]).as_json()
                    for figure, (value, _) in ENDS.items()
                },
                "true_reward_at_kl": [[reward_at(path, kl) for path in paths.values()] for kl in at],
                "less": {figure: paired(paths, runs[against], value) for figure, (value, _) in ENDS.items()}
                | {"true_reward_at_kl": [paired(paths, runs[against], partial(reward_at, kl=kl)) for kl in at]},
            }
            for name, paths in runs.items()
        },
    }
