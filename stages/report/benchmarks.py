"""The report of benchmarks: one JSON value, and the tables and sentences that are read from it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np

from stages.benchmarks.judged import Judged
from stages.benchmarks.paper import CITED, METHODS, paper_figures
from stages.evaluation.figures import FEWEST, Comparison, Figures, compare, verdict
from stages.method.statistics import Interval, bootstrap_intervals, interval_text, stands_alone
from stages.report.evaluation import Column
from stages.reporting import Summary, Table


class Shown(NamedTuple):
    """How a benchmark is shown."""

    title: str
    columns: tuple[Column, ...]
    headlines: tuple[str, ...]
    """the figures of which a lead is put in words, and what one point of them is"""
    paper: tuple[str, ...] = ()
    """the columns of the paper's table that are of it"""
    notes: tuple[str, ...] = ()


_CHARACTERS: Final = Column("characters", "characters", ".0f")
SHOWN: Final = {
    "alpaca-eval": Shown(
        "AlpacaEval 2",
        (
            Column("lc_win_rate", "length-controlled win rate, %", ".2f"),
            Column("win_rate", "win rate, %", ".2f"),
            _CHARACTERS,
        ),
        ("lc_win_rate", "win_rate"),
        ("lc_win_rate", "win_rate"),
    ),
    "arena-hard": Shown(
        "Arena-Hard",
        (Column("win_rate", "win rate, %", ".2f"),),
        ("win_rate",),
        ("arena_hard",),
        (
            "Arena-Hard's show_result.py prints 90% intervals, of games drawn one by one; here they are 95% intervals,"
            " of prompts drawn with both their games",
        ),
    ),
    "mt-bench": Shown(
        "MT-Bench",
        (
            Column("average", "score, 1 to 10", ".2f"),
            Column("first_turn", "first turn", ".2f"),
            Column("second_turn", "second turn", ".2f"),
        ),
        ("average",),
        ("mt_bench",),
    ),
    "mt-bench-pairs": Shown("MT-Bench, in pairs", (Column("win_rate", "win rate, %", ".2f"),), ("win_rate",)),
    "ifeval": Shown(
        "IFEval",
        (
            Column("accuracy_prompt_strict", "prompts, strict, %", ".2f"),
            Column("accuracy_instruction_strict", "instructions, strict, %", ".2f"),
            Column("accuracy_prompt_loose", "prompts, loose, %", ".2f"),
            Column("accuracy_instruction_loose", "instructions, loose, %", ".2f"),
        ),
        ("accuracy_prompt_strict",),
    ),
    "answers": Shown(
        "Answers",
        (
            Column("tokens", "tokens", ".1f"),
            _CHARACTERS,
            Column("cut", "cut, %", ".1f"),
            Column("empty", "empty, %", ".1f"),
            Column("loops", "loop, %", ".1f"),
        ),
        (),
        notes=("an answer loops if more than half of its runs of 4 words, marks and line ends stood in it before",),
    ),
}
NO_CONTROL: Final = (
    "no length-controlled win rates: alpaca_eval computes them only online, with df_gamed.csv of tatsu-lab/alpaca_eval"
)


def build_benchmarks(judged: Sequence[Judged], seed: int) -> list[dict[str, Any]]:
    """Every figure of every model with its interval, and every difference of two models, by benchmark and judge."""
    groups: dict[tuple[str, ...], list[Judged]] = {}
    for each in judged:
        against = "" if each.subject.benchmark == "mt-bench-pairs" else each.subject.against
        groups.setdefault((each.subject.benchmark, each.subject.part, each.subject.judge, against), []).append(each)
    order = [*SHOWN]
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key))
    return [_benchmark(key, groups[key], seed) for key in keys]


def _benchmark(key: tuple[str, ...], judged: list[Judged], seed: int) -> dict[str, Any]:
    benchmark, part, judge, against = key
    shown = SHOWN[benchmark]
    named = {_name(each): each for each in judged}
    pairs = [] if benchmark == "mt-bench-pairs" else [*combinations([n for n in named if named[n].prompts], 2)]
    found = {
        "benchmark": benchmark,
        "part": part,
        "judge": judge,
        "against": against,
        "models": {name: _model(each, seed) for name, each in named.items()},
        "comparisons": [_comparison(later, earlier, named, shown, seed) for earlier, later in pairs],
    }
    notes = [*shown.notes]
    names = {name for each in judged for name in (*each.figures, *each.stated)}
    if benchmark == "alpaca-eval" and "lc_win_rate" not in names:
        notes.append(NO_CONTROL)
    fewest = min((len(each.prompts) for each in judged if each.prompts), default=FEWEST)
    if fewest < FEWEST:
        notes.append(f"{fewest:,} prompts are few: an interval of fewer than {FEWEST} is narrower than it should be")
    return found | {"notes": notes}


def _name(judged: Judged) -> str:
    subject = judged.subject
    return f"{subject.model} over {subject.against}" if subject.benchmark == "mt-bench-pairs" else subject.model


def _model(judged: Judged, seed: int) -> dict[str, Any]:
    intervals = bootstrap_intervals(judged.figures, seed=seed) if judged.figures else {}
    return {
        "prompts": len(judged.prompts),
        "figures": {name: each.as_json() for name, each in intervals.items()},
        "stated": {name: each.as_json() for name, each in judged.stated.items()},
        "counts": judged.counts,
        "source": judged.source,
    }


