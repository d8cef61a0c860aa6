"""Arrays that took long to compute, kept in the cache until they are asked for again."""

import functools
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.reporting import Reporter
from stages.store.files import hash_json
from stages.tokens.cache import DamagedError, NewFolder, cached

Arrays = dict[str, NDArray[Any]]
FILE: Final = "arrays.npz"


def kept_arrays(key: Any, make: Callable[[], Arrays], *, name: str, reporter: Reporter) -> Arrays:
    """What is kept under a key; where there is nothing whole, it is made first.

    Args:
        key: a JSON value that holds all that decides the arrays.
        name: of what they are made from, for messages.
    """

    # Written twice where the cache cannot be, and computed once.
    made = functools.cache(make)

    def write(folder: NewFolder) -> None:
        arrays = io.BytesIO()
        np.savez(arrays, **made())  # type: ignore[arg-type]
        folder.write(FILE, arrays.getvalue())

    return cached(hash_json(["arrays", key]).removeprefix("sha256:"), _read, write, name=name, reporter=reporter)


def _read(folder: Path) -> Arrays:
    try:
        with np.load(folder / FILE, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedError(f"{folder}: {error}") from error
