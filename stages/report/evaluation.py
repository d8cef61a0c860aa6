"""The report of an evaluation: one JSON value, and the tables and sentences that are read from it."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np

from stages.errors import borrowed
from stages.evaluation.figures import Comparison, Figures, compare, verdict
from stages.method.statistics import Interval, bootstrap_intervals, by_cluster
from stages.reporting import Summary, Table


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
    *PREFERENCES[:3],
    Column("kl_per_token", "KL a token", ".4f"),
    Column("sample_tokens", "tokens of a sample", ".1f"),
    SAMPLES[3],
    SAMPLES[5],
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
    """Every figure of every model with its interval, and every difference of two models with its own.

    Args:
        figures: of ``pairs`` and of ``samples``, by model.
        about: what else there is to say of each model, such as its folder.
    """
    return {
        "models": {name: about[name] | _model(found, seed) for name, found in figures.items()},
        "comparisons": [
            _comparison(
                later,
                earlier,
                {items: compare(figures[later][items], figures[earlier][items], seed) for items in figures[later]},
            )
            for earlier, later in combinations(figures, 2)
        ],
    }


def show_again(report: dict[str, Any], output: str) -> Summary:
    """The summary of a report that was read from its file.

    Raises:
        SepoError: something is missing in it.
    """
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
    preferred = f"Chosen response preferred: share of {pairs} held-out pairs (95% bootstrap interval)"
    tables = [
        _table(preferred, models, PREFERENCES, "pairs"),
        _table("KL from the reference, nats", models, DISTANCES, "pairs", "samples"),
        _table(f"{samples} samples of each model, at temperature 1", models, SAMPLES, "samples"),
        _differences(comparisons),
    ]
    title = f"evaluation in {output}" if output else "evaluation"
    return Summary(title, rows, fresh, tuple(table for table in tables if table))


def sentence(ours: str, theirs: str, items: str, comparison: Comparison, figure: str, words: str) -> str:
    """Which of two models is better by one figure, in plain words."""
    count = f"{comparison.items:,} {items}"
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
    intervals: dict[str, Interval] = {}
    for each in figures.values():
        if each.ratios:
            intervals |= bootstrap_intervals(by_cluster(each.ratios, each.prompts), seed=seed)
    return {
        "pairs": len(figures["pairs"].keys),
        "prompts": len(np.unique(figures["pairs"].prompts)),
        "samples": len(figures["samples"].keys),
        "figures": {name: interval.as_json() for name, interval in intervals.items()},
    }


def _comparison(ours: str, theirs: str, by_items: Mapping[str, Comparison]) -> dict[str, Any]:
    pairs, samples = by_items["pairs"], by_items["samples"]
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


def _table(title: str, models: Mapping[str, dict[str, Any]], columns: tuple[Column, ...], *of: str) -> Table | None:
    """A row for each model, with its own count of the items where the models have different ones."""
    there = [column for column in columns if any(column.figure in model["figures"] for model in models.values())]
    counts = [items for items in of if len({model[items] for model in models.values()}) > 1]
    rows = [
        [name, *(f"{model[items]:,}" for items in counts), *(_cell(model["figures"], column) for column in there)]
        for name, model in models.items()
    ]
    return Table(title, ["model", *counts, *(column.title for column in there)], rows) if there else None


def _span(counts: list[int]) -> str:
    """How many items the models have: tokenizers may drop different rows."""
    fewest, most = min(counts), max(counts)
    return f"{fewest:,} to {most:,}" if fewest < most else f"{most:,}" if most else "none"


def _differences(comparisons: list[dict[str, Any]]) -> Table | None:
    if not comparisons:
        return None
    there = [
        column._replace(form="+" + column.form.lstrip("+"))
        for column in DIFFERENCES
        if any(column.figure in each["differences"] for each in comparisons)
    ]
    rows = [
        [" - ".join(each["models"]), *(_cell(each["differences"], column) for column in there)] for each in comparisons
    ]
    title = "Differences, paired (95% bootstrap interval"
    title += f"; each stands alone: not corrected for {len(comparisons)} comparisons)" if len(comparisons) > 1 else ")"
    return Table(title, ["models", *(column.title for column in there)], rows)


def _cell(figures: Mapping[str, Any], column: Column) -> str:
    found = figures.get(column.figure)
    return format(Interval(**found), column.form) if found else ""
