"""One model's weights moved along the line through those of the model that it was trained from."""

import math

import torch

from stages.errors import SepoError
from stages.types import CausalLM

_HINT = "give the model that this one was trained from"


def refuse_other_shapes(model: CausalLM, reference: CausalLM, names: tuple[str, str]) -> None:
    """Refuse two models, by their names, whose weights are not of the same names and shapes."""
    ours, theirs = ({name: tuple(each.shape) for name, each in one.named_parameters()} for one in (model, reference))
    different = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if different:
        sizes = " and ".join(str(shapes.get(different[0], "none")) for shapes in (ours, theirs))
        raise SepoError(
            f"{names[0]} and {names[1]} differ in the shape of {len(different):,} weights ({different[0]}: {sizes})",
            hint=_HINT,
        )


@torch.no_grad()
def move_along(model: CausalLM, reference: CausalLM, scale: float) -> float:
    """Make reference + scale * (model - reference) of a model in place, in float32, and round it to its precision.

    Weights that are not learnt, such as constants of rotary positions, stay as they are; tied ones are moved once.

    Returns:
        its distance from the reference then, the root of the summed squares of what lies between their weights.

    Raises:
        SepoError: a weight is not finite then.
    """
    squares = 0.0
    origin = dict(reference.named_parameters())
    for name, weight in model.named_parameters():
        start = origin[name].float()
        weight.copy_(start + scale * (weight.float() - start))
        if not bool(weight.isfinite().all()):
            raise SepoError(f"with scale {scale:g} the weights {name} are not finite", hint="give a smaller --scale")
        squares += float((weight.float() - start).double().square().sum())
    return math.sqrt(squares)
