"""A run's folder, claimed and held for as long as the run is at work in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.store.lock import held
from stages.store.manifest import Input, Run, open_run
from stages.store.place import Place, place_of


@contextmanager
def claimed(
    folder: str | Path | Place,
    stage: str,
    settings: dict[str, Any],
    inputs: dict[str, Input],
    *,
    overwrite: bool,
    resume: bool = True,
    sound: Callable[[Place, dict[str, Any]], bool] | None = None,
) -> Iterator[Run]:
    """`open_run`, by one process that keeps every other run out of the folder until the block ends.

    Raises:
        SepoError: another run is at work there, or the reasons of `open_run`.
    """
    place = place_of(folder)
    with held(place, several=False) as lock:
        work = open_run(place, stage, settings, inputs, overwrite=overwrite, resume=resume, lock=lock, sound=sound)
        lock.settle()
        yield work
