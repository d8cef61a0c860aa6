"""Stages that are killed: each life is a process of its own, forked from one that has imported everything.

A life dies from outside, at a moment of the clock, or by its own hand just before its n-th act on a file of its output
folder (opened for writing, renamed or removed), which no clock would ever hit.
"""

import gc
import multiprocessing
import os
import signal
import sys
from pathlib import Path

ACTS = {"open", "os.rename", "os.remove", "os.mkdir"}
NURSERY = multiprocessing.get_context("forkserver")
NURSERY.set_forkserver_preload(["tests.lives", "tests.world", "transformers.models.llama.modeling_llama", "pandas"])


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

    from stages import score, train_oracle, train_policy
    from stages.configs import OracleConfig, PolicyConfig, ScoreConfig
    from stages.errors import SepoError
    from stages.reporting import Quiet

    torch.set_num_threads(1)
    # What the forked process shares with its parent is not to be walked through, which would copy it.
    gc.freeze()
    if die_at:
        sys.addaudithook(_Trap(os.path.realpath(config.output_dir), die_at))
    try:
        stages = {ScoreConfig: score, OracleConfig: train_oracle, PolicyConfig: train_policy}
        stages[type(config)].run(config, Quiet())
    except SepoError as error:
        _words(config).write_text(error.message)
        os._exit(3)
    os._exit(0)


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


def child_of(number):
    """A process that another one started."""
    return int(Path(f"/proc/{number}/task/{number}/children").read_text().split()[-1])
