"""The tables of evaluations for a page, from the files that the commands wrote."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from stages.method.statistics import interval_text, student_interval
from stages.report.benchmarks import summarise_benchmarks
from stages.report.evaluation import DISTANCES, PREFERENCES, SAMPLES, Column, figure_table, summarise
from stages.report.given import Evaluation, understood
from stages.reporting import Table

FORMS: Final = {column.figure: column.form for column in (*PREFERENCES, *DISTANCES, *SAMPLES)}
RECIPES: Final = {"true_reward": "true reward", "kl_per_response": "KL, nats a response", "tokens": "tokens"}


class Block(NamedTuple):
    """What one evaluation says."""

    title: str
    facts: list[tuple[str, str]]
    tables: Sequence[Table]


def evaluation_block(evaluation: Evaluation) -> Block:
    """What is to be read of an evaluation.

    Raises:
        SepoError: something in it is missing or of another kind.
    """
    return understood(evaluation, _block)


def _block(evaluation: Evaluation) -> Block:
    name, stage, report = evaluation
    if stage in ("evaluate", "results"):
        said = (summarise if stage == "evaluate" else summarise_benchmarks)(report, output=None)
        # Its warnings are among those of the page.
        facts = [(label, text) for label, text in said.rows if label != "warning"]
        return Block(f"{name} ({stage})", facts, [each for each in said.tables if isinstance(each, Table)])
    return Block(f"{name} ({stage})", [], _recipes(report) if stage == "compare" else _truth(report))


def _truth(report: Mapping[str, Any]) -> list[Table]:
    recall = "Planted key tokens found (recall, 95% bootstrap interval over pairs)"
    gains = "Sampled responses to held-out prompts (95% bootstrap interval)"
    return [_all_figures(recall, "response", report["recall"]), _all_figures(gains, "policy", report["policies"])]


def _all_figures(title: str, first: str, rows: Mapping[str, Any]) -> Table:
    names = dict.fromkeys(name for row in rows.values() for name in row["figures"])
    columns = [Column(name, name.replace("_", " "), FORMS.get(name, ".3f")) for name in names]
    return figure_table(title, first, rows.items(), columns)


def _recipes(report: Mapping[str, Any]) -> list[Table]:
    recipes, against = report["recipes"], report["against"]
    ends = [
        [name, f"{len(recipe['runs'])}", *(interval_text(recipe[figure], "+.2f") for figure in RECIPES)]
        for name, recipe in recipes.items()
    ]
    less = [
        [name, *(_over(recipe["less"][figure]) for figure in RECIPES)]
        for name, recipe in recipes.items()
        if name != against
    ]
    interval = "mean, Student's 95% interval over"
    tables = [Table(f"Recipes at their end ({interval} runs)", ["recipe", "runs", *RECIPES.values()], ends)]
    title = f"Differences from {against}, paired by seed ({interval} seeds)"
    return [*tables, *([Table(title, ["recipe", *RECIPES.values()], less)] if less else [])]


def _over(by_seed: Mapping[str, float | None]) -> str:
    values = [value for value in by_seed.values() if value is not None]
    return interval_text(student_interval(values).as_json(), "+.2f") if values else ""
