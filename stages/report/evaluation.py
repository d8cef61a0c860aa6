"""The report of an evaluation: one JSON value, and the tables and sentences that are read from it."""

from collections.abc import Mapping
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
DIFFERENCES: Final = (*PREFERENCES[:3], DISTANCES[0], SAMPLES[0], SAMPLES[3], SAMPLES[5])
CLAIMS: Final = (
    ("accuracy_implicit", "pairs", "held-out accuracy of the implicit reward"),
    ("accuracy_mean", "pairs", "held-out accuracy of the mean log-prob"),
)
"""what decides which of two models is better on pairs: the first of these that both have"""
TRUTH: Final = ("true_reward", "samples", "true reward")


def build_report(figures: Mapping[str, Figures], about: Mapping[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Every figure of every model with its interval, and every difference of two models with its own.

    Args:
        about: what else there is to say of each model, such as its folder.
    """
    return {
        "models": {name: about[name] | _model(found, seed) for name, found in figures.items()},
        "comparisons": [_comparison(each) for each in compare(figures, seed)],
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
    models = report["models"]
    pairs, samples = (_span([model[items] for model in models.values()]) for items in ("pairs", "samples"))
    rows = [("pairs", pairs), ("samples of each model", samples)]
    rows += [
        (" vs ".join(comparison["models"]), str(sentence))
        for comparison in report["comparisons"]
        for sentence in comparison["sentences"]
    ]
    rows += [("warning", str(warning)) for warning in report["warnings"]]
    rows += [("written", output)] if output else []
    tables = [
        _table(
            f"Chosen response preferred: share of {pairs} held-out pairs (95% bootstrap interval)",
            models,
            PREFERENCES,
            "pairs",
        ),
        _table("KL from the reference, nats", models, DISTANCES, "pairs", "samples"),
        _table(f"{samples} samples of each model, at temperature 1", models, SAMPLES, "samples"),
        _differences(report["comparisons"]),
    ]
    title = f"evaluation in {output}" if output else "evaluation"
    return Summary(title, rows, fresh, tuple(table for table in tables if table))


def sentence(comparison: Comparison, figure: str, items: str, words: str) -> str:
    """Which of two models is better by one figure, in plain words."""
    ours, theirs = comparison.ours, comparison.theirs
    count = f"{getattr(comparison, items):,} {items}"
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


def _model(found: Figures, seed: int) -> dict[str, Any]:
    intervals = bootstrap_intervals(by_cluster(found.pairs, found.prompts), seed=seed)
    if found.samples:
        intervals |= bootstrap_intervals(by_cluster(found.samples, found.sample_prompts), seed=seed)
    return {
        "pairs": len(found.pair_ids),
        "prompts": len(np.unique(found.prompts)),
        "samples": len(found.sample_keys),
        "figures": {name: interval.as_json() for name, interval in intervals.items()},
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    differences, sign_tests = comparison.differences, comparison.sign_tests
    claims = [claim for claim in CLAIMS if claim[0] in differences][:1] or [CLAIMS[-1]]
    claims += [TRUTH] if TRUTH[0] in differences else []
    return {
        "models": [comparison.ours, comparison.theirs],
        "pairs": comparison.pairs,
        "samples": comparison.samples,
        "differences": {name: interval.as_json() for name, interval in differences.items()},
        "sign_tests": sign_tests,
        "verdicts": {
            claim[0]: verdict(differences[claim[0]], sign_tests.get(claim[0], 0.0))
            for claim in claims
            if claim[0] in differences
        },
        "sentences": [sentence(comparison, *claim) for claim in claims],
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
    there = [column for column in DIFFERENCES if any(column.figure in each["differences"] for each in comparisons)]
    signed = [column._replace(form="+" + column.form.lstrip("+")) for column in there]
    rows = [
        [" - ".join(each["models"]), *(_cell(each["differences"], column) for column in signed)] for each in comparisons
    ]
    title = "Differences, paired (95% bootstrap interval"
    title += f"; each stands alone: not corrected for {len(comparisons)} comparisons)" if len(comparisons) > 1 else ")"
    return Table(title, ["models", *map(_long_title, there)], rows)


def _long_title(column: Column) -> str:
    """A title that is clear without the table around it."""
    return {"kl_per_token": "KL a token", "sample_tokens": "tokens of a sample"}.get(column.figure, column.title)


def _cell(figures: Mapping[str, Any], column: Column) -> str:
    found = figures.get(column.figure)
    return format(Interval(**found), column.form) if found else ""
