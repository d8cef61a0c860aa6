"""An engine whose model several processes hold together: what the first of them asks, all of them compute.

The others know of no questions, journals or files. They wait for requests until the first process has no more.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from stages.devices.processes import Team
from stages.generation.engine import Generated, GenerationEngine, Request


@contextmanager
def asked_by_the_first(engine: GenerationEngine, team: Team) -> Iterator[GenerationEngine]:
    """Each process's engine, to be asked in the first process alone; at the end the others have answered the same."""
    if team.first:
        yield _Leading(engine, team)
        team.agreed(list[Request])
    else:
        yield engine
        while requests := team.agreed(list[Request]):
            for _ in engine.answers(requests):
                pass


class _Leading:
    """The first process's engine, which has those of the others answer the same."""

    def __init__(self, engine: GenerationEngine, team: Team) -> None:
        self._engine, self._team = engine, team

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generated]]:
        return self._engine.answers(self._team.agreed(lambda: requests))

    def together(self, requests: Sequence[Request]) -> list[list[int]]:
        return self._engine.together(requests)
