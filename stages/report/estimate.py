"""What the stages will cost, estimated from a model's configuration and the number of tokens.

A token costs 2 floating-point operations a parameter forward, and 6 with backward (arXiv 2001.08361 section 2.1), more
in long contexts. Memory is what has to fit at least: weights, and what the smallest micro-batch leaves behind.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.configs import OptimizerConfig, OracleConfig, PolicyConfig
from stages.models.folders import without_weights
from stages.reporting import Table
from stages.training.budget import SMALLEST
from stages.training.schedule import make_schedule

FORWARD: Final = 2
TRAINING: Final = 6
"""operations a parameter and token"""
TRAINING_BYTES: Final = 16
"""a parameter: weight, gradient and Adam's two moments, each in float32"""
FORWARD_BYTES: Final = 4


class ModelSize(NamedTuple):
    """What of a model decides its cost."""

    parameters: int
    embeddings: int
    """ids that it has an embedding for"""
    activations: int
    """numbers that a token leaves behind for the backward pass, about"""
    positions: int | None
    """the longest row that the model was made for, where its configuration says so"""


def model_size(folder: Path, *, trust_remote_code: bool) -> ModelSize:
    """Count a model's parameters from its configuration alone, without room for them."""
    model = without_weights(folder, trust_remote_code=trust_remote_code)
    text = model.config.get_text_config()
    hidden = int(text.hidden_size)
    intermediate = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    return ModelSize(
        parameters=model.num_parameters(),
        embeddings=model.get_input_embeddings().weight.shape[0],
        activations=int(text.num_hidden_layers) * (8 * hidden + 4 * intermediate),
        positions=getattr(text, "max_position_embeddings", None),
    )


def stage_costs(size: ModelSize, pairs: int, tokens: Mapping[str, int]) -> list[dict[str, Any]]:
    """The cost of every stage with its default settings, if this model is both oracle and policy.

    Of each ``stage`` the ``tokens`` that a model sees over all epochs, the ``steps`` of the optimiser (None where
    nothing is trained), ``operations``, and ``memory`` in bytes, at the least. `tokens` are those of all prompts
    (each computed once for both answers), chosen and rejected responses.
    """
    oracle, policy, total = OracleConfig(), PolicyConfig(), sum(tokens.values())
    share = 1 - oracle.eval_fraction
    # The reference sees every pair once.
    forward = FORWARD * size.parameters * total

    def cost(stage: str, seen: float, pairs: float, config: OptimizerConfig, more: int = 0) -> dict[str, Any]:
        seen = round(config.num_train_epochs * seen)
        return {
            "stage": stage,
            "tokens": seen,
            "steps": make_schedule(max(1, round(pairs)), config).steps,
            "operations": TRAINING * size.parameters * seen + more,
            "memory": TRAINING_BYTES * size.parameters + FORWARD_BYTES * size.activations * min(SMALLEST, total),
        }

    sft = OptimizerConfig(batch_size=oracle.sft_batch_size, num_train_epochs=oracle.sft_epochs)
    return [
        cost("SFT (train-oracle)", share * (tokens["prompt"] + tokens["chosen"]), share * pairs, sft),
        cost("DPO (train-oracle)", share * total, share * pairs, oracle, forward),
        # Two models side by side.
        {"stage": "score", "tokens": 2 * total, "steps": None, "operations": 2 * forward}
        | {"memory": 2 * FORWARD_BYTES * size.parameters},
        cost("train-policy", total, pairs, policy),
    ]


def cost_table(costs: list[dict[str, Any]], size: ModelSize, memory: int) -> Table:
    """The costs in units for people, beside the bytes of memory that are there."""
    rows = [
        [
            cost["stage"],
            f"{cost['tokens']:,}",
            f"{cost['steps']:,}" if cost["steps"] else "",
            three_digits(cost["operations"] / 1e12),
            gigabytes(cost["memory"]),
        ]
        for cost in costs
    ]
    title = f"Estimate for the default settings ({size.parameters:,} parameters; {gigabytes(memory)} of memory here)"
    return Table(title, ["stage", "tokens seen", "steps", "TFLOP", "memory, at least"], rows)


def gigabytes(count: int) -> str:
    return f"{three_digits(count / 1e9)} GB"


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