def _comparison(ours: str, theirs: str, named: Mapping[str, Judged], shown: Shown, seed: int) -> dict[str, Any]:
    first, second = (_figures(named[name]) for name in (ours, theirs))
    found = compare(first, second, seed)
    titles = {column.figure: column.title for column in shown.columns}
    return {
        "models": [ours, theirs],
        "prompts": found.items,
        "differences": {name: each.as_json() for name, each in found.differences.items()},
        "sign_tests": found.sign_tests,
        "sentences": [
            lead(ours, theirs, found, figure, titles[figure])
            for figure in shown.headlines
            if figure in first.ratios and figure in second.ratios
        ],
    }


def _figures(judged: Judged) -> Figures:
    prompts = np.array(judged.prompts)
    return Figures(prompts, prompts, judged.figures)


def lead(ours: str, theirs: str, comparison: Comparison, figure: str, words: str) -> str:
    """Which of two models leads by a figure, and whether that is more than chance, in plain words."""
    prompts = f"{comparison.items:,} common prompts"
    if figure not in comparison.differences:
        return f"{ours} and {theirs} are not told apart: {prompts} are too few"
    difference = comparison.differences[figure]
    if difference.value < 0:
        ours, theirs = theirs, ours
        difference = Interval(-difference.value, -difference.high, -difference.low)
    value, interval = f"{difference.value:.2f}", f"[{difference.low:.2f}, {difference.high:.2f}]"
    sign_p = comparison.sign_tests.get(figure, 0.0)
    if not difference.value:
        return f"{ours} and {theirs} are level: {words}, on {prompts}"
    if verdict(difference) == "not told apart":
        said = f"leads {theirs} by {value}, but the interval {interval} holds 0: not told apart"
    elif verdict(difference, sign_p) == "not told apart":
        said = f"leads {theirs} by {value} {interval}, but p = {sign_p:.3f} by a sign test over prompts: not told apart"
    elif comparison.items < FEWEST:
        # Three prompts that all speak for one model leave a bootstrap nothing else to draw.
        said = f"leads {theirs} by {value} {interval}, but so few prompts do not tell: not told apart"
    else:
        said = f"leads {theirs} by {value} {interval}"
    return f"{ours} {said} ({words}, {prompts})"


def summarise_benchmarks(report: dict[str, Any], *, output: str | None, fresh: bool = True) -> Summary:
    """The summary of a report that is whole."""
    rows, tables = [], []
    for each in report["benchmarks"]:
        shown = SHOWN[each["benchmark"]]
        name = shown.title if each["benchmark"] != "answers" else f"Answers in {each['part']}"
        rows += [(name, str(said)) for comparison in each["comparisons"] for said in comparison["sentences"]]
        rows += [(name, str(note)) for note in each["notes"]]
        tables += _tables(each, shown)
    rows += [("warning", str(warning)) for warning in report["warnings"]]
    rows += [("written", output)] if output else []
    title = f"results in {output}" if output else "results"
    return Summary(title, rows, fresh, (*tables, *_paper(report["benchmarks"])))


def _tables(each: Mapping[str, Any], shown: Shown) -> list[Table]:
    title = heading(each)
    models = [(name, model["stated"] | model["figures"], model["prompts"]) for name, model in each["models"].items()]
    tables = [_table(f"{title} (95% interval)", "model", models, shown.columns, "")]
    comparisons = each["comparisons"]
    if comparisons:
        lines = [(" - ".join(one["models"]), one["differences"], one["prompts"]) for one in comparisons]
        paired = f"{title}: differences, paired by prompt (95% interval{stands_alone(len(comparisons))})"
        tables.append(_table(paired, "models", lines, shown.columns, "+"))
    return tables


def heading(each: Mapping[str, Any]) -> str:
    """Such as ``AlpacaEval 2, judged by gpt-4, against gpt4_turbo``."""
    shown = SHOWN[each["benchmark"]]
    if each["benchmark"] == "answers":
        return f"Answers in {each['part']}"
    parts = [shown.title, each["part"], f"judged by {each['judge'] or 'whom its file does not say'}"]
    parts += [f"against {each['against']}"] if each["against"] else []
    return ", ".join(part for part in parts if part)


def _table(
    title: str, first: str, lines: Iterable[tuple[str, Any, int]], columns: Iterable[Column], sign: str
) -> Table:
    """A line for each name: the figures that any has, with how many prompts they are of."""
    lines = list(lines)
    there = [column for column in columns if any(column.figure in figures for _, figures, _ in lines)]
    rows = []
    for name, figures, prompts in lines:
        cells = (interval_text(figures.get(column.figure), sign + column.form) for column in there)
        rows.append([name, f"{prompts:,}" if prompts else "", *cells])
    return Table(title, [first, "prompts", *(column.title for column in there)], rows)


def _paper(benchmarks: Iterable[Mapping[str, Any]]) -> list[Table]:
    """The paper's own figures of the benchmarks that are shown; of Arena-Hard it has v0.1 alone."""
    wanted = dict.fromkeys(
        each["benchmark"] for each in benchmarks if each["benchmark"] != "arena-hard" or "v0.1" in each["part"]
    )
    tables = []
    for name in wanted:
        shown = SHOWN[name]
        if not shown.paper:
            continue
        rows: dict[str, list[str]] = {}
        for line in paper_figures():
            cell = " / ".join(f"{getattr(line, column):g}" for column in shown.paper)
            rows.setdefault(line.policy, [line.policy]).append(cell)
        said = "length-controlled / raw win rate, %" if len(shown.paper) > 1 else shown.columns[0].title
        title = f"{shown.title} in the paper ({CITED}; judged by GPT-4o, no intervals given): {said}"
        tables.append(Table(title, ["policy", *METHODS], [*rows.values()]))
    return tables
