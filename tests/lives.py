"""Processes of their own, forked from one that has imported everything: stages that are killed, and command lines.

A life dies from outside, at a moment of the clock, or by its own hand just before its n-th act on a file of its output
folder (opened for writing, renamed or removed), which no clock would ever hit.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import dataclass
from itertools import repeat
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ACTS = {"open", "os.rename", "os.remove", "os.mkdir"}
NURSERY = multiprocessing.get_context("forkserver")
NURSERY.set_forkserver_preload(["tests.lives", "tests.preload"])


def start(config, die_at=0):
    """The stage of a configuration in a process of its own; exit code 0: done, 3: stopped in words, see `said`."""
    life = NURSERY.Process(target=_live, args=(config, die_at))
    life.start()
    return life


def said(config):
    """The error in which the last life for this folder ended."""
    return _words(config).read_text()


def _words(config):
    return Path(config.output_dir + ".said")


def _live(config, die_at):
    import torch

    from stages import generate, score, train_oracle, train_policy
    from stages.configs import GenerateConfig, OracleConfig, PolicyConfig, ScoreConfig
    from stages.errors import SepoError
    from stages.reporting import Quiet

    torch.set_num_threads(1)
    # What the forked process shares with its parent is not to be walked through, which would copy it.
    gc.freeze()
    if die_at:
        sys.addaudithook(_Trap(os.path.realpath(config.output_dir), die_at))
    try:
        stages = {ScoreConfig: score, OracleConfig: train_oracle, PolicyConfig: train_policy, GenerateConfig: generate}
        stages[type(config)].run(config, Quiet())
    except SepoError as error:
        _words(config).write_text(error.message)
        os._exit(3)
    os._exit(0)


@dataclass
class Command:
    """A command line at work, with what it writes to stderr."""

    process: ForkServerProcess
    errors: Path

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process.is_alive()

    def end(self):
        """Its exit code and what it said."""
        self.process.join(180)
        assert not self.alive()
        return self.process.exitcode, self.errors.read_text()


def run_module(module, *arguments, folder, processes=1):
    """`python -m MODULE ...` in this environment, or as many processes of it as torchrun would start."""
    if processes == 1:
        return [_command(module, arguments, folder, {})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    places = [{"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes, **there} for rank in range(processes)]
    return _commands(module, arguments, folder, places)


def run_on_hosts(hosts, module, *arguments, folder):
    """The same, one process on each host: a network namespace and its cable; the first one's address is 10.77.0.1."""
    there = {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": 29577, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    places = [{**there, "GLOO_SOCKET_IFNAME": cable} for _, cable in hosts]
    return _commands(module, arguments, folder, places, [name for name, _ in hosts])


def _commands(module, arguments, folder, places, namespaces=repeat(None)):
    common = {"WORLD_SIZE": len(places), "ACCELERATE_USE_CPU": "true"}
    return [
        _command(module, arguments, folder, {"RANK": rank, **common, **place}, namespace)
        for rank, (place, namespace) in enumerate(zip(places, namespaces, strict=False))
    ]


def _command(module, arguments, folder, place, namespace=None):
    (folder / "said").mkdir(exist_ok=True)
    errors = folder / "said" / f"{len(list((folder / 'said').iterdir()))}.txt"
    errors.touch()
    environment = os.environ | {name: str(value) for name, value in place.items()}
    given = (module, list(map(str, arguments)), dict(environment), errors, namespace)
    process = NURSERY.Process(target=_run_module, args=given)
    process.start()
    return Command(process, errors)


def _run_module(module, arguments, environment, errors, namespace):
    import runpy

    import torch

    if namespace is not None:
        with open(f"/run/netns/{namespace}") as network:
            assert ctypes.CDLL(None).setns(network.fileno(), 0) == 0
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    gc.freeze()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class _Trap:
    """Kills its process just before the n-th act on a file of a folder."""

    def __init__(self, folder, left):
        self.folder, self.left = folder, left

    def __call__(self, event, arguments):
        if event not in ACTS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if os.fspath(arguments[0]).startswith(self.folder):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
