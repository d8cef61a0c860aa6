"""Pairs to ids on all cores: this process reads, workers tokenise, and what comes out is in the order of what went in.

Work travels in chunks whose bounds depend on the rows alone, and the same function makes ids of a chunk wherever it
runs: the number of workers decides how long it takes, and nothing else.
"""

import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple, TypeVar

from stages.errors import SepoError
from stages.tokens.encode import Encoder
from stages.tokens.table import Chunk, chunk_of
from stages.types import Dropped, Pair, TokenPair

ROWS_AT_ONCE: Final = 512
CHARACTERS_AT_ONCE: Final = 1 << 20
CHUNKS_ALONE: Final = 16
"""what is done before a worker is started, which takes about as long"""
CHUNKS_AHEAD: Final = 3
"""for each worker; bounds the memory"""
MOST_WORKERS: Final = 8
"""more than these, and the reader is what everyone waits for"""

Items = list[Pair | Dropped]
Done = TypeVar("Done")


class Encoded(NamedTuple):
    """What became of some rows."""

    read: int
    chunk: Chunk
    dropped: list[Dropped]


def encode_all(
    items: Iterable[Pair | Dropped], encoder: Encoder, workers: int | None = None
) -> Generator[Encoded, None, None]:
    """Every item, in order, in chunks.

    Args:
        workers: how many processes to start for a data set that is worth it; None: one for each core.

    Raises:
        SepoError: a worker was killed.
    """
    chunks = _chunks(items)
    for chunk in itertools.islice(chunks, CHUNKS_ALONE):
        yield encode_chunk(chunk, encoder)
    following = next(chunks, None)
    if following is None:
        return
    rest = itertools.chain([following], chunks)
    number = _cores() if workers is None else workers
    packed = _packed(encoder) if number else None
    yield from _in_parallel(rest, encoder, packed, number) if packed else (encode_chunk(each, encoder) for each in rest)


def encode_chunk(items: Items, encoder: Encoder) -> Encoded:
    encoded = encoder.encode_all([item for item in items if isinstance(item, Pair)])
    dropped = [item for item in (*items, *encoded) if isinstance(item, Dropped)]
    kept = chunk_of(item for item in encoded if isinstance(item, TokenPair))
    return Encoded(len(items), kept, sorted(dropped, key=lambda row: row.pair_id))


def _in_parallel(chunks: Iterable[Items], encoder: Encoder, packed: bytes, workers: int) -> Iterator[Encoded]:
    """This process goes on alone until a worker is there, or if none can take the encoder."""
    spawn = multiprocessing.get_context("spawn")
    with _file_of(packed) as name:
        pool = ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(name,))
        waiting: deque[Future[Encoded]] = deque()
        try:
            ready = _submit(pool, _has_encoder)
            for chunk in chunks:
                if not (ready.done() and ready.result()):
                    yield encode_chunk(chunk, encoder)
                    continue
                waiting.append(_submit(pool, _encode, chunk))
                if len(waiting) > workers * CHUNKS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except (BrokenProcessPool, OSError) as error:
            raise SepoError(
                "a process that tokenised was killed, or could not be started",
                hint="the system does that where memory is short; `taskset -c 0 sepo ...` tokenises in one process",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, work: Callable[..., Done], *arguments: Items) -> "Future[Done]":
    """Any piece of work may be the one for which the pool starts a worker."""
    with _undisturbed(), _without_main():
        return pool.submit(work, *arguments)


def _chunks(items: Iterable[Pair | Dropped]) -> Iterator[Items]:
    """Items together, bounded in number and in text: a row may have megabytes."""
    chunk: Items = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += _size(item)
        if len(chunk) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _size(item: Pair | Dropped) -> int:
    if isinstance(item, Dropped):
        return 0
    return len(item.chosen) + len(item.rejected) + sum(len(turn["content"]) for turn in item.prompt)


def _cores() -> int:
    """Workers for the cores that this process may use; none for a single one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS) if cores > 1 else 0


def _packed(encoder: Encoder) -> bytes | None:
    """The encoder for another process; None if it holds something that cannot leave this one."""
    try:
        return pickle.dumps(encoder)
    except Exception:  # whatever a tokenizer's own code raises
        return None


@contextmanager
def _file_of(packed: bytes) -> Iterator[str]:
    """The name of a file; where no disk takes it whole, a worker finds no encoder there.

    A tokenizer has megabytes. Handed over in the pipe a worker is started through, they would hold this process up for
    ever where the worker dies before it has read them.
    """
    with ExitStack() as stack:
        name = ""
        with suppress(OSError):
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="sepo-", buffering=0))
            name = file.name
            file.write(packed)
        yield name


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What is started in the block never gets Ctrl-C, which a terminal sends to all: this process will end it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Workers need nothing of the program that called us, and spawn would run a user's script in each of them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# --- in a worker ---

_encoder: Encoder | None = None


def _begin(encoder_file: str) -> None:
    global _encoder
    _end_with_parent()
    # There is a worker for every core already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A tokenizer whose code came with its model, or from the user's script, is not to be had here.
    with suppress(Exception):
        _encoder = pickle.loads(Path(encoder_file).read_bytes())


def _end_with_parent() -> None:
    """A parent that is killed cannot say goodbye, and its workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _has_encoder() -> bool:
    return _encoder is not None


def _encode(items: Items) -> Encoded:
    assert _encoder
    return encode_chunk(items, _encoder)
