"""Several files that tell of the same answers, put together."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from stages.benchmarks.alpaca_results import BENCHMARK as ALPACA_EVAL
from stages.benchmarks.judged import Judged, Subject
from stages.benchmarks.mt_bench_results import BENCHMARK as MT_BENCH
from stages.benchmarks.own_answers import ANSWERS
from stages.reporting import Reporter
from stages.store.answers import AnswerFolder

MOST_OF_A_LEADERBOARD: Final = 20
"""rows; a longer one is a published one, of which only the models that answered here are shown"""


def model_names(folders: Mapping[str, AnswerFolder]) -> dict[tuple[str, str], str]:
    """What the models are called, by folder and model: where folders of one benchmark share a name, with the folder's.

    Args:
        folders: of answers, by their names.
    """
    models = [(name, folder, model) for name, folder in folders.items() for model in folder.models]
    times = Counter((folder.manifest.get("benchmark"), model) for _, folder, model in models)
    return {
        (name, model): model if times[folder.manifest.get("benchmark"), model] == 1 else f"{name}/{model}"
        for name, folder, model in models
    }


def told_apart(
    judged: Iterable[Judged], folders: Mapping[str, AnswerFolder], names: Mapping[tuple[str, str], str]
) -> list[Judged]:
    """What lies in a folder of answers is of that folder's model. Args: names: `model_names` of the folders."""
    found = []
    for each in judged:
        subject, name = each.subject, _folder_of(each.source, folders)
        if name is not None and subject.benchmark != ANSWERS:
            model = names.get((name, subject.model), subject.model)
            each = each._replace(subject=subject._replace(model=model))
        found.append(each)
    return found


def _folder_of(source: str, folders: Mapping[str, AnswerFolder]) -> str | None:
    """The name of the innermost folder in which a file lies."""
    path = Path(source).resolve()
    around = {name: folder.folder.resolve() for name, folder in folders.items()}
    found = [name for name, folder in around.items() if path.is_relative_to(folder)]
    return max(found, key=lambda name: len(around[name].parts), default=None)


def joined(judged: Iterable[Judged], answered: Collection[str], reporter: Reporter) -> list[Judged]:
    """One `Judged` a subject.

    Args:
        answered: the models whose answers are here.
    """
    judged = _without_totals(list(judged))
    boards = [each for each in judged if _is_row_of_leaderboard(each)]
    found: dict[Subject, Judged] = {}
    for each in (each for each in judged if not _is_row_of_leaderboard(each)):
        before = found.get(each.subject)
        found[each.subject] = each if before is None else _one(before, each, reporter)
    hidden = 0
    for board in boards:
        rows = sum(each.source == board.source for each in boards)
        subject = _subject_of(board, found.values())
        if subject in found:
            found[subject] = _one(found[subject], board, reporter)
        elif rows <= MOST_OF_A_LEADERBOARD or subject.model in answered:
            found[subject] = board._replace(subject=subject)
        else:
            hidden += 1
    if hidden:
        reporter.say(f"{hidden:,} other models of a leaderboard are not shown")
    return [*found.values()]


def _one(before: Judged, later: Judged, reporter: Reporter) -> Judged:
    """What two files say of one subject: strict and loose; a figure of each prompt and one of all together."""
    if not before.prompts or not later.prompts:
        whole, part = (before, later) if before.prompts else (later, before)
        stated = {name: each for name, each in part.stated.items() if name not in whole.figures}
        return whole._replace(stated=whole.stated | stated)
    if before.prompts == later.prompts and not {*before.figures} & {*later.figures}:
        return before._replace(figures=before.figures | later.figures, counts=before.counts | later.counts)
    reporter.warn(
        f"{later.subject.model} was judged twice by {later.subject.judge}: {later.source} counts,"
        f" and {before.source} does not"
    )
    return later


def _is_row_of_leaderboard(judged: Judged) -> bool:
    return judged.subject.benchmark == ALPACA_EVAL and not judged.prompts and not judged.subject.judge


def _subject_of(board: Judged, others: Iterable[Judged]) -> Subject:
    """Of a row of a leaderboard: who judged, and against whom, is the same in one folder, as far as that tells."""
    folder = Path(board.source).parent
    beside = {each.subject._replace(model="") for each in others if each.prompts and Path(each.source).parent == folder}
    return (beside.pop() if len(beside) == 1 else board.subject)._replace(model=board.subject.model)


def _without_totals(judged: list[Judged]) -> list[Judged]:
    """Less nvidia's mean of scores that are here, below the same folder."""
    there = {(Path(each.source).parent.parent, each.subject.judge) for each in judged if each.prompts}
    return [
        each
        for each in judged
        if each.prompts or each.subject.benchmark != MT_BENCH
        or (Path(each.source).parent, each.subject.judge) not in there
    ]  # fmt: skip
