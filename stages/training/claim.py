"""A training run's folder: claimed for all processes, held by the first of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from accelerate import Accelerator

from stages.configs import OracleConfig, PolicyConfig, content_settings
from stages.reporting import Reporter
from stages.store.claim import claimed
from stages.store.lock import Lock
from stages.store.manifest import Input, Run, open_run
from stages.store.place import place_of
from stages.training.metrics import read_times


@contextmanager
def claimed_together(
    config: OracleConfig | PolicyConfig,
    stage: str,
    inputs: dict[str, Input],
    accelerator: Accelerator,
    reporter: Reporter,
) -> Iterator[Run]:
    """The run of `config`, from which every other run is kept out until the block ends.

    Raises:
        SepoError: another run is at work there, or the reasons of `stages.store.manifest.open_run`.
    """
    place, settings = place_of(config.output_dir), content_settings(config)
    with ExitStack() as stack:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                resume = config.resume
                claim = claimed(place, stage, settings, inputs, overwrite=config.overwrite, resume=resume)
                work = stack.enter_context(claim)
                if work.altered:
                    reporter.warn(f"{work.folder / work.altered} is not what was written there, and is made again")
            else:
                # A lock that was not taken: the first process may have begun, and nothing of its is cleared or swept.
                work = open_run(place, stage, settings, inputs, overwrite=False, lock=Lock(place, several=True))
        # Read now: what was done after the last checkpoint was spent too, and is about to be dropped there.
        work.earlier_seconds = sum(line["seconds"] for line in read_times(work.folder))
        yield work
