"""`sepo results`: what judges and verifiers say of models' answers, with intervals. It loads no model."""

import os
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any, Final

from stages.benchmarks.coverage import judgment_warnings
from stages.benchmarks.ifeval_results import BENCHMARK as IFEVAL
from stages.benchmarks.ifeval_verifier import open_verifier
from stages.benchmarks.judge_files import Results, find_results
from stages.benchmarks.judged import Judged
from stages.benchmarks.own_answers import own_figures
from stages.configs import ResultsConfig, content_defaults, content_settings
from stages.report.benchmarks import build_benchmarks, summarise_benchmarks
from stages.reporting import Reporter, Summary
from stages.store.answers import AnswerFolder
from stages.store.files import hash_json
from stages.store.manifest import Input, identity_of, made_just_now
from stages.store.results import claim_results, write_results

STAGE: Final = "results"


def run(config: ResultsConfig, reporter: Reporter) -> Summary:
    """Read all that was given, and say what it means."""
    started = time.monotonic()
    found = find_results(config.paths, reporter)
    inputs = {f"results {name}": Input(name, hash_json(hashes)) for name, hashes in found.hashes.items()}
    defaults = content_defaults(ResultsConfig)
    identity = identity_of(STAGE, content_settings(config), inputs, defaults)
    overwrite = config.overwrite
    finished = claim_results(config.output, identity, inputs, defaults=defaults, tables=(), overwrite=overwrite)
    if finished is not None:
        return _summary(config, finished, fresh=False)
    judged = _compute(found, reporter)
    folders = dict(zip(_names(found.folders), found.folders, strict=True))
    benchmarks = {name: folder.manifest.get("benchmark") for name, folder in folders.items()}
    warnings = judgment_warnings(judged, benchmarks)
    for warning in warnings:
        reporter.warn(warning)
    made_by = made_just_now("cpu", started)
    report = {**identity, "warnings": warnings, "made_by": made_by, "benchmarks": build_benchmarks(judged, config.seed)}
    if config.output:
        write_results(config.output, report)
    return _summary(config, report)


def _summary(config: ResultsConfig, report: dict[str, Any], *, fresh: bool = True) -> Summary:
    if config.json:
        return Summary("", [], json=report)
    return summarise_benchmarks(report, output=config.output, fresh=fresh)


def _compute(found: Results, reporter: Reporter) -> list[Judged]:
    """What is to be said of the answers themselves, and what others said of them."""
    verify = open_verifier() if any(_is_ifeval(folder) for folder in found.folders) else None
    judged = []
    with ExitStack() as stack:
        task = stack.enter_context(reporter.task("answers", _answers(found.folders), "answers"))
        for name, folder in zip(_names(found.folders), found.folders, strict=True):
            judged += own_figures(folder, name, verify if _is_ifeval(folder) else None, task)
    return (
        _told_apart(judged, dict(zip(map(_source, found.folders), _names(found.folders), strict=True))) + found.judged
    )


def _told_apart(judged: list[Judged], names: dict[str, str]) -> list[Judged]:
    """Models of one name in several folders, which were verified there, have their folder's name in front.

    Args:
        names: of the folders, by where they are.
    """
    times = Counter(each.subject for each in judged)
    return [
        each._replace(subject=each.subject._replace(model=f"{names[each.source]}/{each.subject.model}"))
        if times[each.subject] > 1
        else each
        for each in judged
    ]


def _source(folder: AnswerFolder) -> str:
    return str(folder.folder)


def _answers(folders: list[AnswerFolder]) -> int:
    """How many answers there are to be read."""
    return sum(folder.count(model) for folder in folders for model in folder.models)


def _is_ifeval(folder: AnswerFolder) -> bool:
    return folder.manifest.get("benchmark") == IFEVAL


def _names(folders: list[AnswerFolder]) -> list[str]:
    """The last part of each folder's name; more of it where two would be the same."""
    full = [str(folder.folder) for folder in folders]
    short = [os.path.basename(os.path.abspath(name)) for name in full]
    return [full[at] if short.count(name) > 1 else name for at, name in enumerate(short)]
