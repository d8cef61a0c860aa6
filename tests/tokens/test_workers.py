"""Workers change how long it takes, and nothing else; whatever ends them ends the run with a line, or goes unnoticed."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ProcessPoolExecutor

import pytest
from transformers import PreTrainedTokenizerFast

from stages.errors import SepoError
from stages.tokens import workers
from stages.tokens.encode import CONTROL, Encoder
from stages.tokens.workers import encode_all
from stages.types import Dropped, Pair
from tests.data.turns import user

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "France", "Paris", "sorry", "<|im_end|>"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(workers, "ROWS_AT_ONCE", 8)
    monkeypatch.setattr(workers, "CHARACTERS_AT_ONCE", 3_000)
    monkeypatch.setattr(workers, "CHUNKS_ALONE", 2)


@pytest.fixture
def started(monkeypatch):
    """Waits for the workers, so that these do what they are there for however quick the first process is."""

    started = []

    class Pool(ProcessPoolExecutor):
        def submit(self, function, *arguments):
            future = super().submit(function, *arguments)
            if function is workers._has_encoder:
                started.append(future.result(timeout=120))
            return future

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    return started


def items(count, seed=0):
    """Rows that take very different times, among them dropped ones of both kinds."""
    draw = random.Random(seed)
    for number in range(count):
        if number % 7 == 3:
            yield Dropped(number, "empty response")
            continue
        texts = [" ".join(draw.choices(WORDS[: 11 + (number % 13 == 5)], k=draw.choice([2, 3, 300]))) for _ in "abc"]
        yield Pair(number, [user(texts[0])], texts[1] + " so", texts[2])


def bytes_of(encoded):
    return [(each.read, each.chunk.pairs.tobytes(), each.chunk.ids.tobytes(), each.dropped) for each in encoded]


def test_the_same_bytes_for_any_number_of_workers(chatml, started):
    alone = bytes_of(encode_all(items(150), Encoder(chatml), workers=0))
    assert started == []
    assert {row.reason for each in alone for row in each[3]} >= {"empty response", CONTROL}
    assert sum(each[0] for each in alone) == 150
    for number in (1, 2):
        assert bytes_of(encode_all(items(150), Encoder(chatml), workers=number)) == alone
    assert started == [True, True]


def test_many_pairs_in_one_call_have_the_ids_of_each_alone(chatml):
    rows = [item for item in items(60) if isinstance(item, Pair)]
    encoder = Encoder(chatml)
    together = encoder.encode_all(rows)
    assert [str(each) for each in together] == [str(Encoder(chatml).encode(row)) for row in rows]


def test_a_small_data_set_starts_no_worker(chatml, monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    rows = [Pair(number, [user("why?")], "so", "no") for number in range(16)]
    assert [each.read for each in encode_all(rows, Encoder(chatml), workers=2)] == [8, 8]
    with pytest.raises(TypeError):
        list(encode_all([*rows, rows[0]], Encoder(chatml), workers=2))


@pytest.mark.parametrize("number", [0, 2])
def test_only_a_few_chunks_are_in_memory(chatml, started, number):
    drawn, most, given = 0, 0, 0

    def counted():
        nonlocal drawn
        for item in items(400):
            drawn += 1
            yield item

    for encoded in encode_all(counted(), Encoder(chatml), workers=number):
        given += encoded.read
        most = max(most, drawn - given)
    assert given == 400
    assert most <= workers.ROWS_AT_ONCE * (number * workers.CHUNKS_AHEAD + 2)


def test_a_row_of_megabytes_is_a_chunk_of_its_own(chatml):
    rows = [Pair(number, [user("why?")], "so " * 2_000, "no") for number in range(3)]
    assert [each.read for each in encode_all(rows, Encoder(chatml), workers=0)] == [1, 1, 1]


def test_a_tokenizer_that_cannot_travel_stays_here(chatml, started):
    """One that nobody can pack, and one whose class is in no module that a worker could import."""
    alone = bytes_of(encode_all(items(100), Encoder(chatml), workers=0))
    encoder = Encoder(chatml)
    encoder.unpackable = lambda: None
    assert bytes_of(encode_all(items(100), encoder, workers=1)) == alone
    assert started == []

    module = types.ModuleType("transformers_modules_here")
    module.Remote = type("Remote", (PreTrainedTokenizerFast,), {"__module__": module.__name__})
    sys.modules[module.__name__] = module
    remote = module.Remote(tokenizer_object=chatml.backend_tokenizer, eos_token="<|im_end|>")
    remote.chat_template = chatml.chat_template
    assert bytes_of(encode_all(items(100), Encoder(remote), workers=1)) == alone
    assert started == [False]


def test_without_room_for_the_encoder_this_process_goes_on_alone(chatml, started, monkeypatch, tmp_path):
    alone = bytes_of(encode_all(items(100), Encoder(chatml), workers=0))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert bytes_of(encode_all(items(100), Encoder(chatml), workers=1)) == alone
    assert started == [False]


def test_a_killed_worker_ends_the_run_with_a_line(chatml, started):
    def killing():
        for number, item in enumerate(items(1000)):
            if number == 200:
                for process in multiprocessing.active_children():
                    process.kill()
            yield item

    with pytest.raises(SepoError, match=r"^a process that tokenised was killed, or could not be started$"):
        list(encode_all(killing(), Encoder(chatml), workers=1))
    assert multiprocessing.active_children() == []


def test_one_core_needs_no_worker(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert workers._cores() == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2)), raising=False)
    assert workers._cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert workers._cores() == workers.MOST_WORKERS


SCRIPT = """
import itertools, sys
from transformers import AutoTokenizer
from stages.types import Pair
from stages.tokens import workers
from stages.tokens.encode import Encoder

print("begun", flush=True)
phase = sys.argv[2]
ready = []

class Pool(workers.ProcessPoolExecutor):
    def submit(self, function, *arguments):
        future = super().submit(function, *arguments)
        if function is workers._has_encoder:
            if phase == "at work":
                ready.append(future.result())
            else:
                print(phase, flush=True)
        return future

workers.ProcessPoolExecutor = Pool
encoder = Encoder(AutoTokenizer.from_pretrained(sys.argv[1]))
rows = (Pair(number, [{"role": "user", "content": "why?"}], "so", "no") for number in itertools.count())
for encoded in workers.encode_all(rows, encoder, workers=2):
    # The first thing that comes back from a worker: both have been started then.
    while ready:
        print("at work" if ready.pop() else "no encoder", flush=True)
"""


@pytest.mark.parametrize(
    ("how", "phase"), [(signal.SIGINT, "at work"), (signal.SIGINT, "starting"), (signal.SIGKILL, "at work")]
)
def test_workers_end_with_the_process_that_started_them(chat_folder, tmp_path, how, phase):
    """A script without a guard for its main part, ended by Ctrl-C (which the terminal sends to all) or by force."""
    (tmp_path / "script.py").write_text(SCRIPT)
    root = os.path.dirname(os.path.dirname(os.path.dirname(workers.__file__)))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(chat_folder), phase],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    assert process.stdout.readline() == f"{phase}\n"
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.kill()
    # They end when the last process that holds the pipes does.
    said, told = process.communicate(timeout=120)
    with pytest.raises(ProcessLookupError):
        until_gone(process.pid)
    assert said == ""
    assert told.count("Traceback") == told.count("KeyboardInterrupt") == (1 if how == signal.SIGINT else 0)


def until_gone(group, seconds=30):
    for _ in range(seconds * 10):
        os.killpg(group, 0)
        time.sleep(0.1)
