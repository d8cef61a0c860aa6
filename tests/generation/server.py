"""A server of chat completions that answers what it is told to."""

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "tiny"


def said(text, reason="stop", **more):
    return {
        "choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}, **more}]
    }


class Server:
    """Answers each chat completion with what `reply` makes of it: a status and a JSON value or a text, or an exception.

    A question is repeated as its answer where there is no `reply`.
    """

    def __init__(self, reply=None, models=(MODEL,)):
        self.reply, self.models = reply or (lambda body: (200, said(question(body)))), models
        self.asked, self.now, self.most, self.lock = [], 0, 0, threading.Lock()
        self.headers = {}

    def answer(self, body):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.asked.append(body)
        try:
            return (200, said("", "length")) if question(body) == "Hello" else self.reply(body)
        finally:
            with self.lock:
                self.now -= 1

    @property
    def questions(self):
        return [question(body) for body in self.asked if question(body) != "Hello"]


def question(body):
    return body["messages"][-1]["content"]


@contextmanager
def serving(server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]})

        def do_POST(self):
            server.headers = self.headers
            reply = server.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if reply is None:
                self.close_connection = True
            else:
                self.send(*reply)

        def send(self, status, value):
            text = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def handle(self):
            # Whoever asks may be gone before there is an answer.
            with suppress(ConnectionError):
                super().handle()

        def log_message(self, *_): ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
