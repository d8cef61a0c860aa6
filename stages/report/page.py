"""One HTML file that holds all it shows: no network, no framework, every string from data escaped."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from stages.report.evaluation_tables import Block
from stages.report.example_pairs import NOISE, ExamplePair
from stages.report.heat import STEPS
from stages.report.plots import Plot, for_page
from stages.report.run_plots import Group
from stages.reporting import Table, flat, printable

GENERATOR: Final = "sepo report"
SECTIONS: Final = {
    "tokens": "Tokens",
    "data-set": "The data set",
    "training": "Training",
    "evaluation": "Evaluation",
    "benchmarks": "Benchmarks",
    "provenance": "Provenance",
}
PROMPT_TAIL: Final = 160
"""letters of a prompt that are seen at once: its end is where pairs differ"""
_LETTERS: Final = [chr(code) for code in range(ord("a"), ord(NOISE) + 1)]

Facts = list[tuple[str, str]]


class Tokens(NamedTuple):
    """The pairs, token by token."""

    examples: list[ExamplePair]
    shown: str
    """which of how many pairs, in words"""
    counts: str
    """how many tokens are selected at first, in words"""
    rules: Sequence[str]
    select: str
    chosen_ratio: float
    rejected_ratio: float
    defaults: dict[str, float]
    """of the options of the other rules"""
    median: float
    far: float
    noise: float | None
    numbers: dict[str, Any]

    @property
    def legend(self) -> str:
        return (
            f"Colours from the low scores, {self.median - self.far:+.3g} nats and below, over none at the median,"
            f" {self.median:+.3g}, to the high ones, {self.median + self.far:+.3g} and above"
        )


class DataSet(NamedTuple):
    """The scores as a whole."""

    facts: Facts
    plots: list[Plot]
    tables: list[Table]


class TrainingCurves(NamedTuple):
    """Runs beside each other."""

    groups: list[Group]
    table: Table


class Evaluations(NamedTuple):
    """What models are worth."""

    blocks: list[Block]
    frontier: Plot | None


class Origin(NamedTuple):
    """Where something comes from."""

    name: str
    stage: str
    fingerprint: str
    tables: list[Table]


class Page(NamedTuple):
    """All that a page shows; what was not given is None."""

    title: str
    made_of: str
    warnings: list[tuple[str, str]]
    tokens: Tokens | None
    data: DataSet | None
    training: TrainingCurves | None
    evaluation: Evaluations | None
    benchmarks: list[Block]
    provenance: list[Origin]

    @property
    def sections(self) -> list[tuple[str, str]]:
        there = (self.tokens, self.data, self.training, self.evaluation, self.benchmarks, self.provenance)
        return [item for item, part in zip(SECTIONS.items(), there, strict=True) if part]


def render(page: Page) -> str:
    """The page as HTML."""
    style, script, template = (_source(name) for name in ("page.css", "page.js", "page.html.jinja"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, finalize=_visible, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return (
        environment.from_string(template)
        .render(
            page._asdict(),
            sections=page.sections,
            svg=lambda plot: Markup(for_page(plot)),
            generator=GENERATOR,
            style=Markup(style),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            letters=_LETTERS,
            tail=PROMPT_TAIL,
            plain=_LETTERS[STEPS],
            steps=STEPS,
        )
        .lstrip()
    )


def _source(name: str) -> str:
    return files("stages.report").joinpath("page", name).read_text(encoding="utf-8")


def _visible(value: Any) -> Any:
    """What a template writes: nothing in a string from data may turn the text around or hide in it."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "\n".join(map(printable, value.split("\n")))


def made_by(name: str, manifest: Mapping[str, Any]) -> Origin:
    """What a manifest says of where something comes from."""
    counts = manifest.get("counts")
    if manifest["stage"] == "evaluate" and "models" in manifest:
        # Each model has counts of its own: it may read other rows.
        counts = {model: said["counts"] for model, said in manifest["models"].items() if "counts" in said}
    parts = {
        "Counts": counts,
        "Settings": manifest.get("settings"),
        "Read from": manifest.get("input_names"),
        "Hashes of what was read": manifest.get("inputs"),
        "Made by": manifest.get("made_by"),
    }
    tables = [
        Table(title, ["what", "value"], [[name, _in_words(value)] for name, value in flat(part)])
        for title, part in parts.items()
        if part
    ]
    return Origin(name, str(manifest["stage"]), str(manifest.get("fingerprint", "none")), tables)


def _in_words(value: Any) -> str:
    return f"{value:,}" if type(value) is int else "none" if value is None else str(value)
