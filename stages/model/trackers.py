"""Where metrics go beside metrics.jsonl: the trackers of accelerate, such as TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

from accelerate import Accelerator

from stages.configs import OptimizerConfig, content_settings
from stages.errors import SepoError

FOLDER: Final = "trackers"
PROJECT: Final = "sepo"


def refuse_missing_tracker(name: str) -> None:
    """Make sure that a tracker is installed; every one is a package of its own name.

    Raises:
        SepoError: it is not.
    """
    if name != "none" and find_spec(name) is None:
        extra = "pip install 'sepo[report]'" if name == "tensorboard" else f"pip install {name}"
        raise SepoError(f"--report-to {name} needs the package {name}, which is not installed", hint=extra)


@contextmanager
def tracking(accelerator: Accelerator, config: OptimizerConfig, first: int) -> Iterator[None]:
    """Open the trackers that the accelerator was made with, for the steps after `first`, and close them in the end."""
    # TensorBoard then hides what an interrupted run sent of these steps; the others show a resumed run as a new one.
    kept: dict[str, Any] = {"tensorboard": {"purge_step": first + 1}} if first else {}
    settings = {name: value for name, value in content_settings(config).items() if value is not None}
    accelerator.init_trackers(PROJECT, config=settings, init_kwargs=kept)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
