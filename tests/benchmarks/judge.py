"""A judge for the official tools: an OpenAI-compatible server on loopback with an opinion, and the tools' commands."""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from threading import Thread

from stages.benchmarks.judges import URL


@contextmanager
def judging(opinion):
    """A server whose answers are what `opinion` makes of a request's JSON: a text, or tokens with log-probs.

    Yields its address and the requests that it got.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, request))
            data = json.dumps(completion(opinion(request), request["model"])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
        server.shutdown()


def completion(said, model):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
    if isinstance(said, dict):
        tokens = [{"token": token, "logprob": logp, "bytes": None} for token, logp in said.items()]
        best = max(tokens, key=lambda token: token["logprob"])
        choice["message"]["content"] = best["token"]
        choice["logprobs"] = {"content": [best | {"top_logprobs": tokens}]}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": [choice], "usage": usage}


def carry_out(steps, folder, url, scripts):
    """Run the commands of next steps as they stand, but for what needs the internet, and with `url` for the judge's.

    Args:
        folder: that of `sepo generate`.
        scripts: the tools' commands, which this environment may have nowhere on its PATH.
    """
    for file in steps.files:
        (folder / file).write_text((folder / file).read_text().replace(URL, url))
    programs = folder.parent / "bin"
    programs.mkdir()
    python = f"exec {shlex.quote(sys.executable)} -W ignore"
    (programs / "python").write_text(f'#!/bin/sh\n{python} "$@"\n')
    for name in scripts:
        [script] = entry_points(group="console_scripts", name=name)
        module, function = script.value.split(":")
        (programs / name).write_text(f'#!/bin/sh\n{python} -c "from {module} import {function}; {function}()" "$@"\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    commands = re.sub(r"^(pip install|hf download) .*\n", "", steps.text.replace(URL, url), flags=re.MULTILINE)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    shell = ["bash", "-e", "-o", "pipefail"]
    done = subprocess.run(
        shell, input=commands, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done
