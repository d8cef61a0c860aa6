"""Where the answers of a model end, as its configurations say."""

from collections.abc import Iterator
from typing import Any

from stages.types import CausalLM


def named_ends(model: CausalLM) -> set[int]:
    """The ids that a model's configurations name."""
    return {id_ for config in _configs(model) for id_ in ids_named(getattr(config, "eos_token_id", None))}


def stop_at(model: CausalLM, end_of_turn: int | None) -> None:
    """Let a model stop where training teaches it to: its configurations name the end of turn beside what they name."""
    for config in _configs(model):
        ids = ids_named(getattr(config, "eos_token_id", None))
        if end_of_turn is not None and end_of_turn not in ids:
            config.eos_token_id = [*ids, end_of_turn] if ids else end_of_turn


def _configs(model: CausalLM) -> Iterator[Any]:
    yield from (config for config in (model.config, getattr(model, "generation_config", None)) if config is not None)


def ids_named(value: Any) -> list[int]:
    """Of an ``eos_token_id``: an id, several or none."""
    return value if isinstance(value, list) else [] if value is None else [value]
