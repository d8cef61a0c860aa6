"""The first layers of a model as a model of its own."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from stages.errors import SepoError, borrowed
from stages.models.adapters import is_adapter
from stages.models.folders import load_config, load_model
from stages.types import CausalLM

_HINT: Final = "give a causal language model whose configuration says how many layers it has"
_NOT_OF_LAYERS: Final = ("architectures", "_token_id", "_token_ids", "_limit")
"""endings of names of lists that may have as many entries as there are layers by chance"""


def layers_of(folder: Path, *, trust_remote_code: bool) -> int:
    """How many layers a model has; its weights are not loaded."""
    if is_adapter(folder):
        raise SepoError(f"{folder} is an adapter, which has no layers of its own", hint="merge it into its base first")
    count = getattr(load_config(folder, trust_remote_code=trust_remote_code), "num_hidden_layers", None)
    if not isinstance(count, int):
        raise SepoError(f"{folder}/config.json does not say how many layers the model has", hint=_HINT)
    return count


def load_first_layers(folder: Path, layers: int, *, trust_remote_code: bool) -> CausalLM:
    """A model with its embedding, its first layers, its last norm and its head, in the precision it was saved in.

    The weights of the other layers are never read: the model's own class builds it from a shorter configuration.
    """
    model = load_model(
        folder, trust_remote_code=trust_remote_code, dtype="auto", change=partial(_shortened, layers=layers)
    )
    # A family that took the shorter configuration for something else shows it by its list of layers.
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists or len(lists[0]) != layers:
        raise SepoError(f"{folder} is of a family that cannot be cut by its number of layers", hint=_HINT)
    return model


def _shortened(config: Any, layers: int) -> Any:
    """The configuration with so many layers, and every list that has one entry a layer cut to them."""
    before = config.num_hidden_layers
    values: Mapping[str, Any] = config.to_dict()
    cut = {
        name: value[:layers]
        for name, value in values.items()
        if isinstance(value, (list, tuple)) and len(value) == before and not name.endswith(_NOT_OF_LAYERS)
    }
    own_name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    with borrowed(f"the configuration does not fit {layers} layers", _HINT):
        return type(config).from_dict({**values, **cut, own_name: layers})
