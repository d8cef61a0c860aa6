"""`sepo compare`: recipes side by side on the demo, by true reward and divergence along training, over several runs.

A run is one evaluation (`sepo evaluate --demo --output E.json`) of a policy and of its snapshots, named by their steps.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stages.configs import CompareConfig, content_settings
from stages.errors import SepoError
from stages.method.frontier import Point, budgets, over_runs, reward_at
from stages.method.statistics import Interval
from stages.model.curves import draw_frontiers
from stages.reporting import Reporter, Summary, Table
from stages.store.files import hash_file, write_json, write_text
from stages.store.manifest import Input, open_run
from stages.store.results import read_results

STAGE: Final = "compare"
PICTURE: Final = "compare.png"
REFERENCE: Final = "reference"
REMEDY: Final = "make it by `sepo evaluate --demo D --reference-model R --model STEP=FOLDER ... --output E.json`"

Runs = dict[str, list[list[Point]]]
"""by recipe, the path of every run"""


def run(config: CompareConfig, reporter: Reporter) -> Summary:
    """Write compare.json, compare.md and compare.png."""
    files = [_named(item) for item in config.runs]
    inputs = {f"{name} {path}": Input(str(path), hash_file(path)) for name, path in files}
    work = open_run(Path(config.output_dir), STAGE, content_settings(config), inputs, overwrite=config.overwrite)
    if work.finished:
        return Summary(f"comparison in {work.folder}", [("already finished", str(work.folder / "compare.md"))], False)
    runs: Runs = {}
    for name, path in files:
        runs.setdefault(name, []).append(_path(path))
    at = budgets(runs.values())
    table = _table(runs, at)
    write_json(work.folder / "compare.json", _as_json(runs, at))
    write_text(work.folder / "compare.md", table.markdown())
    draw_frontiers(runs, work.folder / PICTURE)
    work.finish(files=["compare.json", "compare.md", PICTURE], device="cpu", results={"recipes": len(runs)})
    rows = [("written", str(work.folder / "compare.md")), ("picture", str(work.folder / PICTURE))]
    return Summary(f"comparison in {work.folder}", rows, tables=(table,))


def _named(item: str) -> tuple[str, Path]:
    name, _, file = item.partition("=")
    path = Path(file).expanduser()
    if not path.is_file():
        raise SepoError(f"there is no evaluation {file} (run {name})", hint=REMEDY)
    return name, path


def _path(file: Path) -> list[Point]:
    """The reference, then a run's models by step.

    Raises:
        SepoError: it is no evaluation on the demo, or a model in it is not named by a step.
    """
    models: Mapping[str, Any] = read_results(file, REMEDY)["models"]
    points = []
    for name, model in models.items():
        if name != REFERENCE and not name.isdecimal():
            raise SepoError(f"{file}: model {name!r} is not named by its step", hint=REMEDY)
        figures = model["figures"]
        missing = [wanted for wanted in ("true_reward", "sample_kl_per_response") if wanted not in figures]
        if missing:
            raise SepoError(f"{file} has no {missing[0]} of model {name}", hint=REMEDY)
        reward, kl, tokens = (
            figures[figure]["value"] for figure in ("true_reward", "sample_kl_per_response", "sample_tokens")
        )
        points.append(Point(0 if name == REFERENCE else int(name), kl, reward, tokens))
    if not any(point.step == 0 for point in points):
        raise SepoError(f"{file} has no {REFERENCE}", hint=REMEDY)
    return sorted(points)


def _table(runs: Runs, at: Sequence[float]) -> Table:
    columns = ["recipe", "runs", "true reward at the end", "KL, nats a response", "tokens", "gain at the end"]
    columns += [f"gain at KL {kl:g}" for kl in at]
    count = max(len(paths) for paths in runs.values())
    starts = [path[:1] for path in next(iter(runs.values()))]
    rows = [["reference", f"{len(starts)}", *_ends(starts), *["" for _ in at]]]
    rows += [
        [name, f"{len(paths)}", *_ends(paths), *(_gain_at(paths, kl) for kl in at)] for name, paths in runs.items()
    ]
    title = (
        f"The demo's recipes over {count} runs (mean, Student's 95% interval over runs; a gain is over the same run's"
    )
    return Table(f"{title} reference)", columns, rows)


def _ends(paths: list[list[Point]]) -> list[str]:
    figures = [("reward", "+.2f"), ("kl", ".2f"), ("tokens", ".1f")]
    ends = [_shown(over_runs([getattr(path[-1], name) for path in paths]), form) for name, form in figures]
    return [*ends, _shown(over_runs([path[-1].reward - path[0].reward for path in paths]), "+.2f")]


def _gain_at(paths: list[list[Point]], kl: float) -> str:
    """The gain at a divergence that every run reaches; the mean of those that do is that of the furthest runs alone."""
    gains = [reward - path[0].reward for path in paths if (reward := reward_at(path, kl)) is not None]
    if len(gains) < len(paths):
        return f"{len(gains)} of {len(paths)} runs reach it"
    return _shown(over_runs(gains), "+.2f")


def _shown(interval: Interval, form: str) -> str:
    return format(interval, form) if interval.low > float("-inf") else format(interval.value, form)


def _as_json(runs: Runs, at: Sequence[float]) -> dict[str, Any]:
    return {
        "kl": list(at),
        "recipes": {
            name: {
                "runs": [[point._asdict() for point in path] for path in paths],
                "true_reward": over_runs([path[-1].reward for path in paths]).as_json(),
                "kl_per_response": over_runs([path[-1].kl for path in paths]).as_json(),
                "tokens": over_runs([path[-1].tokens for path in paths]).as_json(),
                "true_reward_at_kl": [[reward_at(path, kl) for path in paths] for kl in at],
            }
            for name, paths in runs.items()
        },
    }
