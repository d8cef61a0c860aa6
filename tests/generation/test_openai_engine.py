"""The engine that asks a server: a real one, and one that misbehaves in every way it can think of."""

import json
import threading
import time

import pytest

from stages.errors import SepoError
from stages.generation.engine import Generated, Request
from stages.generation.openai_engine import OpenAIEngine, read_reply
from stages.reporting import Quiet
from tests.conftest import Listens
from tests.generation.server import MODEL, Server, question, said, serving


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("stages.generation.openai_engine.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("stages.generation.openai_engine.PATIENCE", 0.5)


def requests(count, **changes):
    given = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 16, "seed": 1, **changes}
    return [Request([{"role": "user", "content": f"question {index}"}], **given) for index in range(count)]


def ask(url, asked, reporter=None, **options):
    """The answers that came, by index, and the failure behind them."""
    engine = OpenAIEngine(url, MODEL, **{"concurrency": 4, "reporter": reporter or Quiet(), **options})
    answers, failure = {}, None
    try:
        for index, answer in engine.answers(asked):
            assert index not in answers
            answers[index] = answer
    except SepoError as error:
        failure = error
    return answers, failure


def test_as_many_requests_at_a_time_as_allowed_and_each_answer_with_its_index():
    gate = threading.Barrier(3)

    def reply(body):
        gate.wait(10)
        return 200, said(question(body))

    server = Server(reply)
    with serving(server) as url:
        answers, failure = ask(url, requests(12), concurrency=3)
    assert failure is None
    assert server.most == 3
    assert answers == {index: Generated(f"question {index}", ended=True) for index in range(12)}


def test_what_is_wanted_reaches_the_server():
    server = Server()
    with serving(server) as url:
        ask(url, requests(1, temperature=0.7, top_p=0.9, max_new_tokens=33, seed=2**31 + 5))
    wanted = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 33, "seed": 5, "model": MODEL}
    habits = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert (
        wanted.items() | habits.items()
        <= {key: value for key, value in server.asked[-1].items() if key != "messages"}.items()
    )
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "question 0"}]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"max_tokens", "logprobs"}, {"max_tokens", "logprobs"}),
        ({"max_completion_tokens", "logprobs"}, {"max_completion_tokens", "logprobs"}),
        ({"max_tokens"}, {"max_tokens"}),
        ({"max_completion_tokens"}, {"max_completion_tokens"}),
    ],
)
def test_a_server_is_told_no_more_than_it_knows(known, expected):
    base = {"model", "messages", "temperature", "top_p", "seed"}

    class Strict(Server):
        def answer(self, body):
            unknown = body.keys() - base - known
            return (400, {"error": {"message": f"unknown: {unknown}"}}) if unknown else super().answer(body)

    server, reporter = Strict(), Listens()
    with serving(server) as url:
        answers, failure = ask(url, requests(2), reporter)
    assert failure is None
    assert [answers[index].text for index in (0, 1)] == ["question 0", "question 1"]
    assert server.asked[-1].keys() == base | expected
    assert any("takes no top_k, min_p, repetition_penalty" in text for text in reporter.said)


NONSENSE = {
    "no JSON": (200, "<html>gateway"),
    "nothing": (200, ""),
    "no choices": (200, {"choices": []}),
    "an error of 200": (200, {"error": {"message": "out of memory"}}),
    "choices of another shape": (200, {"choices": ["text"]}),
    "a list": (200, []),
    "no content": (200, said(None)),
    "content of parts": (200, said([{"type": "text", "text": "x"}])),
    "stopped for no reason": (200, said("half an ans", None)),
    "half a surrogate pair": (200, '{"choices": [{"finish_reason": "stop", "message": {"content": "\\ud83d"}}]}'),
    "deep": (200, "[" * 100_000),
    "500": (500, {"error": {"message": "out of memory"}}),
    "503": (503, "loading"),
    "429": (429, {"error": {"message": "slower"}}),
    "hung up": None,
}


def test_nonsense_is_asked_for_again_and_never_an_answer():
    """Each question meets one kind of nonsense, then its answer."""
    todo = {f"question {index}": nonsense for index, nonsense in enumerate(NONSENSE.values())}
    server, reporter = Server(lambda body: todo.pop(question(body), (200, said("fine")))), Quiet()
    with serving(server) as url:
        answers, failure = ask(url, requests(len(NONSENSE)), reporter, concurrency=1)
    assert failure is None
    assert answers == {index: Generated("fine", ended=True) for index in range(len(NONSENSE))}
    assert [server.questions.count(asked) for asked in dict.fromkeys(server.questions)] == [2] * len(NONSENSE)
    assert len(reporter.warnings) == len(NONSENSE)
    assert "asking again" in reporter.warnings[0]


