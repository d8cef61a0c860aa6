"""A language model of which only the last layers are trained, and what is below them is computed once for all.

Oracles and policies on real text, where two cores have to do: every layer below the last ones makes the same hidden
states for all of them, which are kept in a file; what is above costs a quarter of SmolLM2-135M.

Shapes: ``L`` tokens of a packed row, a prompt and then its responses; ``N`` response tokens of it; ``D`` hidden
size; ``V`` ids; ``R``, ``W`` as in `stages.method.rewards`.
"""

import copy
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.types import Ids

LAYERS: Final = 6
"""that are trained, of SmolLM2-135M's 30"""
BATCH: Final = 8


class Row(NamedTuple):
    """A prompt and its responses as one row: each of them attends to the prompt and itself."""

    prompt: Ids
    responses: list[Ids]

    @property
    def ids(self) -> Tensor:
        """(L,)"""
        return torch.from_numpy(np.concatenate([self.prompt, *self.responses])).long()

    @property
    def targets(self) -> Tensor:
        """(N,) the responses' ids"""
        return self.ids[len(self.prompt) :]

    @property
    def lengths(self) -> list[int]:
        return [*map(len, self.responses)]

    def layout(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (L,), what attends to what, to be added to attention (L, L), and where each response token's
        predecessor is (N,)."""
        prompt, count = len(self.prompt), len(self.ids)
        part_L = torch.repeat_interleave(torch.tensor([prompt, *self.lengths]))
        positions_L = torch.cat([torch.arange(prompt), *(prompt + torch.arange(n) for n in self.lengths)])
        seen_LL = torch.ones(count, count, dtype=torch.bool).tril() & ((part_L == 0) | (part_L[:, None] == part_L))
        before_N = torch.arange(prompt - 1, count - 1)
        before_N[torch.tensor([0, *np.cumsum(self.lengths)[:-1]])] = prompt - 1
        return positions_L, torch.zeros(count, count).masked_fill(~seen_LL, -torch.inf), before_N

    def through(self, layers: Any, **states: Tensor) -> Tensor:
        """The hidden states behind some layers, (L, D)."""
        positions_L, mask_LL, _ = self.layout()
        options = {"position_ids": positions_L[None], "attention_mask": mask_LL[None, None], "use_cache": False}
        found: Tensor = layers(**{name: value[None] for name, value in states.items()}, **options).last_hidden_state[0]
        return found


class Lower:
    """The layers that nobody trains, and what they make of rows; it is kept in a file."""

    def __init__(self, model: Any, file: Path) -> None:
        self._layers = _part(model, slice(0, -LAYERS))
        self._layers.norm = torch.nn.Identity()
        self._file = file
        self._known: dict[str, Tensor] = torch.load(file) if file.exists() else {}

    def read(self, rows: Sequence[Row]) -> None:
        """Compute what is not known yet."""
        unknown = [row for row in rows if any(key_of(row.prompt, each) not in self._known for each in row.responses)]
        missing = [*{_row_key(row): row for row in unknown}.values()]
        for number, row in enumerate(missing):
            with torch.no_grad():
                parts = torch.split(row.through(self._layers, input_ids=row.ids), [len(row.prompt), *row.lengths])
            for ids, states in zip(row.responses, parts[1:], strict=True):
                self._known[key_of(row.prompt, ids)] = torch.cat([parts[0], states])
            say(f"lower layers: {number + 1}/{len(missing)} rows")
        if missing:
            # At once, for others may do the same: what they know is the same.
            part = self._file.with_suffix(f".{os.getpid()}")
            torch.save(self._known, part)
            part.replace(self._file)

    def __call__(self, row: Row) -> Tensor:
        """(L, D)"""
        found = [self._known[key_of(row.prompt, ids)] for ids in row.responses]
        return torch.cat([found[0][: len(row.prompt)], *(each[len(row.prompt) :] for each in found)])


class Upper:
    """The layers that are trained, and the head, which is not."""

    def __init__(self, model: Any, lower: Lower) -> None:
        self.layers, self._head, self._lower = _part(model, slice(-LAYERS, None)), model.lm_head.weight.detach(), lower
        self.layers.embed_tokens = torch.nn.Identity()

        self._frozen: dict[str, Tensor] | None = {}
        """what this, the reference, made of rows: it is asked for the same ones again and again"""
        self._logps: dict[str, Tensor] = {}

    def copy(self) -> "Upper":
        """One to be trained."""
        made = copy.copy(self)
        made.layers, made._frozen, made._logps = copy.deepcopy(self.layers), None, {}
        return made

    @torch.no_grad()
    def towards(self, other: "Upper", share: float) -> "Upper":
        """One whose weights lie so far on the way to another's."""
        made = self.copy()
        for ours, theirs in zip(made.layers.parameters(), other.layers.parameters(), strict=True):
            ours.lerp_(theirs, share)
        return made

    def __call__(self, row: Row) -> Tensor:
        """The logarithm of every probability before every response token, (N, V)."""
        return torch.log_softmax(self._hidden(row) @ self._head.T, -1)

    @torch.no_grad()
    def logps(self, row: Row) -> Tensor:
        """The reference's log-probs of the response tokens, (N,), computed once."""
        key = _row_key(row)
        if key not in self._logps:
            self._logps[key] = target_logps(self(row), row)
        return self._logps[key]

    def _hidden(self, row: Row) -> Tensor:
        key = _row_key(row)
        if self._frozen is not None and key in self._frozen:
            return self._frozen[key]
        hidden_ND = row.through(self.layers, inputs_embeds=self._lower(row))[row.layout()[2]]
        if self._frozen is not None:
            self._frozen[key] = hidden_ND.detach()
        return hidden_ND


def target_logps(logps_NV: Tensor, row: Row) -> Tensor:
    """(N,)"""
    return logps_NV.gather(-1, row.targets[:, None])[:, 0]


def _row_key(row: Row) -> str:
    return hashlib.sha256(row.ids.numpy().tobytes()).hexdigest()


def _part(model: Any, which: slice) -> Any:
    """Some of a model's layers, as a model without a head."""
    made = copy.copy(model.model)
    made._modules = dict(model.model._modules)
    made.config = copy.deepcopy(model.config)
    made.layers = torch.nn.ModuleList(copy.deepcopy(layer) for layer in model.model.layers[which])
    made.norm = copy.deepcopy(model.model.norm)
    made.config.num_hidden_layers = len(made.layers)
    return made


def key_of(prompt: Ids, response: Ids) -> str:
    return hashlib.sha256(prompt.tobytes() + b"|" + response.tobytes() + b"|" + bytes([LAYERS])).hexdigest()


def say(text: str) -> None:
    print(text, flush=True)


class OnePair(NamedTuple):
    """What an objective sees of one pair, R = 2."""

    weights_RW: Tensor
    needed_RW: Tensor
    reference_R: Tensor
    reference_RW: Tensor
    scores_RW: Tensor
    kl_RW: Tensor | None


def _padded(values_N: Tensor, row: Row) -> Tensor:
    """(R, W)"""
    return torch.nn.utils.rnn.pad_sequence([*torch.split(values_N, row.lengths)], batch_first=True)


Loss = Callable[[int, Tensor, Upper], Tensor]
"""of a row's number, the policy's log-probs of all ids (N, V) and the reference"""


def train(start: Upper, rows: Sequence[Row], loss: Loss, rate: float, seed: int) -> Upper:
    """A copy, trained for an epoch."""
    model = start.copy()
    parameters = [*model.layers.layers.parameters(), *model.layers.norm.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    order = np.random.default_rng(seed).permutation(len(rows))
    steps = math.ceil(len(rows) / BATCH)
    for step in range(steps):
        warm = min(1.0, (step + 1) / max(1, 0.1 * steps))
        optimiser.param_groups[0]["lr"] = rate * warm * (1 + math.cos(math.pi * step / steps)) / 2
        batch, total = order[step * BATCH : (step + 1) * BATCH], 0.0
        for number in batch:
            value = loss(number, model(rows[number]), start) / len(batch)
            torch.autograd.backward(value)
            total += value.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        say(f"step {step + 1}/{steps}: loss {total:.4f}")
    return model


def pair_losses(
    rows: Sequence[Row],
    objective: Callable[..., Any],
    options: dict[str, Any],
    kl_weight: float = 0.0,
    token_kl: bool = False,
    scores: Sequence[Tensor] | None = None,
    weights: Sequence[Tensor] | None = None,
) -> Loss:
    """A loss of the library, + kl_weight * KL(reference || policy) summed over the tokens of both responses.

    Args:
        token_kl: the objective itself asks for that KL.
    """

    def loss(number: int, logps_NV: Tensor, reference: Upper) -> Tensor:
        row = rows[number]
        logps_N, reference_N = target_logps(logps_NV, row), reference.logps(row)
        weights_N = torch.ones_like(reference_N) if weights is None else weights[number]
        scores_N = torch.zeros_like(reference_N) if scores is None else scores[number]
        weights_RW, reference_RW = _padded(weights_N, row), _padded(reference_N, row)
        needed_RW = _padded(torch.ones_like(reference_N), row) > 0
        kl_N = _kl(reference, row, logps_NV) if kl_weight or token_kl else torch.zeros(0)
        batch = OnePair(
            weights_RW, needed_RW, (weights_RW * reference_RW).sum(-1), reference_RW, _padded(scores_N, row),
            _padded(kl_N, row) if token_kl else None,
        )  # fmt: skip
        found: Tensor = objective(_padded(logps_N, row), batch, **options).loss_B[0]
        return found + kl_weight * kl_N.sum()

    return loss


def _kl(reference: Upper, row: Row, logps_NV: Tensor) -> Tensor:
    """KL(reference || policy) at every response token, (N,) nats."""
    with torch.no_grad():
        reference_NV = reference(row)
    return (reference_NV.exp() * (reference_NV - logps_NV)).sum(-1)
