"""`sepo generate --engine openai`: a real server, kills, and what a server may do to a run."""

import threading
import time

import pytest
import transformers.utils.logging
from transformers.cli.serve import Serve

from stages import generate
from stages.configs import GenerateConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.store.answers import open_answers
from tests.conftest import write_lines
from tests.generation.server import Server, question, said, serving
from tests.world import manifest


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("stages.generation.openai_engine.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("stages.generation.openai_engine.PATIENCE", 0.5)


def run(root, url, *models, reporter=None, **options):
    settings = {"engine": "openai", "base_url": url, "prompts": str(root / "prompts.jsonl"), **options}
    config = GenerateConfig(**{"models": models or ("m=tiny",), "output_dir": str(root / "answers"), **settings})
    return generate.run(config, reporter or Quiet())


def texts(root, model="m"):
    return [answer.text for answer in open_answers(root / "answers").answers(model)]


def test_a_server_that_fails_in_the_middle_loses_nothing_and_is_asked_nothing_twice(tmp_path):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"q{n}"} for n in range(12)])
    failing = Server(lambda body: (200, {"choices": []}) if question(body) == "q7" else (200, said(question(body))))
    with serving(failing) as url, pytest.raises(SepoError, match="no choice with a message"):
        run(tmp_path, url, shard_size=5, concurrency=2)
    server = Server()
    with serving(server) as url:
        run(tmp_path, url, shard_size=5, concurrency=2)
        assert texts(tmp_path) == [f"q{n}" for n in range(12)]
        before = set(failing.questions) - {"q7"}
        assert before >= {f"q{n}" for n in range(7)}
        assert not set(server.questions) & before
        assert len(server.questions) == len({*server.questions})
        asked = len(server.asked)
        assert not run(tmp_path, url, shard_size=5, concurrency=2).fresh
        assert len(server.asked) == asked


def test_concurrency_is_how_many_are_asked_at_a_time(tmp_path):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"q{n}"} for n in range(9)])
    gate = threading.Barrier(9)

    def reply(body):
        gate.wait(30)
        return 200, said(question(body))

    with serving(Server(reply)) as url:
        run(tmp_path, url, concurrency=9)
    assert texts(tmp_path) == [f"q{n}" for n in range(9)]


def test_every_model_is_asked_for_before_the_first_one_answers(tmp_path):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "q"}])

    class Picky(Server):
        def answer(self, body):
            return (
                super().answer(body) if body["model"] in self.models else (404, {"error": {"message": "no such model"}})
            )

    server = Picky()
    with serving(server) as url:
        with pytest.raises(SepoError, match="does not serve huge: HTTP 404, no such model") as error:
            run(tmp_path, url, "m=tiny", "n=huge")
        assert error.value.hint == "it serves tiny"
        assert server.questions == []


def test_what_stays_undone_is_counted_and_a_second_turn_follows_the_first(tmp_path):
    rows = [{"turns": ["one", "two"]}, {"turns": ["too long", "never asked"]}, {"turns": ["cut"]}]
    write_lines(tmp_path / "prompts.jsonl", rows)
    replies = {"too long": (400, {"error": {"message": "context"}}), "cut": (200, said("half", "length"))}
    server, reporter = Server(lambda body: replies.get(question(body), (200, said(question(body).upper())))), Quiet()
    with serving(server) as url:
        address = url.replace("://", "://someone:password@")
        run(
            tmp_path,
            address,
            reporter=reporter,
            temperature=0.5,
            max_new_tokens=7,
            chat_template_kwargs='{"think": false}',
        )
    assert texts(tmp_path) == ["ONE", "TWO", "", "", "half"]
    last = next(body for body in server.asked if question(body) == "two")
    assert [turn["content"] for turn in last["messages"]] == ["one", "ONE", "two"]
    assert (last["temperature"], last["max_tokens"], last["chat_template_kwargs"]) == (0.5, 7, {"think": False})
    counts = manifest(tmp_path / "answers")["models"]["m"]["counts"]
    assert (counts["answers"], counts["cut"], counts["problem"]) == (5, 1, 2)
    assert any("the server refuses it: HTTP 400, context" in warning for warning in reporter.warnings)
    assert "password" not in (tmp_path / "answers" / "manifest.json").read_text()


class ThreadedServe(Serve):
    """The server that transformers brings, in a thread that cleans up behind itself."""

    def start_server(self):
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()


@pytest.fixture(scope="module")
def transformers_serve(chat_folder):
    level = transformers.utils.logging.get_verbosity()
    server = ThreadedServe(str(chat_folder), host="127.0.0.1", port=0, device="cpu", non_blocking=True)
    while not server.server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.kill_server()
    transformers.utils.logging.set_verbosity(level)


def test_transformers_serve_gives_the_answers_of_the_engine_here(tmp_path, chat_folder, transformers_serve):
    rows = [{"turns": [f"what is the {word}?", "Are you sure?"]} for word in ("fox", "dog", "capital of France")]
    write_lines(tmp_path / "prompts.jsonl", rows)
    how = {"temperature": 0.0, "max_new_tokens": 24}
    run(tmp_path, transformers_serve, f"m={chat_folder}", concurrency=3, **how)
    served = [*open_answers(tmp_path / "answers").answers("m")]
    run(tmp_path, None, f"m={chat_folder}", engine="transformers", output_dir=str(tmp_path / "here"), **how)
    here = [*open_answers(tmp_path / "here").answers("m")]
    assert [answer.text for answer in served] == [answer.text for answer in here]
    assert [answer.messages for answer in served] == [answer.messages for answer in here]
    assert [answer.ended for answer in served] == [answer.ended for answer in here]