@pytest.mark.parametrize(
    ("nonsense", "message"),
    [
        ((200, "<html>gateway"), "no JSON: <html>gateway"),
        ((200, {"choices": []}), 'its finish_reason: {"choices": []}'),
        ((500, {"error": {"message": "out of memory"}}), "HTTP 500, out of memory"),
        (None, "does not answer: Server disconnected without sending a response"),
    ],
)
def test_a_server_that_answers_only_nonsense_is_one_line_and_the_answers_so_far_stay(nonsense, message):
    server = Server(lambda body: nonsense if question(body) == "question 2" else (200, said("fine")))
    with serving(server) as url:
        answers, failure = ask(url, requests(6), concurrency=2)
    assert message in failure.message
    assert "goes on" in failure.hint
    assert "\n" not in failure.message
    assert {0, 1} <= answers.keys()
    assert set(answers.values()) == {Generated("fine", ended=True)}


def test_a_server_that_is_slow(monkeypatch):
    monkeypatch.setattr("stages.generation.openai_engine.LONGEST_ANSWER", 0.3)
    monkeypatch.setattr("stages.generation.openai_engine.PATIENCE", 5.0)
    once = iter([time.sleep])

    def reply(body):
        next(once, abs)(0.5)
        return 200, said("fine")

    with serving(Server(reply)) as url:
        answers, failure = ask(url, requests(1))
        assert failure is None
        assert answers == {0: Generated("fine", ended=True)}
        monkeypatch.setattr("stages.generation.openai_engine.PATIENCE", 0.1)
        once = iter([time.sleep])
        answers, failure = ask(url, requests(1))
    assert answers == {}
    assert "does not answer: timed out" in failure.message


def test_a_server_that_goes_away():
    with serving(Server()) as url:
        engine = OpenAIEngine(url, MODEL, concurrency=1, reporter=Quiet())
        asked = engine.answers(requests(3))
        assert next(asked)[1].text == "question 0"
    with pytest.raises(SepoError, match="does not answer"):
        list(asked)
    with pytest.raises(SepoError, match="Connection refused") as error:
        OpenAIEngine(url, MODEL, concurrency=1, reporter=Quiet())
    assert error.value.hint == "start the server, or correct --base-url"


def test_a_refused_prompt_is_a_problem_and_refused_settings_are_an_error():
    long = (400, {"error": {"message": "maximum context length is 16 tokens", "code": 400}})
    server = Server(lambda body: long if question(body) == "question 1" else (200, said("fine")))
    with serving(server) as url:
        answers, failure = ask(url, requests(3))
    assert failure is None
    problem = "the server refuses it: HTTP 400, maximum context length is 16 tokens"
    assert answers[1] == Generated("", ended=False, problem=problem)
    assert answers[0] == answers[2] == Generated("fine", ended=True)

    class Cold(Server):
        def answer(self, body):
            refused = body["temperature"] not in (0.0, 1.0)
            return (400, {"error": {"message": "temperature must be 1"}}) if refused else super().answer(body)

    with serving(Cold()) as url:
        answers, failure = ask(url, requests(3, temperature=0.7))
    assert answers == {}
    assert failure.message.endswith("refuses even a short question: HTTP 400, temperature must be 1")


def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")

    class Locked(Server):
        def answer(self, body):
            return 401, {"error": {"message": f"wrong key: {self.headers['Authorization']}"}}

    server = Locked()
    with serving(server) as url, pytest.raises(SepoError, match="lets nobody in") as error:
        OpenAIEngine(url, MODEL, concurrency=1, reporter=Quiet())
    assert server.headers["Authorization"] == "Bearer sk-secret"
    assert "secret" not in error.value.message + error.value.hint
    assert "OPENAI_API_KEY" in error.value.hint


def test_a_name_that_the_server_does_not_list():
    class Picky(Server):
        def answer(self, body):
            return 404, {"error": {"message": f"no model {body['model']}"}}

    with serving(Picky(models=["one", "two"])) as url, pytest.raises(SepoError, match="does not serve tiny") as error:
        OpenAIEngine(url, MODEL, concurrency=1, reporter=Quiet())
    assert error.value.hint == "it serves one, two"
    reporter = Quiet()
    with serving(Server(models=["one", "two"])) as url:
        answers, _ = ask(url, requests(1), reporter)
    assert answers[0].text == "question 0"
    assert "says that it serves one, two" in reporter.warnings[0]


def test_ids_and_logps_where_the_server_gives_them():
    given = {"logprobs": {"content": [{"logprob": -0.5}, {"logprob": -2.0}]}, "token_ids": [7, 8]}
    answer = read_reply(json.dumps(said("text", "length", **given) | {"prompt_token_ids": [1, 2, 3]}))
    assert (answer.text, answer.ended) == ("text", False)
    assert [values.tolist() for values in (answer.prompt_ids, answer.answer_ids, answer.logps)] == [
        [1, 2, 3],
        [7, 8],
        [-0.5, -2.0],
    ]
    for content in ([], [{"logprob": None}], [{"logprob": float("nan")}], [{}], None, "text", [{"logprob": -1.0}]):
        answer = read_reply(json.dumps(said("text", logprobs={"content": content}, token_ids=[7, 8])))
        assert (answer.text, answer.logps) == ("text", None)
    assert read_reply(json.dumps(said("text", token_ids=["a"]))).answer_ids is None
    for reason in ("length", "content_filter", "tool_calls"):
        assert reason in read_reply(json.dumps(said(None, reason))).problem
