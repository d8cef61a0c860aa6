"""`sepo report`: scores token by token, training runs, evaluations and benchmarks as one HTML file, from disk alone."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from stages.configs import ReportConfig
from stages.errors import SepoError
from stages.report.example_pairs import read_sample
from stages.report.given import Given, open_given
from stages.report.page import GENERATOR, DataSet, Page, Tokens, made_by, render
from stages.report.plots import Plot
from stages.report.score_statistics import read_statistics
from stages.report.sections import (
    benchmarks_section,
    data_section,
    evaluation_section,
    tokens_section,
    training_section,
)
from stages.report.token_classes import classes_of
from stages.report.token_selection import TokenSelector
from stages.report.vocabulary import Vocabulary, open_vocabulary
from stages.reporting import Reporter, Summary, counted
from stages.store.files import probe_writable, read_regular, sweep_writes, write_bytes
from stages.store.scores import Scores

MARK: Final = f'<meta name="generator" content="{GENERATOR}">'.encode()
"""by which a page of ours is known"""


def run(config: ReportConfig, reporter: Reporter) -> Summary:
    """Write the page, and the figures where a folder for them was given."""
    output, given = _check(config)
    page = _compute(config, given, reporter)
    return _write(config, output, page)


def _check(config: ReportConfig) -> tuple[Path, Given]:
    """Where to write, and what was given, opened.

    Raises:
        SepoError: something else is there already, or a folder cannot be shown.
    """
    output = Path(config.output).expanduser()
    _refuse_foreign(output)
    given = open_given(config.folders)
    probe_writable(output.parent, "choose another --output")
    sweep_writes(output)
    return output, given


def _refuse_foreign(output: Path) -> None:
    """A page is never written over what is no page of ours."""
    if os.path.lexists(output) and MARK not in (_held(output, 4096) or b""):
        raise SepoError(f"{output} is there already, and is no page of sepo report", hint="choose another --output")


def _held(path: Path, most: int = -1) -> bytes | None:
    """What a file holds; None where there is no file, or something else."""
    with suppress(OSError):
        return read_regular(path, most)
    return None


def _compute(config: ReportConfig, given: Given, reporter: Reporter) -> Page:
    training, evaluation = training_section(given), evaluation_section(given)
    tokens, data = _scores(config, given.scores, reporter) if given.scores else (None, None)
    warnings = [(name, text) for name, manifest in given.manifests.items() for text in manifest.get("warnings") or []]
    made_of = ", ".join(f"{name} ({manifest.get('stage')})" for name, manifest in given.manifests.items())
    return Page(
        "Selective preference optimization",
        made_of,
        warnings,
        tokens,
        data,
        training,
        evaluation,
        benchmarks_section(given),
        [made_by(name, manifest) for name, manifest in given.manifests.items()],
    )


def _scores(config: ReportConfig, scores: Scores, reporter: Reporter) -> tuple[Tokens | None, DataSet | None]:
    """What is to be said of scores; nothing where there is no pair."""
    opened = open_vocabulary(scores.manifest, config.tokenizer)
    vocabulary = opened if isinstance(opened, Vocabulary) else None
    if isinstance(opened, str):
        reporter.warn(opened)
    ratios = {"chosen_ratio": config.chosen_ratio, "rejected_ratio": config.rejected_ratio}
    selector = TokenSelector(scores, config.select, ratios, config.seed)
    found = read_statistics(scores, selector, reporter, classes_of(vocabulary) if vocabulary else None)
    if found is None:
        reporter.warn(f"{scores.folder} has no pairs")
        return None, None
    median, count, seed = found.scores.median, config.pairs, config.seed
    sample = read_sample(scores, selector, median, count=count, seed=seed, reporter=reporter)
    return tokens_section(config, sample, found, vocabulary), data_section(sample, found, vocabulary)


def _write(config: ReportConfig, output: Path, page: Page) -> Summary:
    """Write what is not there yet, all checked before anything is written."""
    wanted: dict[Path, bytes] = {}
    if config.figures:
        folder = Path(config.figures).expanduser()
        probe_writable(folder, "choose another --figures")
        for each in _plots(page):
            wanted |= {folder / f"{each.name}.svg": each.svg.encode(), folder / f"{each.name}.pdf": each.pdf}
    wanted[output] = render(page).encode()
    new = {path: data for path, data in wanted.items() if _held(path) != data}
    for path in filter(os.path.lexists, new):
        if not path.is_file():
            raise SepoError(f"{path} is there already, and is no file", hint="choose another --figures")
        if not config.overwrite:
            raise SepoError(f"{path} is there already, and shows something else", hint="replace it with --overwrite")
    for path, data in new.items():
        write_bytes(path, data)
    rows = [("sections", ", ".join(name for _, name in page.sections)), ("size", f"{len(wanted[output]) / 1e6:.1f} MB")]
    rows += [("figures", f"{counted(len(wanted) - 1, 'file')} in {config.figures}")] if config.figures else []
    return Summary(f"report in {output}", [("written", str(output)), *rows], fresh=bool(new))


def _plots(page: Page) -> list[Plot]:
    groups = page.training.groups if page.training else []
    frontier = page.evaluation.frontier if page.evaluation else None
    return [
        *(page.data.plots if page.data else []),
        *(each for group in groups for each in group.plots),
        *([frontier] if frontier else []),
    ]
