"""Small runs of `fit`, for the tests that look at what came out, and ears that end one early."""

import signal

import torch

from stages.configs import OptimizerConfig
from stages.logprobs.batches import whole
from stages.registry import OBJECTIVES
from stages.reporting import Quiet
from stages.training.loop import fit
from tests.conftest import random_pairs, tiny_llama

sepo = OBJECTIVES["sepo"].load()

SETTINGS = {"learning_rate": 1e-2, "batch_size": 4, "warmup_ratio": 0.0, "num_train_epochs": 2, "save_steps": 0}


def objective(logps_RW, batch):
    return sepo(logps_RW, batch, gamma=2.1, margin=0.5)


def train(
    folder,
    *,
    pairs=10,
    objective=objective,
    model=None,
    size=None,
    reporter=None,
    held_out=(),
    patience=45.0,
    **settings,
):
    folder.mkdir(exist_ok=True)
    model = model or tiny_llama(50)
    examples = [whole(pair) for pair in random_pairs(pairs, 50)]
    more = (
        {"patience": patience} | ({} if size is None else {"size": size}) | ({"held_out": held_out} if held_out else {})
    )
    config = OptimizerConfig(**{**SETTINGS, **({"eval_fraction": 0.1} if held_out else {}), **settings})
    fit(model, examples, objective, config, phase="test", folder=folder, reporter=reporter or Quiet(), **more)
    return model


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Killed(Exception):
    pass


class KilledAfter(Quiet):
    """Stops the run once so many steps are done, as a power cut would."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def advance(self, amount=1, figures=None):
        self.left -= amount
        if self.left < 0:
            raise Killed


class KilledIn(KilledAfter):
    """The same in one phase of a stage."""

    def __init__(self, phase, steps):
        super().__init__(steps)
        self.phase, self.title = phase, ""

    def task(self, title, total, unit):
        self.title = title
        return super().task(title, total, unit)

    def advance(self, amount=1, figures=None):
        if self.title == self.phase:
            super().advance(amount, figures)


class Asks(Quiet):
    """Sends this process a signal once a step is done, and remembers what was said."""

    def __init__(self, after, number=signal.SIGTERM):
        super().__init__()
        self.after, self.number, self.said = after, number, []

    def say(self, text):
        self.said.append(text)

    def advance(self, amount=1, figures=None):
        self.after -= amount
        if self.after == 0:
            signal.raise_signal(self.number)
