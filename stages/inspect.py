"""`sepo inspect`: what an oracle rewards, in all pairs of a folder of scores or token by token. Nothing is written."""

from typing import Final, NamedTuple

from stages.configs import InspectConfig
from stages.errors import SepoError
from stages.report.calibration import UNSEEN, calibration_rows
from stages.report.pair_view import PairIndex, index_pairs, shares_within_noise, view_pairs
from stages.report.score_statistics import read_statistics
from stages.report.score_summary import as_json, heat_map, pair_json, summary_rows, summary_tables, token_table
from stages.report.token_classes import classes_of
from stages.report.token_selection import TokenSelector
from stages.report.vocabulary import MOST_IDS, Vocabulary, open_vocabulary
from stages.reporting import Reporter, Summary
from stages.store.scores import Scores, open_scores
from stages.store.shape import lookup

LIMIT: Final = 5


class Inspection(NamedTuple):
    """What is known before any row was read."""

    config: InspectConfig
    scores: Scores
    vocabulary: Vocabulary | None
    reporter: Reporter

    def name(self, id_: int) -> str:
        """How a token type is shown."""
        return str(id_) if self.vocabulary is None else self.vocabulary.type_text(id_)

    def selector(self) -> TokenSelector:
        config = self.config
        return TokenSelector(self.scores, config.select, config.rule_options, config.seed, self.reporter)


def run(config: InspectConfig, reporter: Reporter) -> Summary:
    """Show a folder of scores.

    Raises:
        SepoError: scores that never finished or are damaged, a tokenizer that is not theirs, a pair that is not there.
    """
    look = _check(config, reporter)
    if not look.scores.manifest["counts"]["kept"]:
        return Summary(f"{look.scores.folder} holds no pair", [], json={"pairs": 0} if config.json else None)
    return _show_pairs(look) if config.shows_pairs else _summarise(look)


def _check(config: InspectConfig, reporter: Reporter) -> Inspection:
    scores = open_scores(config.scores)
    if config.sort == "noise" and lookup(scores.manifest, "results.noise.p99") is None:
        raise SepoError(
            f"{scores.folder} says nothing of its scores' noise, which sort noise goes by",
            hint="score with --noise-check above 0, or sort by margin, wrong or length",
        )
    vocabulary = open_vocabulary(scores.manifest, config.tokenizer)
    if isinstance(vocabulary, str):
        if config.search is not None:
            raise SepoError("search needs the text of tokens", hint=vocabulary)
        reporter.warn(vocabulary)
        return Inspection(config, _bounded(scores, lookup(scores.manifest, "tokenizer.size")), None, reporter)
    return Inspection(config, _bounded(scores, vocabulary.size), vocabulary, reporter)


def _bounded(scores: Scores, size: int | None) -> Scores:
    """The scores, whose rows are refused if they have an id beyond, for which sums by id had to have room."""
    return scores._replace(ids_below=min(size or MOST_IDS, MOST_IDS))


def _summarise(look: Inspection) -> Summary:
    classes = None if look.vocabulary is None else classes_of(look.vocabulary)
    found = read_statistics(look.scores, look.selector(), look.reporter, classes)
    assert found is not None
    results = look.scores.manifest.get("results") or {}
    if look.config.json:
        unseen = {name: results[name] for name in UNSEEN if name in results}
        return Summary("", [], json=as_json(found, look.name) | unseen)
    tables = (*summary_tables(found, look.name),)
    rows = summary_rows(found) + calibration_rows(results)
    return Summary(f"{look.scores.folder}, {_rule(look.config)}", rows, tables=tables)


def _show_pairs(look: Inspection) -> Summary:
    config, scores = look.config, look.scores
    noise = lookup(scores.manifest, "results.noise.p99")
    index = index_pairs(scores, noise, config.search, look.vocabulary, look.reporter)
    rows = _rows(look, index)
    shown = rows[: config.limit or LIMIT]
    views = view_pairs(scores, shown, look.selector(), index.scale, look.vocabulary)
    counts = f"{len(shown):,} of {len(rows):,} pairs found among the {len(index.pair_ids):,}"
    if config.json:
        found = {"found": len(rows), "scale": index.scale._asdict(), "pairs": [*map(pair_json, views)]}
        return Summary("", [], json=found)
    tables = [part for view in views for part in (heat_map(view, index.scale), token_table(view))]
    return Summary(f"{counts} of {scores.folder}, {_rule(config)}", [], tables=(*tables,))


def _rows(look: Inspection, index: PairIndex) -> list[int]:
    """The row numbers of the pairs that are wanted."""
    config = look.config
    if config.pair is None:
        within = shares_within_noise(look.scores, index.scale, look.reporter) if config.sort == "noise" else None
        return index.ordered(config.sort, within)
    rows = [row for row, pair_id in enumerate(index.pair_ids.tolist()) if pair_id == config.pair]
    if not rows:
        low, high = index.pair_ids.min(), index.pair_ids.max()
        raise SepoError(
            f"{look.scores.folder} has no pair {config.pair:,}",
            hint=f"its {len(index.pair_ids):,} pairs have numbers from {low:,} to {high:,}; some rows were dropped",
        )
    return rows


def _rule(config: InspectConfig) -> str:
    options = ", ".join(f"{name} {value}" for name, value in config.rule_options.items() if value is not False)
    return f"select {config.select}" + f" ({options})" * bool(options)
