"""Answers of a server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, `transformers serve`, OpenAI.

The server renders the conversation with the chat template that its model came with. What else a model's folder or a
server would do by itself (top-k, min-p, penalties) is switched off where the server lets us, and named where not.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, Final, NamedTuple

import numpy as np
import openai

from stages.errors import SepoError, one_line, shortened
from stages.generation.engine import Generated, Request
from stages.reporting import Reporter, printable
from stages.types import Floats, Ids, Message

KEY: Final = "OPENAI_API_KEY"
PATIENCE: Final = 120.0
"""Seconds for which a request that fails is tried again: a server that loads its model anew is back by then."""
LONGEST_ANSWER: Final = 900.0
"""Seconds that an answer may take, the time in the server's queue included."""
FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 8.0
_REFUSED: Final = (400, 413, 422)
"""what servers say to a request that they will never answer"""
_FINAL: Final = (401, 403, 404, 405)
_HELLO: Final[list[Message]] = [{"role": "user", "content": "Hello"}]
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NO_ARGUMENTS: Final[Mapping[str, Any]] = {}
_V1: Final = "--base-url is what comes before /chat/completions, often with /v1 at its end"
_START: Final = "start the server, or correct --base-url"
_GOES_ON: Final = "look at the server's log; the same command goes on from what is answered"


class NonsenseError(Exception):
    """What a server sent is no answer; the message says what it is."""


class _Form(NamedTuple):
    """What may be said to a server beside what all of them know."""

    limit: str
    """how it calls the length of an answer"""
    extras: dict[str, Any]


_Outcome = tuple[int, Generated | Exception]
"""the index of a request, and what became of it"""
_WITHOUT_HABITS: Final[dict[str, Any]] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_FORMS: Final = (
    _Form("max_tokens", {"logprobs": True, "return_token_ids": True, **_WITHOUT_HABITS}),
    _Form("max_tokens", {"logprobs": True}),
    _Form("max_completion_tokens", {"logprobs": True}),
    _Form("max_tokens", {}),
    _Form("max_completion_tokens", {}),
)
"""the fullest first, for vLLM, SGLang and llama.cpp; `transformers serve` and OpenAI refuse what they do not know"""


