"""The report of an evaluation: one JSON value, and the tables and sentences that are read from it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np

from stages.errors import borrowed
from stages.evaluation.figures import Comparison, Figures, compare, verdict
from stages.method.statistics import Ratio, bootstrap_intervals, by_cluster, interval_text, stands_alone
from stages.reporting import Summary, Table, counted


class Column(NamedTuple):
    """A figure in a table."""

    figure: str
    title: str
    form: str


PREFERENCES: Final = (
    Column("accuracy_implicit", "implicit reward", ".3f"),
    Column("accuracy_sum", "summed log-prob", ".3f"),
    Column("accuracy_mean", "mean log-prob", ".3f"),
    Column("margin_implicit", "margin of implicit reward, nats", "+.2f"),
    Column("margin_mean", "margin of mean log-prob, nats", "+.3f"),
)
DISTANCES: Final = (
    Column("kl_per_token", "given responses, a token", ".4f"),
    Column("kl_per_response", "a response", ".2f"),
    Column("sample_kl_per_token", "own samples, a token", ".4f"),
    Column("sample_kl_per_response", "a response", ".2f"),
)
SAMPLES: Final = (
    Column("sample_tokens", "tokens", ".1f"),
    Column("sample_ended", "ended by itself", ".3f"),
    Column("sample_repetition", "repeated 4-grams", ".3f"),
    Column("true_reward", "true reward", "+.2f"),
    Column("true_reward_per_token", "a token", "+.3f"),
    Column("true_win_rate", "wins against the reference", ".3f"),
)
DIFFERENCES: Final = (
    Column("accuracy_implicit", "implicit reward", "+.3f"),
    Column("accuracy_sum", "summed log-prob", "+.3f"),
    Column("accuracy_mean", "mean log-prob", "+.3f"),
    Column("kl_per_token", "KL a token", "+.4f"),
    Column("sample_tokens", "tokens of a sample", "+.1f"),
    Column("true_reward", "true reward", "+.2f"),
    Column("true_win_rate", "wins against the reference", "+.3f"),
)
CLAIMS: Final = (
    ("accuracy_implicit", "held-out accuracy of the implicit reward"),
    ("accuracy_mean", "held-out accuracy of the mean log-prob"),
)
"""what decides which of two models is better on pairs: the first of these that both have"""
TRUTH: Final = ("true_reward", "true reward")


def build_report(
    figures: Mapping[str, Mapping[str, Figures]], about: Mapping[str, dict[str, Any]], seed: int
) -> dict[str, Any]:
    """Every figure of ``pairs`` and ``samples`` by model with its interval, and every difference of two models.

    `about` is what else there is to say of each model, such as its folder.
    """
    return {
        "models": {name: about[name] | _model(found, seed) for name, found in figures.items()},
        "comparisons": [
            _comparison(
                later,
                earlier,
                *(compare(figures[later][items], figures[earlier][items], seed) for items in ("pairs", "samples")),
            )
            for earlier, later in combinations(figures, 2)
        ],
    }


def show_again(report: dict[str, Any], output: str) -> Summary:
    """The summary of a report that was read from its file."""
    # What trips over a damaged report is our own code; over a whole one it does so as well when the report is new.
    with borrowed(
        f"{output} is damaged: its report cannot be read",
        hint="remove it, and the same command writes it again from what the cache keeps",
    ):
        return summarise(report, output=output, fresh=False)


def summarise(report: dict[str, Any], *, output: str | None, fresh: bool = True) -> Summary:
    """The summary of a report that is whole."""
    models, comparisons = report["models"], report["comparisons"]
    pairs, samples = (_span([model[items] for model in models.values()]) for items in ("pairs", "samples"))
    rows = [("pairs", pairs), ("samples of each model", samples)]
    rows += [(" vs ".join(each["models"]), str(sentence)) for each in comparisons for sentence in each["sentences"]]
    rows += [("warning", str(warning)) for warning in report["warnings"]]
    rows += [("written", output)] if output else []
    by_name = list(models.items())
    preferred = f"Chosen response preferred: share of {pairs} held-out pairs (95% bootstrap interval)"
    drawn = f"{samples} samples of each model, at temperature 1"
    tables = [
        figure_table(preferred, "model", by_name, PREFERENCES, ["pairs"]),
        figure_table("KL from the reference, nats", "model", by_name, DISTANCES, ["pairs", "samples"]),
        figure_table(drawn, "model", by_name, SAMPLES, ["samples"]),
    ]
    if comparisons:
        differences = [(" - ".join(each["models"]), {"figures": each["differences"]}) for each in comparisons]
        paired = f"Differences, paired (95% bootstrap interval{stands_alone(len(comparisons))})"
        tables.append(figure_table(paired, "models", differences, DIFFERENCES))
    title = f"evaluation in {output}" if output else "evaluation"
    return Summary(title, rows, fresh, tuple(table for table in tables if len(table.columns) > 1))


def sentence(ours: str, theirs: str, items: str, comparison: Comparison, figure: str, words: str) -> str:
    """Which of two models is better by one figure, in plain words."""
    count = counted(comparison.items, items.removesuffix("s"))
    if figure not in comparison.differences:
        return f"{ours} and {theirs} are not told apart by {count}: too few that both have"
    difference = comparison.differences[figure]
    sign_p = comparison.sign_tests.get(figure, 0.0)
    found = verdict(difference, sign_p)
    tail = f"{words} {difference:+.3f}"
    if found != verdict(difference):
        tail += f", but p = {sign_p:.3f} by a sign test over prompts"
    if found == "not told apart":
        return f"{ours} and {theirs} are not told apart by {count}: {tail}"
    return f"{ours} is {found} than {theirs}, by {count}: {tail}"


def _model(figures: Mapping[str, Figures], seed: int) -> dict[str, Any]:
    pairs, samples = figures["pairs"], figures["samples"]
    found = [figures_json(by_cluster(each.ratios, each.prompts), seed) for each in (pairs, samples) if each.ratios]
    return {
        "pairs": len(pairs.keys),
        "prompts": len(np.unique(pairs.prompts)),
        "samples": len(samples.keys),
        "figures": {name: interval for each in found for name, interval in each.items()},
    }


def _comparison(ours: str, theirs: str, pairs: Comparison, samples: Comparison) -> dict[str, Any]:
    claims = [("pairs", pairs, *next((claim for claim in CLAIMS if claim[0] in pairs.differences), CLAIMS[-1]))]
    claims += [("samples", samples, *TRUTH)] if TRUTH[0] in samples.differences else []
    return {
        "models": [ours, theirs],
        "pairs": pairs.items,
        "samples": samples.items,
        "differences": {name: each.as_json() for name, each in (pairs.differences | samples.differences).items()},
        "sign_tests": pairs.sign_tests,
        "verdicts": {
            figure: verdict(comparison.differences[figure], comparison.sign_tests.get(figure, 0.0))
            for _, comparison, figure, _ in claims
            if figure in comparison.differences
        },
        "sentences": [sentence(ours, theirs, *claim) for claim in claims],
    }


def figures_json(ratios: Mapping[str, Ratio], seed: int) -> dict[str, Any]:
    """Figures with their intervals."""
    return {name: interval.as_json() for name, interval in bootstrap_intervals(ratios, seed=seed).items()}


def figure_table(
    title: str, first: str, rows: Iterable[tuple[str, Any]], columns: Sequence[Column], items: Sequence[str] = ()
) -> Table:
    """A line for each named row: the figures that any has, and how many of the `items` where that differs."""
    rows = list(rows)
    there = [column for column in columns if any(column.figure in row["figures"] for _, row in rows)]
    differing = [name for name in items if there and len({row[name] for _, row in rows}) > 1]
    lines = []
    for name, row in rows:
        cells = [interval_text(row["figures"].get(column.figure), column.form) for column in there]
        lines.append([name, *(f"{row[each]:,}" for each in differing), *cells])
    return Table(title, [first, *differing, *(column.title for column in there)], lines)


def _span(counts: list[int]) -> str:
    """How many items the models have: tokenizers may drop different rows."""
    fewest, most = min(counts), max(counts)
    return f"{fewest:,} to {most:,}" if fewest < most else f"{most:,}" if most else "none"
