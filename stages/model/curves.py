"""The course of a training phase as a picture, drawn by matplotlib, which is loaded when the first one is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.store.files import write_whole

FILE: Final = "curves.png"


class Panel(NamedTuple):
    """One set of axes: what it shows, and the metrics that it draws, by the names of their lines."""

    title: str
    lines: dict[str, str]


PANELS: Final = (
    Panel("loss", {"loss": ""}),
    Panel("reward margin", {"reward_margin": ""}),
    Panel("accuracy", {"accuracy": ""}),
    Panel("log-prob a token, nats", {"chosen_logp": "chosen", "rejected_logp": "rejected"}),
)


def draw_curves(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the logged steps of one phase against the step, as PNG; panels without values are left out.

    Args:
        records: lines of ``metrics.jsonl``, at least one.
    """
    # No pyplot: it would look for a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = [panel for panel in PANELS if any(name in record for record in records for name in panel.lines)]
    figure = Figure(figsize=(4.6 * min(2, len(panels)), 3.2 * ((len(panels) + 1) // 2)), layout="constrained", dpi=110)
    figure.suptitle(title)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot((len(panels) + 1) // 2, min(2, len(panels)), number)
        for name, label in panel.lines.items():
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                axes.plot(
                    *zip(*points, strict=True), label=label, marker="." if len(points) < 40 else "", linewidth=1.2
                )
        axes.set_title(panel.title, fontsize="medium")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(panel.lines) > 1 and len(axes.lines) > 1:
            axes.legend()
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))
