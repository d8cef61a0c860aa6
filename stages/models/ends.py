"""Where the answers of a model end, as its configurations say."""

from collections.abc import Iterator
from typing import Any

from stages.types import CausalLM


def named_ends(model: CausalLM) -> set[int]:
    """The ids that a model's configurations name."""
    return {id_ for config in _configs(model) for id_ in _named(config)}


def stop_at(model: CausalLM, end_of_turn: int | None) -> None:
    """Let a model stop where training teaches it to: its configurations name the end of turn beside what they name."""
    for config in _configs(model):
        ids = _named(config)
        if end_of_turn is not None and end_of_turn not in ids:
            config.eos_token_id = [*ids, end_of_turn] if ids else end_of_turn


def _configs(model: CausalLM) -> Iterator[Any]:
    yield from (config for config in (model.config, getattr(model, "generation_config", None)) if config is not None)


def _named(config: Any) -> list[int]:
    named = getattr(config, "eos_token_id", None)
    return named if isinstance(named, list) else [] if named is None else [named]
