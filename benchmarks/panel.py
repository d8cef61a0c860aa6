"""What the live display of a terminal takes from the training beside it: its refreshes, and what a step gives to it.

python benchmarks/panel.py
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence

from rich.console import Console

from sepo_cli.console import REFRESHES_A_SECOND, Bars
from stages.training.metrics import LIVE

NAMES = [*LIVE.values(), "tokens/s", "memory, GB"]


def seconds(work: Callable[[], object], times: int) -> float:
    before = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - before) / times


def measured(figures: Sequence[str]) -> list[float]:
    """Seconds of this process's time a refresh and a step, medians of seven rounds."""
    with open("/dev/null", "w") as nowhere:
        screen = Console(file=nowhere, force_terminal=True, width=100)
        with Bars(screen).task("dpo", 10**6, "steps") as task:

            def step() -> None:
                task.advance(1, {name: random.random() for name in figures})

            rounds = [(seconds(step, 1000), seconds(screen._live_stack[0].refresh, 100)) for _ in range(7)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


if __name__ == "__main__":
    for title, figures in (("bar alone", ()), ("with curves", NAMES)):
        step, refresh = measured(figures)
        print(
            f"{title}: {step * 1e6:.1f} us a step, {refresh * 1e3:.2f} ms a refresh: "
            f"{refresh * REFRESHES_A_SECOND:.2%} of one core at {REFRESHES_A_SECOND} a second"
        )
