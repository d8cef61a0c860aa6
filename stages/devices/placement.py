"""Where the parts of a model are computed: accelerate may have divided them over devices, or keep them elsewhere."""

import torch
from accelerate.utils import has_offloaded_params
from torch.distributed.tensor import DTensor

from stages.compat import execution_device
from stages.types import CausalLM


def input_device(model: CausalLM) -> torch.device:
    """Where the ids belong that a model is given: on the device on which its embeddings are looked up."""
    embedding = model.get_input_embeddings()
    if has_offloaded_params(embedding):
        return torch.device(execution_device(embedding))
    weight: torch.Tensor = embedding.weight
    # Its parts may wait in the host's memory.
    return torch.device(weight.device_mesh.device_type) if isinstance(weight, DTensor) else weight.device
