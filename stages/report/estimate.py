"""What the stages will cost on this machine, estimated without a model's weights.

A token costs 2 floating-point operations a parameter forward, and 6 forward and backward (arXiv 2001.08361). The
embedding is a look-up and costs nothing; the output head is counted for response tokens only, which is too much where a
policy selects some of them. Attention over long contexts and the disk are not counted: `EFFICIENCY` stands for that.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from stages.configs import OptimizerConfig, OracleConfig, PolicyConfig, ScoreConfig
from stages.errors import borrowed
from stages.models.fit import REMEDY
from stages.models.folders import load_config
from stages.reporting import Table
from stages.training.budget import budget_in_room, memory_of, tokens_in_room
from stages.training.schedule import make_schedule

FORWARD: Final = 2
TRAINING: Final = 6
EFFICIENCY: Final = 0.4
"""a model's speed as a share of a bare matrix product's: 0.33 to 0.58 when measured with SmolLM2-135M in float32,
forward and in training, on two CPU cores that others used too"""
TRAINING_BYTES: Final = 16
"""a parameter: weight, gradient and Adam's two moments, each in float32"""
FORWARD_BYTES: Final = 4
_BENCHMARK_SECONDS: Final = 0.3
_PRODUCT: Final = 1 << 30
"""operations of one product of the benchmark: a few hundredths of a second on a slow machine"""
_PRODUCTS: Final = 4
_WIDEST: Final = 4096


class Shape(NamedTuple):
    """What of a model decides its cost."""

    parameters: int
    head: int
    """parameters of the output head, one row a token of the vocabulary"""
    embedding: int
    """parameters that are looked up, not multiplied with; 0 where the head is the embedding"""
    layers: int
    hidden: int
    intermediate: int
    positions: int | None
    """the longest row that the model was made for, where its configuration says so"""

    @property
    def body(self) -> int:
        return self.parameters - self.head - self.embedding

    @property
    def vocabulary(self) -> int:
        return self.head // self.hidden

    @property
    def activations(self) -> int:
        """Numbers that a token leaves behind for the backward pass."""
        return self.layers * (8 * self.hidden + 4 * self.intermediate)


class Tokens(NamedTuple):
    """How much data there is, after every limit."""

    pairs: int
    prompt: int
    chosen: int
    rejected: int

    def share(self, part: float) -> "Tokens":
        return Tokens(*(round(part * count) for count in self))

    @property
    def responses(self) -> int:
        return self.chosen + self.rejected

    @property
    def unique(self) -> int:
        """Tokens that a model sees of every pair: the prompt is computed once for both answers."""
        return self.prompt + self.responses


class Machine(NamedTuple):
    """What the stages would run on."""

    device: str
    speed: float
    """float32 operations a second"""
    memory: int
    """bytes"""


class Cost(NamedTuple):
    """What a stage costs."""

    stage: str
    tokens: int
    """that a model sees, over all epochs"""
    steps: int | None
    """of the optimiser; None where nothing is trained"""
    operations: float
    memory: int
    """bytes, at the most"""

    def seconds(self, machine: Machine) -> float:
        return self.operations / (EFFICIENCY * machine.speed)


