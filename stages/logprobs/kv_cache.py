"""The cache of keys and values of rows that are decoded together, from which rows leave when they end.

transformers' own cache of plain attention copies all it holds for every new token, which on long rows takes longer than
the token. Here it has room for the next ones. Layers of other kinds (a sliding window, a recurrent state) are small or
do not grow, and are transformers' own.

Shapes: ``R`` rows, ``H`` heads, ``T`` tokens, ``D`` size of a head.
"""

from typing import Any, Final

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM: Final = 64
"""tokens that a buffer has room for when it is made"""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer of plain attention: views of what is filled of buffers that are longer."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (R, H, T, D) each, and return all there is."""
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(*new)
            self._buffers = [_with_room(states[..., :0, :], states.shape[-2]) for states in new]
        held = 0 if self.keys is None or not self.keys.numel() else self.keys.shape[-2]
        width = held + key_states.shape[-2]
        if width > self._buffers[0].shape[-2]:
            self._buffers = [_with_room(buffer[..., :held, :], width - held) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, new, strict=True):
            buffer[..., held:width, :] = states
        self.keys, self.values = (buffer[..., :width, :] for buffer in self._buffers)
        return self.keys, self.values

    def keep(self, rows: Tensor, start: int) -> None:
        """Only these rows, and of each what follows its first `start` tokens."""
        if self.is_initialized:
            width = self.keys.shape[-2] - start
            rows = rows.to(self.keys.device)
            self._buffers = [_with_room(states[rows, :, start:], 0) for states in (self.keys, self.values)]
            self.keys, self.values = (buffer[..., :width, :] for buffer in self._buffers)


def _with_room(states: Tensor, more: int) -> Tensor:
    rows, heads, width, size = states.shape
    buffer = states.new_empty(rows, heads, width + more + _ROOM, size)
    buffer[..., :width, :] = states
    return buffer


def make_cache(config: Any) -> Cache:
    """An empty cache for a model of that configuration."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def forgets_beginnings(cache: Cache) -> bool:
    """Whether the first tokens of all rows can be taken out of a cache."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def keep_rows(cache: Cache, rows: Tensor, start: int) -> None:
    """Let a cache hold these rows alone, from column `start` on: 0 where it does not forget beginnings."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.keep(rows, start)
        else:
            # Beam search's way to reorder rows is the one that every kind of layer has.
            layer.reorder_cache(rows)
