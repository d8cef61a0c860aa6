"""How far each of several processes is: where one hangs, all others wait for it, and none of them would say so.

The training thread only notes where it is, which costs nothing. A second thread of each process puts that into the
store through which they found each other, and looks every few seconds whether the slowest one still moves.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Any, Final, NamedTuple

from accelerate import Accelerator

from stages.compat import store_of_processes
from stages.reporting import Reporter, counted

PATIENCE: Final = 45.0
"""seconds without progress of the slowest process; with the time between two looks less than a minute"""
LOOKS: Final = 9
"""in that time"""
SLOW: Final = 3
"""times the longest pause so far, which is no reason to worry either"""
FIRST: Final = 5
"""times the patience until anything has moved: kernels are compiled, processes get their connections"""
SHOWN: Final = 4
"""processes that a message names"""
PARTS: Final = ("gradients", "update", "held-out pairs", "checkpoint")
"""of a step, in their order; in the last one a process may work alone for long, which is no stall"""

END: Final = (sys.maxsize,)
"""how far a process is that has left"""


class Beat(NamedTuple):
    """What a process has last said of itself."""

    number: int = 0
    """grows as long as the process is there"""
    order: tuple[int, ...] = ()
    """how far it is: the lesser one is behind"""
    words: str = "before the first step"
    alone: bool = False
    """whether it may work while all others wait"""
    begun: bool = False
    """whether it has had the gradients of a step"""
    host: str = "a host that has not been heard of"
    pid: int = 0

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}" if self.pid else self.host


class Pulse:
    """While open, warns once for every stall of several processes: which of them the others wait for, and where it is.

    Args:
        safe: the steps that are in a checkpoint.
        patience: seconds without progress before it is said.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        phase: str,
        reporter: Reporter,
        safe: Callable[[], int],
        patience: float = PATIENCE,
    ) -> None:
        self._rank, self._processes = accelerator.process_index, accelerator.num_processes
        self._phase, self._reporter, self._safe = phase, reporter, safe
        self._step, self._part = 0, 0
        self._beat = Beat(host=socket.gethostname(), pid=os.getpid())
        self._watch, self._interval = Watch(patience), patience / LOOKS
        self._ended = Event()
        self._thread = Thread(target=self._work, name="pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        if self._processes > 1:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if kind is None:
            self._beat = self._beat._replace(order=END, words="at the end")
        else:
            self._beat = self._beat._replace(words=f"gone with {kind.__name__} {self._beat.words}")
        self._ended.set()
        if self._thread.is_alive():
            # Not for ever: the store may be what does not answer.
            self._thread.join(self._interval)

    def at(self, step: int, part: str) -> None:
        """This process begins a part of a step (counted from 0), of `PARTS`."""
        self._step, self._part = step, PARTS.index(part)
        words = f"in step {step + 1:,}, {part}"
        alone, begun = part == PARTS[-1], self._beat.begun or self._part > 0
        self._beat = self._beat._replace(order=(step, self._part), words=words, alone=alone, begun=begun)

    def micro_batch(self, index: int, count: int, *, back: bool = False) -> None:
        """It begins a micro-batch of that part, or goes back through it: those with fewer ones wait in their last."""
        words = f"in step {self._step + 1:,}, {PARTS[self._part]}, micro-batch {index + 1:,} of {count:,}"
        words += ", backward" if back else ", forward"
        self._beat = self._beat._replace(order=(self._step, self._part, index - count, int(back)), words=words)

    def _work(self) -> None:
        store: Any = None
        number, ended = 0, False
        while not ended:
            # After the end once more, for those that still look.
            ended, number = self._ended.wait(self._interval if number else 0), number + 1
            try:
                # One connection for each thread: the training thread's may be waiting.
                store = store or store_of_processes(self._phase)
                store.set(str(self._rank), json.dumps(self._beat._replace(number=number)))
                # The second one looks only whether the first one, which speaks for all others, can still speak.
                if self._rank < 2 and not ended:
                    self._tell(self._watch.look(self._beats(store), time.monotonic()))
            except RuntimeError:
                # Of the store. Without it the run is as it would be without this thread.
                continue

    def _beats(self, store: Any) -> list[Beat]:
        keys = map(str, range(self._processes))
        said = [Beat(*json.loads(store.get(key))) if store.check([key]) else Beat() for key in keys]
        return [beat._replace(order=tuple(beat.order)) for beat in said]

    def _tell(self, stall: "Stall | None") -> None:
        if stall is not None and (self._rank == 0 or 0 in stall.silent):
            self._reporter.alarm(f"{self._phase}: {stall.described(self._safe())}")


class Stall(NamedTuple):
    """The slowest of the processes has not moved for too long."""

    seconds: float
    beats: list[Beat]
    """of all processes, by their number"""
    silent: list[int]
    """processes that say nothing any more"""
    behind: list[int]
    """those that are less far than others; none where all are at the same place"""

    def described(self, safe: int) -> str:
        """In words, and what can be done; `safe` steps are in a checkpoint."""
        suspects = self.silent or self.behind
        end = f"the same command goes on after step {safe:,}, the last checkpoint" if safe else "there is no checkpoint"
        start = f"nothing has moved for {self.seconds:.0f} s: "
        if not suspects:
            where = f"all {len(self.beats)} processes are {self.beats[0].words}, and what they exchange does not arrive"
            return f"{start}{where}; look at their devices and at the network, or end the run: {end}"
        named = ", ".join(f"process {rank} ({self.beats[rank]})" for rank in suspects[:SHOWN])
        named += f" and {counted(len(suspects) - SHOWN, 'other')}" if len(suspects) > SHOWN else ""
        first = self.beats[suspects[0]]
        what = "no longer answers; it was last" if self.silent else "holds up all others"
        remedy = (
            f"look at its log, or `py-spy dump --pid {first.pid}` there"
            if not self.silent
            else "look at its log and its host"
        )
        return f"{start}{named} {what} {first.words}; {remedy}; if it is killed, its launcher ends all, and {end}"


class Watch:
    """Tells of every stall once, from what all processes say of themselves."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._least: tuple[int, ...] | None = None
        self._since = 0.0
        self._longest = 0.0
        self._told = False
        self._heard: dict[int, tuple[int, float]] = {}

    def look(self, beats: list[Beat], now: float) -> Stall | None:
        """`now` is the time in seconds."""
        for rank, beat in enumerate(beats):
            if self._heard.get(rank, (-1, 0.0))[0] != beat.number:
                self._heard[rank] = (beat.number, now)
        least = min(beat.order for beat in beats)
        if least != self._least:
            if self._least and not self._told:
                self._longest = max(self._longest, now - self._since)
            self._least, self._since, self._told = least, now, False
            return None
        last = [rank for rank, beat in enumerate(beats) if beat.order == least]
        begun = self._longest or all(beats[rank].begun for rank in last)
        patience = max(self._patience, SLOW * self._longest) if begun else FIRST * self._patience
        seconds = now - self._since
        if self._told or seconds < patience or any(beats[rank].alone for rank in last):
            return None
        self._told = True
        late = [rank for rank, (_, heard) in self._heard.items() if now - heard > self._patience / 2]
        silent = [rank for rank in late if beats[rank].order != END]
        return Stall(seconds, beats, silent, last if len(last) < len(beats) else [])
