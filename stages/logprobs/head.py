"""The LM head on the rows that are needed, a chunk of rows x vocabulary at a time, in float32.

On GPUs in mixed precision its products are TF32: far faster there, and eight times as exact as the bfloat16 of the
layers below. No [rows x vocabulary] tensor ever exists: the log of the sum is gathered chunk by chunk, and a chunk
stays in the cache of a CPU, where this is faster than the bare matrix product with its large result.

Shapes: ``N`` rows, ``C`` columns of a chunk, ``V`` vocabulary, ``H`` hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stages.devices.precision import products
from stages.types import CausalLM

_CPU_CHUNK: Final = (1024, 2048)
_DEVICE_CHUNK: Final = (4096, 32768)
_CPU_LOGITS: Final = 2**22
_DEVICE_LOGITS: Final = 2**26
"""logits of each model that exist at once while a KL is computed"""


class Head(NamedTuple):
    """What a causal language model does with its last hidden states: logits = softcap(scale * (W h + b))."""

    weight_VH: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, hidden_NH: Tensor, columns: slice = slice(None)) -> Tensor:
        """In float32, of some ids, (N, C)."""
        weight_CH = self.weight_VH[columns]
        if hidden_NH.is_cuda and hidden_NH.dtype == weight_CH.dtype != torch.float32:
            # The exact products of half precision, which a GPU adds up in float32.
            logits_NC = torch.mm(hidden_NH, weight_CH.T, out_dtype=torch.float32)
            if self.bias_V is not None:
                logits_NC += self.bias_V[columns].float()
        else:
            bias = None if self.bias_V is None else self.bias_V[columns].float()
            logits_NC = torch.nn.functional.linear(hidden_NH.float(), weight_CH.float(), bias)
        if self.scale != 1.0:
            logits_NC *= self.scale
        return logits_NC if self.softcap is None else torch.tanh(logits_NC / self.softcap) * self.softcap


def has_head(model: CausalLM) -> bool:
    """Whether a model's last layer is a matrix, so that `find_head` has something to say of it."""
    return isinstance(model.get_output_embeddings(), torch.nn.Linear)


def find_head(model: CausalLM) -> Head:
    """The head as its configuration describes it; `stages.logprobs.paths` tries whether that is the truth."""
    output = model.get_output_embeddings()
    scaling = getattr(model.config, "logits_scaling", None)
    scale = 1.0 / scaling if scaling else float(getattr(model.config, "logit_scale", None) or 1.0)
    # Weights that wait in the host's memory or on disk are fetched for as long as somebody has the head.
    with align_module_device(output):
        return Head(output.weight, output.bias, scale, getattr(model.config, "final_logit_softcapping", None))


def working_bytes(head: Head, rows: int, device: str, *, learns: bool) -> int:
    """The most that `head_logps` takes beside what it is given, on a device of this type, forward or backward.

    Two chunks of logits, the head's columns of a chunk in float32, and the gradients of the hidden states and, if it
    `learns`, of the head.
    """
    vocabulary, hidden = head.weight_VH.shape
    most_rows, most_columns = _CPU_CHUNK if device == "cpu" else _DEVICE_CHUNK
    columns = min(most_columns, vocabulary)
    cast = 0 if head.weight_VH.dtype == torch.float32 else columns * hidden
    gradients = rows * hidden + (vocabulary * hidden if learns else 0)
    return 4 * (2 * min(most_rows, rows) * columns + cast + gradients)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """The one way out of autocast: while open, a head's products have the precision of their weights."""
    # Of tensors without numbers there is nothing to cast.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def own_head_in_float32(model: CausalLM) -> Iterator[None]:
    """Open while a model computes logits by its own head, which then leaves autocast."""
    # N.B. A head whose forward another library has replaced is left to it.
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, torch.nn.Linear) or "forward" in vars(head):
        yield
        return
    forward = head.forward

    def exact(hidden: Tensor) -> Tensor:
        with full_precision(hidden.device):
            logits: Tensor = forward(hidden.to(head.weight.dtype))
            return logits

    vars(head)["forward"] = exact
    try:
        yield
    finally:
        del vars(head)["forward"]


