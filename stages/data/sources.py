"""What the name of a data set stands for: local files or a name on the Hugging Face hub, and which of their rows.

=============================  =================================================================================
name                           what is read
=============================  =================================================================================
``pairs.jsonl``                a file; an existing path always wins over every other reading of a name
``data/*.parquet``             all files that match, by name
``data``                       a folder: all data files in it, by name; one kind, and one split
``saved``, ``saved:train``     a folder of `datasets.save_to_disk`, of one or of several splits
``org/name``, ``org/name:s``   a data set on the hub and its split
``...[100:200]``               of any of these, the rows 100 to 199
=============================  =================================================================================

A name that ends in a known suffix or starts with ``.``, ``/`` or ``~`` is a file that is missing, never a hub name.
"""

import glob
import json
import os
import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

from stages.data.files import Format, format_of
from stages.errors import SepoError, one_line

_HUB_NAME: Final = re.compile(r"(?P<source>[\w.-]+/[\w.-]+)(:(?P<split>\w+))?")
_BRACKETS: Final = re.compile(r"(?P<name>.*)\[(?P<rows>[^\[\]]*)\]", re.DOTALL)
_SLICE: Final = re.compile(r"(?P<start>\d{0,15}):(?P<stop>\d{0,15})", re.ASCII)
# train_prefs and train_sft are two splits: those of UltraFeedback hold the same rows.
_SPLIT_WORD: Final = re.compile(r"(?<![a-z])(?:train|test|val|valid|validation|dev|eval)(?:_[a-z]+)*(?![a-z])")
_KINDS: Final = ".jsonl, .json, .csv or .tsv (each may end in .gz or .zst), .parquet or .arrow"
_PREFERRED_SPLITS: Final = ("train_prefs", "train")
ALL_ROWS: Final = slice(0, sys.maxsize)


class File(NamedTuple):
    """One of the files of a data set."""

    path: Path
    name: str
    """for messages"""
    format: Format


class Source(NamedTuple):
    """A data set whose rows can be read."""

    name: str
    """as it was given, without its slice"""
    files: list[File]
    """in the order in which they are read; none: a name on the hub"""
    split: str | None = None
    """of a hub name"""
    rows: slice = ALL_ROWS


def find_source(dataset: str) -> Source:
    """What `dataset` stands for; see above. Looks at names only, except for a folder of `datasets.save_to_disk`.

    A file that is not there or of no known kind, a slice that is none and a pattern without a match are a `SepoError`.
    """
    # Unlike pathlib's, these functions never raise: a name may be too long, or lie in a folder that is closed to us.
    bracketed = None if os.path.exists(os.path.expanduser(dataset)) else _BRACKETS.fullmatch(dataset)
    if bracketed is None:
        return _source(dataset)
    return _source(bracketed["name"])._replace(rows=_slice(dataset, bracketed["rows"]))


def choose_split(source: str, names: list[str], wanted: str | None) -> str:
    """One of the splits of a data set: `wanted`, or else ``train_prefs``, else ``train``, else the only one."""
    candidates = [wanted] if wanted else [*_PREFERRED_SPLITS, *(names if len(names) == 1 else [])]
    found = next((name for name in candidates if name in names), None)
    if found is None:
        problem = f"has no split {wanted}" if wanted else "has several splits, and none is train_prefs or train"
        raise SepoError(f"{source} {problem}", hint=f"choose one: {', '.join(f'{source}:{name}' for name in names)}")
    return found


def _source(name: str) -> Source:
    path = os.path.expanduser(name)
    folder, _, split = name.rpartition(":")
    if os.path.isdir(path):
        return Source(name, _folder_files(name, None))
    if os.path.isfile(path):
        return Source(name, [_file(name)])
    if folder and not os.path.exists(path) and os.path.isdir(os.path.expanduser(folder)):
        return Source(name, _folder_files(folder, split))
    if glob.has_magic(name):
        found = sorted(filter(os.path.isfile, glob.glob(path)))
        if not found:
            raise SepoError(f"{name}: no file matches", hint="check the pattern; quote it, or the shell expands it")
        return Source(name, _of_one_kind(found, name))
    if os.path.lexists(path):
        # /dev/zero has no end, and a pipe can be read only once.
        problem = "neither a file nor a folder" if os.path.exists(path) else "a link to nothing"
        raise SepoError(f"{name}: {problem}", hint="give a file or a folder that can be read more than once")
    hub = _HUB_NAME.fullmatch(name)
    if hub is None or format_of(Path(name)) or name.startswith((".", "/", "~")):
        raise SepoError(f"{name}: no such file", hint="check the path; a data set on the hub is org/name[:split]")
    return Source(hub["source"], [], hub["split"])


def _slice(dataset: str, text: str) -> slice:
    bounds = _SLICE.fullmatch(text)
    if bounds is None:
        raise SepoError(f"{dataset}: [{text}] is no slice of rows", hint="write [:1000], [100:] or [100:200]")
    start, stop = int(bounds["start"] or 0), int(bounds["stop"] or sys.maxsize)
    if start >= stop:
        raise SepoError(f"{dataset}: the slice [{text}] holds no row", hint="the second number is the row to stop at")
    return slice(start, stop)


def _file(name: str) -> File:
    path = Path(os.path.expanduser(name))
    known = format_of(path)
    if known is None:
        raise SepoError(f"{name}: unknown kind of file", hint=f"convert it to {_KINDS}")
    return File(path, name, known)


def _folder_files(name: str, split: str | None) -> list[File]:
    folder = Path(os.path.expanduser(name))
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
            return _folder_files(os.path.join(name, choose_split(name, list(map(str, splits)), split)), None)
        if split is not None:
            raise SepoError(f"{name} has no splits, so no {split}", hint=f"give {name}, or a file in it")
        if (folder / "state.json").is_file():
            # The files that `datasets.save_to_disk` wrote, in its order.
            state = json.loads((folder / "state.json").read_bytes())
            saved = [str(entry["filename"]) for entry in state["_data_files"]]
            missing = next((file for file in saved if not (folder / file).is_file()), None)
            if missing is not None:
                raise SepoError(f"{name}: {missing} is missing", hint="write the folder again, or copy all of it")
            return [_file(os.path.join(name, file)) for file in saved]
        names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SepoError(
            f"{name}: the folder cannot be read: {one_line(error)}",
            hint="check its permissions; if `datasets` wrote it, write it again",
        ) from error
    names = [each for each in names if format_of(Path(each))]
    if not names:
        raise SepoError(f"{name}: no data file in this folder", hint=f"data files are {_KINDS}")
    splits = sorted({word for each in names for word in _SPLIT_WORD.findall(each.lower())})
    if len(splits) > 1:
        likely = next((split for split in _PREFERRED_SPLITS if split in splits), splits[0])
        example = next(each for each in names if likely in each.lower())
        raise SepoError(
            f"{name} holds several splits: {', '.join(splits)}",
            hint=f"name a file, such as {os.path.join(name, example)}, or choose by a pattern",
        )
    return _of_one_kind([os.path.join(name, each) for each in names], name)


def _of_one_kind(names: list[str], dataset: str) -> list[File]:
    first, *others = files = list(map(_file, names))
    other = next((file for file in others if file.format != first.format), None)
    if other is not None:
        raise SepoError(
            f"{dataset} holds files of two kinds: {first.path.name} is {first.format.name}, "
            f"{other.path.name} is {other.format.name}",
            hint=f"choose by a pattern, such as '*{first.path.suffix}'",
        )
    return files
