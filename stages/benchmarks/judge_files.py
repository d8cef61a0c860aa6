"""Files of official tools, found below folders and recognised by what is in them."""

import csv
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from stages.benchmarks import alpaca_results, arena_results, ifeval_results, mt_bench_results
from stages.benchmarks.judged import HINT, Judged
from stages.data.json_files import json_lines, json_rows
from stages.data.text_files import Placed, lines
from stages.errors import SepoError, borrowed
from stages.reporting import Reporter
from stages.store.answers import AnswerFolder, open_answers
from stages.store.files import hash_file, read_object
from stages.store.manifest import FINISHED, UNFINISHED, load_manifest
from stages.store.place import place_of


class Kind(NamedTuple):
    """A form of file that an official tool writes."""

    title: str
    columns: frozenset[str]
    """that its first row has"""
    read: Callable[[Iterator[Placed], str], list[Judged]]


KINDS: Final = (
    Kind("AlpacaEval annotations", alpaca_results.ANNOTATIONS, alpaca_results.read_annotations),
    Kind("AlpacaEval leaderboard", alpaca_results.LEADERBOARD, alpaca_results.read_leaderboard),
    Kind("Arena-Hard judgments", arena_results.JUDGMENTS, arena_results.read_judgments),
    Kind("MT-Bench scores", mt_bench_results.SINGLE, mt_bench_results.read_single),
    Kind("MT-Bench pairs", mt_bench_results.PAIR, mt_bench_results.read_pairs),
    Kind("MT-Bench result of nvidia", mt_bench_results.TOTAL, mt_bench_results.read_total),
    Kind("IFEval samples of lm-eval", ifeval_results.SAMPLES, ifeval_results.read_samples),
    Kind("IFEval results of lm-eval", ifeval_results.RESULTS, ifeval_results.read_lm_eval),
    Kind("IFEval results of Google's script", ifeval_results.GOOGLE, ifeval_results.read_google),
)
SUFFIXES: Final = (".json", ".jsonl", ".csv")
READABLE: Final = (
    "give folders of sepo generate, or what alpaca_eval, Arena-Hard, MT-Bench, lm-eval or Google's script wrote"
)


class Results(NamedTuple):
    """All that was found."""

    folders: list[AnswerFolder]
    judged: list[Judged]
    hashes: dict[str, dict[str, str]]
    """by what was given, of each file that counts"""


def find_results(names: tuple[str, ...], reporter: Reporter) -> Results:
    """Read what the names stand for: folders of `sepo generate`, files of official tools, or folders that hold any.

    Raises:
        SepoError: a file that was named is none of them or damaged, a folder holds none. One that is damaged and was
            only found below a folder is left out with a warning.
    """
    results = Results([], [], {name: {} for name in names})
    seen: set[Path] = set()
    for name in names:
        path = Path(name).expanduser()
        if not path.exists():
            raise SepoError(f"{name} is not there", hint=READABLE)
        for folder in [] if path.is_file() else _answer_folders(path, reporter):
            if folder.folder.resolve() not in seen:
                results.folders.append(folder)
                seen.add(folder.folder.resolve())
            results.hashes[name][str(folder.folder)] = str(folder.manifest.get("fingerprint"))
        own = {(folder.folder / each).resolve() for folder in results.folders for each in folder.manifest["files"]}
        for file in [path] if path.is_file() else _candidates(path):
            real = file.resolve()
            if real not in own and (real in seen or _take(file, results, reporter, named=file == path)):
                results.hashes[name][str(file)] = hash_file(file)
                seen.add(real)
        if not results.hashes[name]:
            raise SepoError(f"{name} holds no answers and no judgments that are known", hint=READABLE)
    return results


def _answer_folders(path: Path, reporter: Reporter) -> Iterator[AnswerFolder]:
    for file in sorted(path.rglob(FINISHED)):
        with suppress(OSError):
            if load_manifest(place_of(file.parent)).get("stage") == "generate":
                yield open_answers(file.parent)
    for file in sorted(path.rglob(UNFINISHED)):
        begun = load_manifest(place_of(file.parent), UNFINISHED).get("stage")
        if begun == "generate" and not (file.parent / FINISHED).exists():
            reporter.warn(f"{file.parent} is left out: sepo generate has not finished there")


def _candidates(path: Path) -> list[Path]:
    ours = (FINISHED, UNFINISHED)
    return sorted(
        file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file() and file.name not in ours
    )


def _take(file: Path, results: Results, reporter: Reporter, *, named: bool) -> bool:
    """Read a file, if it is one of those that are known."""
    try:
        kind = _kind_of(file)
        if kind is None:
            if named:
                raise SepoError(f"{file} is no result that is known", hint=READABLE)
            return False
        with borrowed(f"{file} is not what its tool writes ({kind.title})", HINT):
            judged = kind.read(_rows(file), str(file))
    except SepoError as error:
        if named:
            raise
        reporter.warn(f"{file} is left out: {error.message}")
        return False
    reporter.say(f"{kind.title}: {file}")
    results.judged.extend(judged)
    return True


def _kind_of(file: Path) -> Kind | None:
    _, first = next(_rows(file), ("", {}))
    return next((kind for kind in KINDS if kind.columns <= {*first}), None)


def _rows(file: Path) -> Iterator[Placed]:
    """The rows of a table; a JSON file that is one object is one row."""
    name = str(file)
    if file.suffix == ".csv":
        return _table_rows(file, name)
    if file.suffix == ".jsonl":
        return json_lines(file, name)
    start = next((line.lstrip()[:1] for _, line in lines(file, name) if line.strip()), "")
    return iter([(name, read_object(file, HINT))]) if start == "{" else json_rows(file, name)


def _table_rows(file: Path, name: str) -> Iterator[Placed]:
    rows = csv.DictReader(line for _, line in lines(file, name))
    try:
        for row in rows:
            yield f"{name}:{rows.line_num}", {str(key): value for key, value in row.items()}
    except csv.Error as error:
        raise SepoError(f"{name}: no table that can be read: {error}", hint=HINT) from error
