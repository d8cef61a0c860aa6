"""The lines of metrics.jsonl and timing.jsonl, read without torch."""

import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.errors import SepoError, one_line
from stages.store.place import Place, place_of
from stages.store.shape import parse_json

FILE: Final = "metrics.jsonl"
RENAMED: Final = {"kl_estimate": "log_ratio"}
"""what logs and checkpoints of sepo 0.1.0 call otherwise"""
MOST: Final = 1e100
"""beyond any number of a log"""


class Line(NamedTuple):
    """A line of a log."""

    record: dict[str, Any]
    data: bytes

    @property
    def checksum(self) -> str:
        return f"{zlib.crc32(self.data):08x}"


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a folder's metrics.jsonl; none if there is no such file."""
    return [line.record for line in sound_lines(place_of(folder), FILE)[0]]


def sound_lines(place: Place, name: str) -> tuple[list[Line], int]:
    """The lines that say what ours say, and how many others there are, but for half a line that a kill left."""
    try:
        lines = place.read(name).split(b"\n")[:-1]
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        hint = "move it away, and run the same again"
        raise SepoError(f"cannot read {place.at(name)}: {one_line(error)}", hint=hint) from error
    sound = [line for line in map(_line_of, lines) if line is not None]
    return sound, len(lines) - len(sound)


def _line_of(data: bytes) -> Line | None:
    """A line by what it says of whom, numbers being all the rest of it; None for what is damaged."""
    try:
        record = {RENAMED.get(name, name): value for name, value in parse_json(data).items()}
        phase, step = record["phase"], record["step"]
    except (ValueError, AttributeError, KeyError):
        return None
    # A number that is not finite stands as null there.
    numbers = all(
        each is None or (type(each) in (int, float) and abs(each) < MOST)
        for name, each in record.items()
        if name != "phase"
    )
    sound = isinstance(phase, str) and type(step) is int and step > 0 and numbers
    return Line(record, data) if sound else None
