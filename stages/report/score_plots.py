"""The pictures of a folder of scores as a whole: how scores are spread, what is selected, what margins go with."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.report.plots import COLOURS, Plot, plot
from stages.report.score_statistics import POSITIONS, STEPS, Part, ScoreStatistics, SideStatistics

MOST_DOTS: Final = 400
"""of a cloud of points, each of which is some bytes of the page"""
SIDES: Final = {"chosen": "high", "rejected": "low"}
"""by side, its colour"""


def score_plots(found: ScoreStatistics, sample: NDArray[Any]) -> list[Plot]:
    """All pictures of a folder's scores.

    Args:
        sample: (T,) scores of the pairs shown, for what needs every single one.
    """
    sides = {"chosen": found.chosen, "rejected": found.rejected}
    plots = [_histogram(found), *([_cumulative(found)] if found.chosen.cumulative else []), _positions(sides)]
    for name, title, kind in (("classes", "class of token", "by_class"), ("lengths", "length", "by_length")):
        parts = {side: getattr(each, kind) for side, each in sides.items()}
        if any(parts.values()):
            plots.append(_shares(f"selected-{name}", f"Selected tokens by {title}", parts))
    return [*plots, _noise(found, sample), _margins(found)]


def _histogram(found: ScoreStatistics) -> Plot:
    bins, scores = found.histogram, found.scores

    def draw(axes: Any) -> None:
        for side, colour in SIDES.items():
            axes.stairs(getattr(bins, side), bins.edges, color=COLOURS[colour], label=side)
        axes.axvline(scores.median, color=COLOURS["ink"], linewidth=0.7, linestyle=":")
        if found.noise:
            axes.axvspan(scores.median - found.noise, scores.median + found.noise, color=COLOURS["line"])
        axes.set_yscale("log")

    words = (
        f"{scores.tokens:,} tokens; median {scores.median:+.3g}, standard deviation {scores.spread:.3g},"
        f" from {scores.low:+.3g} to {scores.high:+.3g} nats. The dotted line is the median"
    )
    return plot("scores", "Scores of response tokens", "score, nats", "tokens (logarithmic)", words, draw)


def _cumulative(found: ScoreStatistics) -> Plot:
    top = np.arange(1, STEPS + 1) / STEPS
    curves = {"chosen": found.chosen.cumulative, "rejected": found.rejected.cumulative}

    def draw(axes: Any) -> None:
        for side, dashes in (("chosen", "-"), ("rejected", "--")):
            axes.plot(top, curves[side], dashes, color=COLOURS[SIDES[side]], label=side)
        if found.cumulative:
            axes.plot(top, found.cumulative, ":", color=COLOURS["ink"], label="margin")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)

    said = [
        f"the top {share:.0%} hold {curves['chosen'][at]:.0%} of the wanted reward in chosen responses and"
        f" {curves['rejected'][at]:.0%} in rejected ones"
        for share, at in ((0.1, STEPS // 10 - 1), (0.3, 3 * STEPS // 10 - 1), (0.5, STEPS // 2 - 1))
    ]
    words = "; ".join(said) + ". The dotted line is the share of all margins, which may exceed 1"
    return plot(
        "cumulative", "Reward held by the top tokens", "share of a response's tokens", "share held", words, draw
    )


def _positions(sides: dict[str, SideStatistics]) -> Plot:
    parts = {side: each.by_position for side, each in sides.items()}

    def draw(axes: Any) -> None:
        for side, colour in SIDES.items():
            middles = [float(part.name.partition("-")[0]) + 50 / POSITIONS for part in parts[side]]
            axes.plot(middles, _selected(parts[side]), ".-", color=COLOURS[colour], label=side)
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)

    x = "place in the response, %"
    return plot("positions", "Selected tokens by position", x, "share selected", _in_words(parts), draw)


def _shares(name: str, title: str, parts: dict[str, list[Part]]) -> Plot:
    """Horizontal bars of the share that is selected, two a name."""
    names = list(dict.fromkeys(part.name for side in parts.values() for part in side))

    def draw(axes: Any) -> None:
        for number, (side, colour) in enumerate(SIDES.items()):
            found = {part.name: share for part, share in zip(parts[side], _selected(parts[side]), strict=True)}
            places = np.arange(len(names)) + (number - 0.5) * 0.36
            axes.barh(places, [found.get(each, 0.0) for each in names], 0.36, color=COLOURS[colour], label=side)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    y = "tokens of the response" if name.endswith("lengths") else ""
    return plot(name, title, "share selected", y, _in_words(parts), draw, bars=2 * len(names))


def _selected(parts: Sequence[Part]) -> list[float]:
    return [part.selected / part.tokens if part.tokens else 0.0 for part in parts]


def _in_words(parts: dict[str, list[Part]]) -> str:
    return "; ".join(
        f"{side}: " + ", ".join(f"{part.name} {share:.0%}" for part, share in zip(some, _selected(some), strict=True))
        for side, some in parts.items()
    )


def _noise(found: ScoreStatistics, sample: NDArray[Any]) -> Plot:
    """How far scores are from the median, against what rounding does to them."""
    distances = np.sort(np.abs(sample - np.float32(found.scores.median)))
    distances = distances[distances > 0]
    shown = distances[np.linspace(0, len(distances) - 1, min(len(distances), MOST_DOTS)).astype(int)]

    def draw(axes: Any) -> None:
        axes.plot(shown, np.linspace(0, 1, len(shown)), color=COLOURS["ink"])
        if found.noise:
            axes.axvspan(min([*shown[:1], found.noise]) / 2, found.noise, color=COLOURS["line"])
        axes.set_xscale("log")
        axes.set_ylim(0, 1)

    words = "noise was not measured"
    if found.noise:
        words = (
            f"the scorer's rounding errors are below {found.noise:.2g} nats in 99 of 100 tokens;"
            f" {found.within_noise or 0.0:.1%} of all scores are nearer to the median than that (grey)"
        )
    x = "|score - median|, nats (logarithmic)"
    return plot("noise", "Scores against the scorer's noise", x, "share of tokens below", words, draw)


def _margins(found: ScoreStatistics) -> Plot:
    margin = found.margin
    lengths, margins = margin.sample[:MOST_DOTS, :2].T

    def draw(axes: Any) -> None:
        axes.plot(lengths, margins, ".", color=COLOURS["ink"], alpha=0.6, markersize=4, markeredgewidth=0)
        for line in (axes.axhline, axes.axvline):
            line(0, color=COLOURS["muted"], linewidth=0.6)

    related = (
        "" if margin.length_correlation is None else f"; correlation with the length {margin.length_correlation:+.2f}"
    )
    words = (
        f"mean margin {margin.mean:+.3g} nats; above 0 in {margin.accuracy:.3f} of the pairs{related}; the longer"
        f" response is the chosen one in {margin.longer_accuracy:.3f}; {len(margins):,} pairs drawn"
    )
    x, y = "chosen minus rejected length, tokens", "margin, nats"
    return plot("margins", "Margin of a pair against its length", x, y, words, draw)