def model_shape(folder: Path, *, trust_remote_code: bool) -> Shape:
    """Count a model's parameters from its configuration alone, without room for them.

    Raises:
        SepoError: transformers cannot make a causal language model of it.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    with borrowed(f"{folder}/config.json describes no causal language model", REMEDY), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    rows = head.weight.numel() if head is not None else 0
    tied = head is not None and head.weight is embedding.weight
    text = config.get_text_config()
    hidden = int(text.hidden_size)
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        head=rows,
        embedding=0 if tied else embedding.weight.numel(),
        layers=int(text.num_hidden_layers),
        hidden=hidden,
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        positions=getattr(text, "max_position_embeddings", None),
    )


def measure_machine(shape: Shape, device: torch.device) -> Machine:
    """How fast this machine multiplies now, which takes less than a second, and how much memory it has."""
    return Machine(str(device), _speed(shape, device), memory_of(device))


def stage_costs(shape: Shape, tokens: Tokens, machine: Machine) -> list[Cost]:
    """The cost of every stage with its default settings, if this model is both oracle and policy."""
    oracle, policy = OracleConfig(), PolicyConfig()
    held_out = tokens.share(oracle.eval_fraction)
    train = Tokens(*(all_ - held for all_, held in zip(tokens, held_out, strict=True)))
    sft = OptimizerConfig(batch_size=oracle.sft_batch_size, num_train_epochs=max(1, oracle.sft_epochs))
    sft_tokens = oracle.sft_epochs * (train.prompt + train.chosen)
    # The reference sees every pair once, the finished oracle the held-out ones.
    judging = _forward(shape, tokens) + _forward(shape, held_out)
    return [
        Cost(
            "SFT (train-oracle)",
            sft_tokens,
            make_schedule(max(1, train.pairs), sft).steps,
            TRAINING * (shape.body * sft_tokens + shape.head * oracle.sft_epochs * train.chosen),
            _training_memory(shape, tokens, machine),
        ),
        _preference_cost("DPO (train-oracle)", shape, train, oracle, machine, judging),
        Cost("score", 2 * tokens.unique, None, 2 * _forward(shape, tokens), _scoring_memory(shape, tokens)),
        _preference_cost("train-policy", shape, tokens, policy, machine),
    ]


def cost_table(costs: list[Cost], machine: Machine) -> Table:
    """The costs in units for people."""
    rows = [
        [
            cost.stage,
            f"{cost.tokens:,}",
            "" if cost.steps is None else f"{cost.steps:,}",
            duration(cost.seconds(machine)),
            gigabytes(cost.memory),
        ]
        for cost in costs
    ]
    speed = f"{three_digits(machine.speed / 1e9)} GFLOP/s as measured just now"
    title = f"Estimate for the default settings on {machine.device} ({speed}; {gigabytes(machine.memory)} of memory)"
    return Table(title, ["stage", "tokens seen", "steps", "about", "memory, at most"], rows)


def duration(seconds: float) -> str:
    """In the unit that fits, such as ``42 s`` or ``3.5 h``."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 1 else "under 1 s"


def gigabytes(count: int) -> str:
    return f"{three_digits(count / 1e9)} GB"


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _preference_cost(
    stage: str, shape: Shape, tokens: Tokens, config: OptimizerConfig, machine: Machine, more: float = 0.0
) -> Cost:
    training = config.num_train_epochs * TRAINING / FORWARD * _forward(shape, tokens)
    return Cost(
        stage,
        config.num_train_epochs * tokens.unique,
        make_schedule(max(1, tokens.pairs), config).steps,
        training + more,
        _training_memory(shape, tokens, machine),
    )


def _forward(shape: Shape, tokens: Tokens) -> float:
    """Operations of one forward pass over every pair."""
    return FORWARD * (shape.body * tokens.unique + shape.head * tokens.responses)


def _training_memory(shape: Shape, tokens: Tokens, machine: Machine) -> int:
    """With the budget that training would choose by itself."""
    standing, per_token = TRAINING_BYTES * shape.parameters, FORWARD_BYTES * shape.activations
    device = torch.device(machine.device).type
    budget = budget_in_room(device, tokens_in_room(device, machine.memory, standing, per_token))
    return standing + min(budget, tokens.unique) * per_token


def _scoring_memory(shape: Shape, tokens: Tokens) -> int:
    """Two models side by side; a layer's activations go again, and logits are never whole."""
    per_token = FORWARD_BYTES * shape.activations // shape.layers
    seen_at_once = min(ScoreConfig.max_tokens_per_device, tokens.unique)
    return 2 * FORWARD_BYTES * shape.parameters + seen_at_once * per_token


def _speed(shape: Shape, device: torch.device) -> float:
    """Operations a second of matrix products as wide as the model's, the median of several attempts."""
    hidden, intermediate = min(shape.hidden, _WIDEST), min(shape.intermediate, _WIDEST)
    rows = min(ScoreConfig.max_tokens_per_device, max(64, _PRODUCT // (FORWARD * hidden * intermediate)))
    left, right = torch.ones(rows, hidden, device=device), torch.ones(hidden, intermediate, device=device)
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    left @ right
    wait()
    seconds, end = [], time.perf_counter() + _BENCHMARK_SECONDS
    while (start := time.perf_counter()) < end:
        for _ in range(_PRODUCTS):
            left @ right
        wait()
        seconds.append(time.perf_counter() - start)
    return _PRODUCTS * FORWARD * rows * hidden * intermediate / statistics.median(seconds)
