"""Where metrics go beside metrics.jsonl: the trackers of accelerate, such as TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from accelerate import Accelerator

from stages.configs import NAMED_TRACKERS, OptimizerConfig, content_settings

FOLDER: Final = "trackers"
PROJECT: Final = "sepo"


@contextmanager
def tracking(accelerator: Accelerator, config: OptimizerConfig, first: int) -> Iterator[None]:
    """Open the trackers that the accelerator was made with, for the steps after `first`, and close them in the end."""
    kept: dict[str, Any] = {}
    project, name = PROJECT, config.run_name
    if config.report_to == "tensorboard":
        project = name or PROJECT
        # It then hides what an interrupted run sent of these steps; the others show a resumed run as a new one.
        kept = {"purge_step": first + 1} if first else {}
    elif name:
        kept = {NAMED_TRACKERS[config.report_to]: name}
    settings = {name: value for name, value in content_settings(config).items() if value is not None}
    accelerator.init_trackers(project, config=settings, init_kwargs={config.report_to: kept})
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
