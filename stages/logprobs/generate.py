"""Sampling answers from a model, seeded."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import GenerationConfig

from stages.reporting import Task
from stages.types import CausalLM, Ids


@torch.no_grad()
def sample(
    model: CausalLM,
    prompts: list[Ids],
    *,
    end_of_turn: int | None,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    task: Task,
) -> list[Ids]:
    """One answer a prompt, drawn at temperature 1 from the whole vocabulary, up to and with its end of turn.

    What the model's generation_config.json asks for (penalties, suppressed tokens, other ends) has no part in it. The
    same seed, prompts and batch size give the same answers; torch's global generator is left as it was.
    """
    answers: list[Ids] = []
    how = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_of_turn,
        pad_token_id=end_of_turn if end_of_turn is not None else 0,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _without_its_own_settings(model):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            ids_BT, attention_BT = _pad_left(prompts[start : start + batch_size])
            generated_BT = model.generate(
                input_ids=ids_BT.to(model.device),
                attention_mask=attention_BT.to(model.device),
                generation_config=how,
            )
            for row in generated_BT[:, ids_BT.shape[1] :].cpu().numpy():
                ends = np.flatnonzero(row == end_of_turn)
                answers.append(row[: ends[0] + 1] if len(ends) else row)
                task.advance()
    return answers


def stop_at(model: CausalLM, end_of_turn: int | None) -> None:
    """Let a model stop where training teaches it to: its configurations name the end of turn beside what they name."""
    for config in (model.config, model.generation_config):
        named = getattr(config, "eos_token_id", None)
        ids = named if isinstance(named, list) else [] if named is None else [named]
        if config is not None and end_of_turn is not None and end_of_turn not in ids:
            config.eos_token_id = [*ids, end_of_turn] if ids else end_of_turn


@contextmanager
def _without_its_own_settings(model: CausalLM) -> Iterator[None]:
    """`generate` fills whatever a configuration leaves open from that of the model, so the model may not have any."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _pad_left(prompts: list[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids_BT = np.zeros((len(prompts), width), np.int64)
    attention_BT = np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, width - len(prompt) :] = prompt
        attention_BT[row, width - len(prompt) :] = 1
    return torch.from_numpy(ids_BT), torch.from_numpy(attention_BT)
