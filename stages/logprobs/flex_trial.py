"""FlexAttention for packed rows, tried before it is trusted.

Its kernels are compiled on the user's machine, for whatever sizes, types and precisions a model's layers ask for. So
the first call of each kind is preceded by a trial: random numbers in a row of several pairs, long enough for blocks
that are read in full, in part and not at all, are attended by the kernel and by the loop over answers. Where a result
or, while a model learns, a gradient is off, or anything fails, the loop goes on with calls of that kind.

Shapes: as in `stages.logprobs.attention`.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from stages.errors import one_line
from stages.logprobs.attention import Attention, How, Layout, Span, attend_in_loop
from stages.logprobs.flex import Kernel, attend_by_blocks
from stages.logprobs.head import full_precision
from stages.reporting import Reporter

_SPANS: Final = [Span(400, 200, 50), Span(3, 1, 20), Span(130, 40, 30)]
"""7 blocks of queries and 11 of keys: a compiler that is to allow for any number takes equal ones for the same"""
_WINDOW: Final = 100
_MARGIN: Final = 4.0
"""how much farther than the loop's results the kernel's may be from those in float64"""
_FLOOR: Final = {torch.float32: 2e-5, torch.bfloat16: 0.03, torch.float16: 4e-3}
"""of a result's size: what it may be off in any case"""
_INPUTS: Final = ("queries", "keys", "values")


class TriedFlex:
    """Attends to packed rows; gives None where the loop has to, having said why once for each kind of call.

    Args:
        name: the model's, for what is said.
        device_type: where it is used at all.
    """

    def __init__(self, name: str, reporter: Reporter, kernel: Kernel, device_type: str = "cuda") -> None:
        self._name, self._reporter, self._kernel, self._device_type = name, reporter, kernel, device_type
        self._serves: dict[tuple[Any, ...], bool] = {}

    def __call__(
        self, query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, layout: Layout, how: How
    ) -> Tensor | None:
        given = (query_HTD, key_HTD, value_HTD)
        tried = how if how.window is None else how._replace(window=_WINDOW)
        # An adapter may be in one of the projections alone: that is a kernel of its own.
        learns = tuple(torch.is_grad_enabled() and each.requires_grad for each in given)
        sizes = [each.shape[1::2] for each in given]
        # What decides which kernel is compiled, and how it rounds.
        kind = (*sizes, value_HTD.dtype, value_HTD.device, torch.get_float32_matmul_precision(), learns, tried)
        if value_HTD.device.type != self._device_type or not self._serves.get(kind, True):
            return None
        try:
            if kind not in self._serves:
                _refuse_wrong(self._attend, given, tried, learns=learns)
                self._serves[kind] = True
            return self._attend(*given, layout, how)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            # What compilers and drivers may raise nobody has listed.
            self._serves[kind] = False
            self._reporter.say(f"{self._name}: no FlexAttention, answers are attended one by one: {one_line(error)}")
            return None

    def _attend(self, query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, layout: Layout, how: How) -> Tensor:
        return attend_by_blocks(
            query_HTD[0],
            key_HTD[0],
            value_HTD[0],
            layout.sequences_on(value_HTD.device),
            layout.block_mask_on(value_HTD.device, how.window),
            scale=how.scale,
            softcap=how.softcap,
            kernel=self._kernel,
        )[None]


def _refuse_wrong(attend: Attention, like: Sequence[Tensor], how: How, *, learns: Sequence[bool]) -> None:
    """Raise unless `attend` gives what the loop gives, to rounding, for queries, keys and values like these."""
    dtype, device = like[-1].dtype, like[-1].device
    layout = Layout(_SPANS, device)
    given = [each.to(dtype) for each in _drawn(like, how)]
    # Apart from what is open around it: autocast, and whoever counts or recomputes what a backward pass needs.
    with full_precision(device), saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
        found, plain, exact = (
            _results(attention, [each.to(computed) for each in given], layout, how, learns=learns)
            for attention, computed in ((attend, dtype), (attend_in_loop, dtype), (attend_in_loop, torch.float64))
        )
    names = ["output", *(f"gradient of the {name}" for name, one in zip(_INPUTS, learns, strict=True) if one)]
    for name, ours, theirs, true in zip(names, found, plain, exact, strict=True):
        error, limit = _off(ours, true), max(_MARGIN * _off(theirs, true), _FLOOR[dtype])
        if not error <= limit:
            raise ValueError(f"in a trial its {name} is off by {error:.2g} of its size, and {limit:.2g} is allowed")


def _drawn(like: Sequence[Tensor], how: How) -> list[Tensor]:
    """Queries, keys and values of as many heads of the same sizes, and what a gradient comes from, (1, T, H, D).

    Scores are about 1, or half the soft cap, so that it shows.
    """
    device, tokens = like[-1].device, sum(map(sum, _SPANS))
    generator = torch.Generator(device).manual_seed(0)
    (heads, size), _, (_, value_size) = sizes = [each.shape[1::2] for each in like]
    scale = size**-0.5 if how.scale is None else how.scale
    spread = (how.softcap or 2.0) / (2 * scale * size**0.5)
    shapes = [*((1, heads, tokens, size) for heads, size in sizes), (1, tokens, heads, value_size)]
    query, *rest = (torch.randn(shape, generator=generator, device=device) for shape in shapes)
    return [query * spread, *rest]


def _results(
    attend: Attention, given: Sequence[Tensor], layout: Layout, how: How, *, learns: Sequence[bool]
) -> tuple[Tensor, ...]:
    """The output, and the gradients of those of queries, keys and values that learn."""
    *given, upstream = given
    query, key, value = [each.detach().requires_grad_(one) for each, one in zip(given, learns, strict=True)]
    output: Any = attend(query, key, value, layout, how)
    wanted = [each for each in (query, key, value) if each.requires_grad]
    return output.detach(), *(torch.autograd.grad(output, wanted, upstream) if wanted else ())


def _off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
