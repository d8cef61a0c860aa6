"""What each section of a page says, from what was given."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from stages import registry
from stages.configs import ReportConfig
from stages.configs.report import RULES
from stages.report.evaluation_tables import Block, evaluation_block
from stages.report.example_pairs import Sample, examples, packed
from stages.report.given import Given
from stages.report.page import DataSet, Evaluations, Facts, Tokens, TrainingCurves
from stages.report.run_plots import frontier, last_figures, training_groups
from stages.report.score_plots import score_plots
from stages.report.score_statistics import ScoreStatistics, SideStatistics
from stages.reporting import Table

if TYPE_CHECKING:
    from stages.report.vocabulary import Vocabulary

UNTOLD: Final = "not measured"


def tokens_section(
    config: ReportConfig, sample: Sample, found: ScoreStatistics, vocabulary: "Vocabulary | None"
) -> Tokens:
    """The pairs of a sample, coloured by the scores of all."""
    scores, shown = found.scores, len(sample.rows)
    numbers = packed(sample) | {"median": sample.median, "noise": found.noise}
    return Tokens(
        examples(sample, vocabulary, scores.median, scores.far, found.noise),
        f"{shown:,} of {sample.pairs:,} pairs, drawn by the seed {config.seed}."
        if shown < sample.pairs
        else f"All {shown:,} pairs.",
        f"Selected: {_share(found.chosen)} chosen tokens, {_share(found.rejected)} rejected ones, of all pairs",
        [rule for rule in RULES if rule != "symmetric" or sample.median is not None],
        config.select,
        config.chosen_ratio,
        config.rejected_ratio,
        {name: default for rule in ("threshold", "auto") for name, default in registry.RULES[rule].options.items()},
        scores.median,
        scores.far,
        found.noise,
        numbers,
    )


def data_section(sample: Sample, found: ScoreStatistics, vocabulary: "Vocabulary | None") -> DataSet:
    """The scores as a whole."""
    scores = np.concatenate([side for row in sample.rows for side in row.pair.scores])
    named: Callable[[int], str] = vocabulary.type_text if vocabulary else str
    tables = [
        _types(f"Selected most above expectation, {side}", getattr(found, side), named)
        for side in ("chosen", "rejected")
    ]
    if found.drifting.types:
        title = "Best in the chosen and worst in the rejected response at once"
        tables.append(
            Table(title, ["token", "pairs"], [[named(id_), f"{pairs:,}"] for id_, pairs in found.drifting.types])
        )
    return DataSet(_facts(found), score_plots(found, scores), tables)


def _facts(found: ScoreStatistics) -> Facts:
    scores, margin, drifting = found.scores, found.margin, found.drifting
    noise = f"below {found.noise:.2g} nats in 99 of 100 tokens" if found.noise is not None else UNTOLD
    hidden = f"; hides {found.within_noise:.1%} of the tokens" if found.within_noise is not None else ""
    facts = [
        ("pairs", f"{found.pairs:,}"),
        ("response tokens", f"{scores.tokens:,}: {found.chosen.tokens:,} chosen, {found.rejected.tokens:,} rejected"),
        ("score", f"median {scores.median:+.3g}, mean {scores.mean:+.3g}, standard deviation {scores.spread:.3g} nats"),
        ("scorer's noise", noise + hidden),
        ("margin of a pair", f"{margin.mean:+.3g} nats"),
        ("the oracle prefers the chosen response", f"{margin.accuracy:.3f}"),
        ("the longer response is the chosen one", f"{margin.longer_accuracy:.3f}"),
        ("best chosen and worst rejected token alike", f"{drifting.same:.3f}, by chance {drifting.expected:.3f}"),
        ("last token selected, chosen", f"{found.chosen.last_selected:.3f}"),
        ("last token selected, rejected", f"{found.rejected.last_selected:.3f}"),
    ]
    return facts + [(what, f"{count:,}") for what, count in found.notes.items()]


def _types(title: str, side: SideStatistics, named: Callable[[int], str]) -> Table:
    rows = [
        [
            named(each.id),
            f"{each.tokens:,}",
            f"{each.selected:,}",
            f"{each.expected:,.1f}",
            f"{each.z:+.1f}",
            f"{each.mean_score:+.3f}",
        ]
        for each in side.types
    ]
    return Table(title, ["token", "there", "selected", "expected", "z", "mean score, nats"], rows)


def _share(side: SideStatistics) -> str:
    return f"{side.selected:,} of {side.tokens:,} ({side.selected / side.tokens:.1%})"


def training_section(given: Given) -> TrainingCurves | None:
    """The runs beside each other; None without any."""
    if not given.runs:
        return None
    table = Table("Last logged figures", *last_figures(given.runs))
    return TrainingCurves(training_groups(given.runs), table)


def evaluation_section(given: Given) -> Evaluations | None:
    """What models are worth; None where nothing was evaluated."""
    if not given.evaluations:
        return None
    return Evaluations([evaluation_block(each) for each in given.evaluations], frontier(given.evaluations))


def benchmarks_section(given: Given) -> list[Block]:
    """What judges and verifiers say of models' answers."""
    return [evaluation_block(each) for each in given.benchmarks]