def head_logps(head: Head, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    """Log-prob of the target of every row, (N,) float32 nats.

    Its gradient makes every chunk a second time instead of keeping it.
    """
    precision = "tf32" if hidden_NH.is_cuda and torch.is_autocast_enabled("cuda") else None
    # Of a model that is divided over devices the head may lie on another one than the ids.
    device = head.weight_VH.device
    with full_precision(device):
        logps_N: Tensor = _HeadLogps.apply(  # type: ignore[no-untyped-call]
            hidden_NH.to(device), head.weight_VH, head.bias_V, targets_N.to(device), head, precision
        )
    return logps_N.to(targets_N.device)


def _products(precision: str | None) -> AbstractContextManager[None]:
    """As they are set, or in a precision of their own."""
    return products(precision) if precision else nullcontext()


class LazyLogits(NamedTuple):
    """Logits of N rows: as the model gave them, or, where they are a product, the last hidden states and the head."""

    values_NX: Tensor
    head: Head | None

    def first(self, count: int) -> "LazyLogits":
        """Those of the first ids alone."""
        if self.head is None:
            return LazyLogits(self.values_NX[:, :count], None)
        bias_V = None if self.head.bias_V is None else self.head.bias_V[:count]
        return LazyLogits(self.values_NX, self.head._replace(weight_VH=self.head.weight_VH[:count], bias_V=bias_V))

    @property
    def vocabulary(self) -> int:
        return self.values_NX.shape[1] if self.head is None else len(self.head.weight_VH)

    def log_softmax(self, rows: slice) -> Tensor:
        """Of some rows, (rows, V) float32."""
        values_NX = self.values_NX[rows]
        if self.head is None:
            return values_NX.float().log_softmax(-1)
        return self.head.logits(values_NX.to(self.head.weight_VH.device)).log_softmax(-1).to(values_NX.device)


Divergence = Callable[[Tensor, Tensor], Tensor]
"""(log-probs (N, V), reference log-probs (N, V)) -> (N,) nats"""


def kl_from_reference(ours_NV: Tensor, theirs_NV: Tensor) -> Tensor:
    """KL(policy || reference): the exact sum over the vocabulary."""
    return (ours_NV.exp() * (ours_NV - theirs_NV)).sum(-1)


def kl_of_reference(ours_NV: Tensor, theirs_NV: Tensor) -> Tensor:
    """KL(reference || policy)."""
    return kl_from_reference(theirs_NV, ours_NV)


def head_kl(ours: LazyLogits, theirs: LazyLogits, divergence: Divergence) -> Tensor:
    """Divergence of every row's distribution from the reference's, (N,) float32 nats; no gradient reaches the latter.

    Some rows at a time, which the backward pass makes again: no [rows x vocabulary] tensor outlives its rows. A head
    that was padded to a round number has logits for no token: only those that both models have count.
    """
    both = min(ours.vocabulary, theirs.vocabulary)
    ours, theirs = ours.first(both), theirs.first(both)
    if ours.head is not None:
        # Cast once, so that the rows' gradients are summed in float32 whatever the model.
        ours = ours._replace(head=ours.head._replace(weight_VH=ours.head.weight_VH.float()))

    def some(start: int) -> Tensor:
        rows = slice(start, start + step)
        with full_precision(ours.values_NX.device):
            with torch.no_grad():
                theirs_NV = theirs.log_softmax(rows).to(ours.values_NX.device)
            return divergence(ours.log_softmax(rows), theirs_NV)

    budget = _CPU_LOGITS if ours.values_NX.device.type == "cpu" else _DEVICE_LOGITS
    step = max(1, budget // ours.vocabulary)
    starts = range(0, len(ours.values_NX), step)
    return torch.cat([checkpoint(some, start, use_reentrant=False, preserve_rng_state=False) for start in starts])


class _HeadLogps(torch.autograd.Function):
    """d logp / d logit of column v is [v = target] - softmax of v."""

    @staticmethod
    def forward(
        context: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: Head,
        precision: str | None,
    ) -> Tensor:
        rows, columns = _chunk(hidden_NH)
        totals_N = torch.empty(len(hidden_NH), device=hidden_NH.device)
        picked_N = torch.empty_like(totals_N)
        for start in range(0, len(hidden_NH), rows):
            some = slice(start, start + rows)
            with _products(precision):
                totals_N[some], picked_N[some] = _rows(head, hidden_NH[some], targets_N[some], columns)
        context.head, context.precision = head, precision
        context.save_for_backward(hidden_NH, weight_VH, targets_N, totals_N)
        return picked_N - totals_N

    @staticmethod
    def backward(context: Any, gradient_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, targets_N, totals_N = context.saved_tensors
        head: Head = context.head
        rows, columns = _chunk(hidden_NH)
        # In float32 whatever the model: sums over many chunks lose too much in half precision.
        to_hidden_NH = torch.zeros_like(hidden_NH, dtype=torch.float32)
        # A frozen head, as under LoRA, saves a product and a float32 copy of itself.
        _, weight_learns, bias_learns, *_ = context.needs_input_grad
        to_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if weight_learns else None
        to_bias_V = hidden_NH.new_zeros(len(weight_VH), dtype=torch.float32) if bias_learns else None
        for start in range(0, len(hidden_NH), rows):
            some = slice(start, start + rows)
            for first in range(0, len(weight_VH), columns):
                part = slice(first, first + columns)
                with _products(context.precision):
                    slope_NC = _slope(
                        head, hidden_NH[some], part, targets_N[some] - first, totals_N[some], gradient_N[some]
                    )
                    to_hidden_NH[some] += slope_NC @ weight_VH[part].float()
                    if to_weight_VH is not None:
                        to_weight_VH[part] += slope_NC.T @ hidden_NH[some].float()
                if to_bias_V is not None:
                    to_bias_V[part] += slope_NC.sum(0)
        weight = None if to_weight_VH is None else to_weight_VH.to(weight_VH.dtype)
        bias = None if to_bias_V is None else to_bias_V.to(weight_VH.dtype)
        return to_hidden_NH.to(hidden_NH.dtype), weight, bias, None, None, None


def _chunk(hidden_NH: Tensor) -> tuple[int, int]:
    return _CPU_CHUNK if hidden_NH.device.type == "cpu" else _DEVICE_CHUNK


def _rows(head: Head, hidden_NH: Tensor, targets_N: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """log of the sum of exp of all logits, and the target's logit, each (N,)."""
    highest_N1 = torch.full((len(hidden_NH), 1), float("-inf"), device=hidden_NH.device)
    total_N1 = torch.zeros_like(highest_N1)
    picked_N = torch.empty_like(highest_N1).squeeze(1)
    for start in range(0, len(head.weight_VH), columns):
        logits_NC = head.logits(hidden_NH, slice(start, start + columns))
        inside_N, places_N1 = _places(targets_N - start, logits_NC)
        picked_N = torch.where(inside_N, logits_NC.gather(1, places_N1).squeeze(1), picked_N)
        rising_N1 = torch.maximum(highest_N1, logits_NC.amax(-1, keepdim=True))
        total_N1 *= (highest_N1 - rising_N1).exp_()
        total_N1 += logits_NC.sub_(rising_N1).exp_().sum(-1, keepdim=True)
        highest_N1 = rising_N1
    return (highest_N1 + total_N1.log()).squeeze(1), picked_N


def _slope(
    head: Head, hidden_NH: Tensor, part: slice, offsets_N: Tensor, totals_N: Tensor, gradient_N: Tensor
) -> Tensor:
    """Gradient of the summed loss with respect to W h + b in the columns of a chunk, (N, C)."""
    logits_NC = head.logits(hidden_NH, part)
    slope_NC = (logits_NC - totals_N[:, None]).exp_().neg_()
    inside_N, places_N1 = _places(offsets_N, slope_NC)
    slope_NC.scatter_add_(1, places_N1, inside_N[:, None].float())
    slope_NC *= gradient_N[:, None]
    if head.softcap is not None:
        slope_NC *= 1 - (logits_NC / head.softcap) ** 2
    return slope_NC.mul_(head.scale) if head.scale != 1.0 else slope_NC


def _places(offsets_N: Tensor, chunk_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each target is in a chunk, (N,), and where, (N, 1); somewhere for those that are not."""
    width = chunk_NC.shape[1]
    return (offsets_N >= 0) & (offsets_N < width), offsets_N.clamp(0, width - 1)[:, None]