class OpenAIEngine:
    """Asks a server, several requests at a time; the key in the environment's `OPENAI_API_KEY` is sent if there is one.

    A request that meets no answer, an error of the server's or nonsense is sent again, with growing pauses, for
    `PATIENCE` seconds; then the engine stops with a `SepoError`, after the answers that the others still get.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        concurrency: int,
        reporter: Reporter,
        template_arguments: Mapping[str, Any] = _NO_ARGUMENTS,
    ) -> None:
        """Find out whether the server is there, serves the model, and what may be said to it.

        Args:
            base_url: what comes before ``/chat/completions``, as in ``http://localhost:8000/v1``.
            model: its name on the server.
            concurrency: requests at a time.
            template_arguments: what the server's chat template is told.
        """
        self._model, self._concurrency, self._reporter = model, concurrency, reporter
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise SepoError(f"{KEY} holds a character that no key has", hint="copy the key anew")
        self._url = printable(base_url)
        self._client = openai.OpenAI(
            base_url=base_url,
            # The client wants one; servers of one's own do not.
            api_key=self._key or "none",
            max_retries=0,
            timeout=openai.Timeout(LONGEST_ANSWER, connect=10.0),
        )
        self._template = {"chat_template_kwargs": template_arguments} if template_arguments else {}
        self._accepted: set[tuple[float, float, int]] = set()
        self._down = False
        self._served = self._list_models()
        self._form = self._learn_form()
        if self._elsewhere():
            reporter.warn(
                f"{self._url} answers as {printable(model)}, but says that it serves {self._names()}: some servers"
                " answer to any name"
            )
        if self._form is not _FORMS[0]:
            reporter.say(f"{self._url} takes no {', '.join(_WITHOUT_HABITS)}: where it has such habits, they stay")

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generated]]:
        """See `GenerationEngine`; in the order in which the server answers."""
        todo, ready, stop = _Todo(requests), SimpleQueue[_Outcome | None](), Event()
        workers = min(self._concurrency, len(requests))
        for _ in range(workers):
            # N.B. not a pool of threads, which Python would wait for at its exit: an interruption would take minutes.
            Thread(target=self._work, args=(todo, ready, stop), daemon=True).start()
        failure: Exception | None = None
        try:
            while workers:
                outcome = ready.get()
                if outcome is None:
                    workers -= 1
                elif isinstance(outcome[1], Exception):
                    failure = failure or outcome[1]
                else:
                    yield outcome[0], outcome[1]
        finally:
            stop.set()
        if failure:
            raise failure

    def together(self, requests: Sequence[Request]) -> list[list[int]]:
        """See `GenerationEngine`: what the server does with others at the same time is not ours to know."""
        return [[index] for index in range(len(requests))]

    def _work(self, todo: "_Todo", ready: "SimpleQueue[_Outcome | None]", stop: Event) -> None:
        """Ask what is next until there is nothing more or a request fails, then say so with None."""
        while not stop.is_set() and (item := todo.next()):
            index, request = item
            try:
                ready.put((index, self._answer(request)))
            except Exception as error:
                stop.set()
                ready.put((index, error))
        ready.put(None)

    def _answer(self, request: Request) -> Generated:
        settings = (request.temperature, request.top_p, request.max_new_tokens)
        try:
            generated = self._patiently(request)
        except openai.APIStatusError as refusal:
            if settings not in self._accepted:
                self._refuse_settings(request)
            return Generated("", ended=False, problem=f"the server refuses it: {self._said(refusal)}")
        self._accepted.add(settings)
        return generated

    def _refuse_settings(self, request: Request) -> None:
        """Where a server refuses a short question too, what it refuses is not the prompt."""
        try:
            self._patiently(request._replace(messages=_HELLO))
        except openai.APIStatusError as refusal:
            raise self._failure(refusal) from refusal

    def _patiently(self, request: Request) -> Generated:
        """Ask until there is an answer; a refusal of the server's is an `openai.APIStatusError`."""
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                generated = read_reply(self._ask(request, self._form))
            except (openai.APIError, NonsenseError) as error:
                status = getattr(error, "status_code", None)
                if status in _REFUSED:
                    raise
                if status in _FINAL or time.monotonic() + pause - began > PATIENCE:
                    raise self._failure(error) from error
                self._warn_once(error)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._down = False
                return generated

    def _ask(self, request: Request, form: _Form, retries: int = 0) -> str:
        """The body of the server's reply."""
        reply = self._client.with_options(max_retries=retries).chat.completions.with_raw_response.create(
            model=self._model,
            messages=request.messages,
            temperature=request.temperature,
            top_p=request.top_p,
            # Some have 32 bits for it, and the last of them says: draw one.
            seed=request.seed % 2**31,
            extra_body={form.limit: request.max_new_tokens, **form.extras, **self._template},
        )
        return str(reply.text)

    def _list_models(self) -> list[str]:
        """The names of the models that the server says it has; none where it does not say."""
        try:
            listed = json.loads(self._client.models.with_raw_response.list().text)
            return [str(model["id"]) for model in listed["data"]]
        except openai.APIError as error:
            # Some servers have no such list, or fail at it: what they serve shows when they are asked a question.
            if isinstance(error, openai.APIStatusError) and error.status_code not in (401, 403):
                return []
            raise self._failure(error, _START) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SepoError(f"{self._url}/models is no list of models: {one_line(error)}", hint=_V1) from error

    def _learn_form(self) -> _Form:
        """The fullest form of a request that the server takes."""
        hello = Request(_HELLO, temperature=1.0, top_p=1.0, max_new_tokens=1, seed=0)
        for form in _FORMS:
            try:
                # Some close the connection after a list that failed.
                self._ask(hello, form, retries=1)
            except openai.APIError as error:
                if form is _FORMS[-1] or getattr(error, "status_code", None) not in _REFUSED:
                    raise self._failure(error, _START) from error
            else:
                return form
        raise AssertionError("the last form is taken or raises")

    def _failure(self, error: Exception, hint: str = _GOES_ON) -> SepoError:
        """What is to be said of a request that no repetition helps."""
        status, said = getattr(error, "status_code", None), self._said(error)
        if status in (401, 403):
            return SepoError(f"{self._url} lets nobody in: {said}", hint=f"put its key into {KEY}")
        if status in (*_REFUSED, *_FINAL) and self._elsewhere():
            served = f"it serves {self._names()}"
            return SepoError(f"{self._url} does not serve {printable(self._model)}: {said}", hint=served)
        if status in _FINAL:
            return SepoError(f"{self._url} is no such server: {said}", hint=_V1)
        if status in _REFUSED:
            return SepoError(f"{self._url} refuses even a short question: {said}", hint="give it what it takes")
        if isinstance(error, openai.APIError):
            return SepoError(f"{self._url} does not answer: {said}", hint=hint)
        return SepoError(f"{self._url} answers with {said}", hint=hint)

    def _elsewhere(self) -> bool:
        """Whether the server lists models, and this is none of them."""
        return bool(self._served) and self._model not in self._served

    def _names(self) -> str:
        more = f" and {len(self._served) - 10:,} more" if len(self._served) > 10 else ""
        return printable(", ".join(self._served[:10])) + more

    def _warn_once(self, error: Exception) -> None:
        """Say that a server is in trouble, once until it is out of it."""
        if not self._down:
            self._down = True
            self._reporter.warn(f"{self._failure(error).message}; asking again for {PATIENCE:,.0f} s")

    def _said(self, error: Exception) -> str:
        """What an error says, in one line, without the key that a server may repeat."""
        if isinstance(error, openai.APIStatusError):
            body = error.body if isinstance(error.body, dict) else {}
            said = f"HTTP {error.status_code}, {body.get('message') or body.get('detail') or error.body or 'no reason'}"
        elif isinstance(error, openai.APIConnectionError) and error.__cause__:
            # The client itself says no more than that.
            said = one_line(error.__cause__)
        else:
            said = one_line(error)
        return printable(_excerpt(said.replace(self._key, "...") if self._key else said))


