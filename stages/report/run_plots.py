"""Curves of training runs, and true reward against KL, for a page."""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from stages.report.given import Evaluation, LoggedPhase, understood
from stages.report.plots import COLOURS, Plot, label, plot, run_style

PANELS: Final = {
    "loss": ("Loss", "loss, nats"),
    "reward_margin": ("Reward margin", "margin of rewards"),
    "accuracy": ("Accuracy of the reward", "share of pairs"),
    "chosen_logp": ("Chosen responses", "log-prob a token, nats"),
    "rejected_logp": ("Rejected responses", "log-prob a token, nats"),
    "log_ratio": ("Mean log-ratio to the reference", "nats a token"),
    "gradient_norm": ("Gradient norm", "norm"),
    "eval_loss": ("Held-out loss", "loss, nats"),
    "eval_reward_margin": ("Held-out margin", "margin of rewards"),
    "eval_accuracy": ("Held-out accuracy", "share of pairs"),
}
"""by metric, the title of its plot and what its axis shows"""
MOST_POINTS: Final = 250
"""of a curve; more steps are averaged"""

Path = Sequence[tuple[float, float]]
"""(KL, reward) of one run by step"""


class Group(NamedTuple):
    """Curves that may stand on one scale."""

    title: str
    plots: list[Plot]


def training_groups(runs: Sequence[LoggedPhase]) -> list[Group]:
    """Fine-tuning apart: its losses are of another size than those of preferences."""
    tuning = [run for run in runs if run.phase == "sft"]
    others = [run for run in runs if run.phase != "sft"]
    named = (("Preference training", "", others), ("Supervised fine-tuning", "sft-", tuning))
    return [Group(title, _curves(some, before)) for title, before, some in named if some]


def _curves(runs: Sequence[LoggedPhase], before: str) -> list[Plot]:
    return [
        _curve(runs, metric, f"{before}{metric.replace('_', '-')}", *PANELS[metric])
        for metric in PANELS
        if any(metric in record for run in runs for record in run.records)
    ]


def _curve(runs: Sequence[LoggedPhase], metric: str, name: str, title: str, y: str) -> Plot:
    curves = {at: _points(run, metric) for at, run in enumerate(runs) if any(metric in each for each in run.records)}

    def draw(axes: Any) -> None:
        for at, (steps, values) in curves.items():
            marker = "." if len(steps) < 40 else ""
            axes.plot(steps, values, label=label(_named(runs[at])), marker=marker, **run_style(at))
        _whole_steps(axes)

    ends = {at: [(each["step"], each[metric]) for each in runs[at].records if metric in each] for at in curves}
    words = "; ".join(
        f"{_named(runs[at])} from {there[0][1]:.4g} at step {there[0][0]} to {there[-1][1]:.4g} at step {there[-1][0]}"
        for at, there in ends.items()
    )
    return plot(name, title, "step", y, words, draw)


def _named(run: LoggedPhase) -> str:
    return f"{run.name} ({run.phase})"


def _whole_steps(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def _points(run: LoggedPhase, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values; neighbours are averaged where there are more than a plot can show."""
    there = np.array([(record["step"], record[metric]) for record in run.records if metric in record], np.float64)
    parts = np.array_split(there, min(len(there), MOST_POINTS))
    steps, values = np.array([part.mean(axis=0) for part in parts]).T
    return steps.tolist(), values.tolist()


def last_figures(runs: Sequence[LoggedPhase]) -> tuple[list[str], list[list[str]]]:
    """Titles and a line a run: its name, phase, steps, and the last value of each metric that any of them has."""
    there = [metric for metric in PANELS if any(metric in each for run in runs for each in run.records)]
    rows = [[*run[:2], f"{run.records[-1]['step']:,}", *(_last(run, metric) for metric in there)] for run in runs]
    return ["run", "phase", "step", *(PANELS[metric][0] for metric in there)], rows


def _last(run: LoggedPhase, metric: str) -> str:
    return next((f"{record[metric]:.4g}" for record in reversed(run.records) if metric in record), "")


def frontier(evaluations: Sequence[Evaluation]) -> Plot | None:
    """True reward against KL of all that was evaluated by planted rewards; None where nothing was."""
    several = len(evaluations) > 1
    paths = {
        f"{each.name}: {name}" if several else name: path
        for each in evaluations
        for name, path in understood(each, _paths).items()
        if path
    }
    if not paths:
        return None

    def draw(axes: Any) -> None:
        for at, (name, some) in enumerate(paths.items()):
            for run, path in enumerate(some):
                kl, reward = zip(*path, strict=True)
                shown = {"label": label(name)} if run == 0 else {}
                axes.plot(kl, reward, marker="." if len(path) > 1 else "o", clip_on=False, **shown, **run_style(at))
                axes.plot(kl[-1:], reward[-1:], marker="o", clip_on=False, color=run_style(at)["color"])
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_xlim(left=0)
        axes.axhline(0, color=COLOURS["line"], linewidth=0.5)

    words = "; ".join(
        f"{name} ends at reward {some[0][-1][1]:+.3g} and KL {some[0][-1][0]:.3g}" for name, some in paths.items()
    )
    x, y = "KL on own samples, nats a response (linear below 0.1)", "true reward of a response"
    return plot("reward-kl", "True reward against KL from the reference", x, y, words, draw)


def _paths(evaluation: Evaluation) -> dict[str, list[Path]]:
    """By label, the paths of its runs; a model that stands alone is a path of one point."""
    report = evaluation.report
    if evaluation.stage == "compare":
        return {
            name: [[(float(point["kl"]), float(point["reward"])) for point in run] for run in recipe["runs"] if run]
            for name, recipe in report["recipes"].items()
        }
    models: dict[str, Any] = report["policies" if evaluation.stage == "demo-report" else "models"]
    figures: dict[str, Any] = {name: model["figures"] for name, model in models.items()}
    points = {
        name: (float(found["sample_kl_per_response"]["value"]), float(found["true_reward"]["value"]))
        for name, found in figures.items()
        if {"sample_kl_per_response", "true_reward"} <= {*found}
    }
    # Snapshots of one run are named by their steps.
    steps = sorted((name for name in points if re.fullmatch("[0-9]{1,15}", name)), key=int)
    run = [points.pop("reference"), *map(points.pop, steps)] if steps and "reference" in points else []
    alone: dict[str, list[Path]] = {name: [[point]] for name, point in points.items()}
    return alone | ({evaluation.name: [run]} if run else {})
