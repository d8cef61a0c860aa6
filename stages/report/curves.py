"""The course of training as a picture, drawn by matplotlib, which is loaded when the first one is."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stages.demo.frontier import Point
from stages.reporting import printable
from stages.store.files import write_whole

FILE: Final = "curves.png"
LONGEST_LABEL: Final = 60


PANELS: Final = {
    "loss": {"loss": "training", "eval_loss": "held out"},
    "reward margin": {"reward_margin": "training", "eval_reward_margin": "held out"},
    "accuracy": {"accuracy": "training", "eval_accuracy": "held out"},
    "log-prob a token, nats": {"chosen_logp": "chosen", "rejected_logp": "rejected"},
}
"""by title, the metrics that a panel draws, and the names of their lines"""


def draw_curves(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the logged steps of one phase against the step, as PNG; panels without values are left out.

    Args:
        records: lines of ``metrics.jsonl``, at least one.
    """
    # No pyplot: it would look for a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = [item for item in PANELS.items() if any(name in record for record in records for name in item[1])]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    # Nothing is laid out by itself (margins, titles' heights) and ticks are few: most of the time went into them.
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), dpi=100)
    figure.subplots_adjust(0.16 / columns, 0.5 / (3.2 * rows), 1 - 0.04 / columns, 1 - 0.25 / rows, 0.25, 0.4)
    figure.suptitle(plain_label(title))
    for number, (panel, lines) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        for name, label in lines.items():
            points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
            if points:
                marker = "." if len(points) < 40 else ""
                axes.plot(*zip(*points, strict=True), label=label, marker=marker, linewidth=1.2)
        axes.set_title(panel, fontsize="medium", y=1.0)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    _save(figure, path)


def draw_frontiers(runs: Mapping[str, Sequence[Sequence[Point]]], path: Path) -> None:
    """Draw true reward against KL, a colour a recipe, a line a run, a mark at its end; PNG.

    Args:
        runs: by recipe, the points of each run by step.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.2), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    for number, (name, paths) in enumerate(runs.items()):
        colour, ends = f"C{number % 10}", "o" if number < 10 else "s"
        for run, points in enumerate(paths):
            kl, reward = [point.kl for point in points], [point.reward for point in points]
            axes.plot(
                kl, reward, color=colour, linewidth=1.1, marker=".", label=plain_label(name) if run == 0 else None
            )
            axes.plot(kl[-1:], reward[-1:], color=colour, marker=ends)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel("KL from the reference on own samples, nats a response (linear below 0.1)")
    axes.set_ylabel("true reward of a sampled response")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with warnings.catch_warnings():
        # A box stands for a letter that the font has not.
        warnings.filterwarnings("ignore", message="Glyph")
        write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))


def plain_label(text: str) -> str:
    """A name as matplotlib shows it: no formula, not so long that it leaves no room for axes, and never left out."""
    shown = printable(text)
    shown = shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 3]}..."
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")
