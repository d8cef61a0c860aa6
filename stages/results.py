"""`sepo results`: what judges and verifiers say of models' answers, with intervals. It loads no model."""

import time
from collections.abc import Mapping
from typing import Any, Final

from stages.benchmarks.coverage import judgment_warnings
from stages.benchmarks.ifeval_results import BENCHMARK as IFEVAL
from stages.benchmarks.ifeval_verifier import open_verifier
from stages.benchmarks.judge_files import Results, find_results
from stages.benchmarks.judged import Judged
from stages.benchmarks.own_answers import own_figures
from stages.benchmarks.same_subject import joined, model_names, told_apart
from stages.configs import ResultsConfig
from stages.report.benchmarks import build_benchmarks, summarise_benchmarks
from stages.reporting import Reporter, Summary
from stages.store.answers import AnswerFolder
from stages.store.files import hash_json
from stages.store.manifest import Input, made_just_now
from stages.store.place import short_names
from stages.store.results import claim_results, write_results

STAGE: Final = "results"


def run(config: ResultsConfig, reporter: Reporter) -> Summary:
    """Read all that was given, and say what it means."""
    started = time.monotonic()
    found = find_results(config.paths, reporter)
    inputs = {f"results {name}": Input(name, hash_json(hashes)) for name, hashes in found.hashes.items()}
    identity, finished = claim_results(STAGE, config, inputs)
    if finished is not None:
        return _summary(config, finished, fresh=False)
    folders = dict(zip(short_names([each.folder for each in found.folders]), found.folders, strict=True))
    names = model_names(folders)
    judged = _compute(found, folders, names, reporter)
    benchmarks = {name: folder.manifest.get("benchmark") for name, folder in folders.items()}
    warnings = judgment_warnings(judged, benchmarks, names)
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


def _compute(
    found: Results, folders: Mapping[str, AnswerFolder], names: Mapping[tuple[str, str], str], reporter: Reporter
) -> list[Judged]:
    """What is to be said of the answers themselves, and what others said of them."""
    verify = open_verifier() if any(map(_is_ifeval, found.folders)) else None
    judged = []
    with reporter.task("answers", _answers(found.folders), "answers") as task:
        for name, folder in folders.items():
            judged += own_figures(folder, name, verify if _is_ifeval(folder) else None, task)
    answered = {*names.values(), *(model for _, model in names)}
    return joined(told_apart(judged + found.judged, folders, names), answered, reporter)


def _answers(folders: list[AnswerFolder]) -> int:
    """How many answers there are to be read."""
    return sum(folder.count(model) for folder in folders for model in folder.models)


def _is_ifeval(folder: AnswerFolder) -> bool:
    return folder.manifest.get("benchmark") == IFEVAL
