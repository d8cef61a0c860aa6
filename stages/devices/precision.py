"""The named recipes of how exactly a model is computed. The logits are float32 in every one of them.

=============  =========  =================================  ============================
recipe         weights    matrix products                    where
=============  =========  =================================  ============================
``float32``    float32    float32                            everywhere
``tf32``       float32    TF32 (10 bits of mantissa)         CUDA since Ampere
``medium``     float32    bfloat16 inputs, float32 results   CPUs with bfloat16
``bfloat16``   bfloat16   bfloat16                           everywhere
=============  =========  =================================  ============================
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from stages.configs import PRECISIONS
from stages.errors import SepoError

_PRODUCTS: Final = {"float32": "highest", "tf32": "high", "medium": "medium", "bfloat16": "highest"}
assert set(_PRODUCTS) == set(PRECISIONS)


def weights_of(precision: str) -> torch.dtype:
    """In which type a recipe holds the weights."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def refuse_useless(precision: str, device: torch.device) -> None:
    """Stop where a device lacks a recipe's arithmetic, and it would silently be float32."""
    if precision == "tf32" and device.type != "cuda":
        raise SepoError(f"precision tf32 is for CUDA devices, not for {device.type}", hint="use --precision float32")


def price_of_float32(device: torch.device, faster: str) -> str | None:
    """What there is to say of float32 on a GPU, as it was measured on one (benchmarks/RESULTS.md); else None."""
    return f"float32 is slow on a GPU: {faster}" if device.type == "cuda" else None


@contextmanager
def products(precision: str) -> Iterator[None]:
    """While open, matrix products of float32 tensors are computed as the recipe says."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_PRODUCTS[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
