"""The one interface between what is asked and whatever answers it: a model in this process, or a server."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from stages.types import Floats, Ids, Message


class Request(NamedTuple):
    """One answer that is wanted."""

    messages: list[Message]
    """a conversation that ends where an answer is expected"""
    temperature: float
    """0: always the likeliest token"""
    top_p: float
    max_new_tokens: int
    seed: int
    """of this answer alone: it does not depend on which other requests there are"""


class Generated(NamedTuple):
    """One answer, as an engine gives it."""

    text: str
    """without the end of turn"""
    ended: bool
    """False: cut at `Request.max_new_tokens`, or earlier where the model has no more positions"""
    prompt_ids: Ids | None = None
    """(P,); None where an engine does not tell ids"""
    answer_ids: Ids | None = None
    """(A,), with the end-of-turn token if the answer ended"""
    logps: Floats | None = None
    """(A,), nats, of the model's own distribution: before penalties, temperature and top-p"""
    problem: str = ""
    """why there is no answer, where there is none: the prompt leaves no room, the server refuses this request"""


class GenerationEngine(Protocol):
    """Whatever answers requests."""

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generated]]:
        """Each request's index in the sequence and its answer, in whatever order they are ready.

        The same sequence gives the same answers where the engine can promise that. A server that is gone is a
        `SepoError`; what was yielded before stays.
        """

    def together(self, requests: Sequence[Request]) -> list[list[int]]:
        """The indices of the requests that are computed together: no request can change a bit of another group's.

        Some of these groups, asked without the others, give the same answers again.
        """