class _Todo:
    """Requests, each of which one of several threads takes."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._rest, self._turn = iter(enumerate(requests)), Lock()

    def next(self) -> tuple[int, Request] | None:
        with self._turn:
            return next(self._rest, None)


def read_reply(text: str) -> Generated:
    """The answer in the body of a reply; a `NonsenseError` where there is none."""
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NonsenseError(f"no JSON: {_excerpt(text)}") from error
    try:
        choice = reply["choices"][0]
        reason, content = choice["finish_reason"], choice["message"].get("content")
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise NonsenseError(f"no choice with a message and its finish_reason: {_excerpt(text)}") from error
    if reason in ("content_filter", "tool_calls") or (reason == "length" and content is None):
        return Generated("", ended=False, problem=f"the server gives no text of an answer: finish_reason {reason}")
    if not isinstance(content, str) or reason not in ("stop", "length") or _LONE_SURROGATE.search(content):
        raise NonsenseError(f"no text with finish_reason stop or length: {_excerpt(text)}")
    ids, logps = _ids(choice.get("token_ids")), _logps(choice)
    if ids is not None and logps is not None and len(ids) != len(logps):
        logps = None
    return Generated(content, reason == "stop", _ids(reply.get("prompt_token_ids")), ids, logps)


def _excerpt(text: str) -> str:
    return shortened(" ".join(text[:1000].split()) or "nothing")


def _ids(values: Any) -> Ids | None:
    """Token ids, which only some servers give."""
    sound = isinstance(values, list) and values and all(type(id_) is int and 0 <= id_ < 2**31 for id_ in values)
    return np.array(values, np.int32) if sound else None


def _logps(choice: Mapping[str, Any]) -> Floats | None:
    """Log-probs of the answer's tokens, which only some servers give."""
    try:
        logps = np.array([token["logprob"] for token in choice["logprobs"]["content"]], np.float32)
    except (KeyError, TypeError, ValueError):
        return None
    return logps if len(logps) and np.isfinite(logps).all() else None
