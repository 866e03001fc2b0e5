"""Linear maps: torch's matrix products, except where torch has no fast one on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megalodon_core.frontends.torch import few_row_linear


def _slow_types() -> frozenset[torch.dtype]:
    """The 16-bit types of which oneDNN has no matrix products on this CPU.

    What torch falls back to reaches 17 to 0.6 percent of the float32 product's rate (AVX2, Zen 3). A torch
    without oneDNN does not tell, and is left alone.
    """
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    onednn = torch.ops.mkldnn
    supported = {
        torch.bfloat16: onednn._is_mkldnn_bf16_supported,
        torch.float16: onednn._is_mkldnn_fp16_supported,
    }
    return frozenset(dtype for dtype, is_supported in supported.items() if not is_supported())


SLOW_TYPES = _slow_types()
_ROWS = 512


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x weight^T + bias, `torch.nn.functional.linear` with its types and its meaning under autocast.

    The core maps up to four rows on a CPU where no gradient is wanted. On a CPU without products of 16-bit
    types such tensors are multiplied in float32 and the result is rounded once; backward keeps the inputs.
    """
    y = few_row_linear(x, weight, bias)
    if y is not None:
        return y
    if x.is_cpu:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        tensors = [x, weight] if bias is None else [x, weight, bias]
        if dtype in SLOW_TYPES and (autocast or all(tensor.dtype == dtype for tensor in tensors)):
            widened: Tensor = _InFloat32.apply(*(tensor.to(dtype) for tensor in tensors))  # type: ignore[no-untyped-call]
            return widened
    return F.linear(x, weight, bias)


class _InFloat32(torch.autograd.Function):
    """A linear map of 16-bit tensors by products in float32, some rows at a time: wide copies stay small."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        wide_weight, wide_bias = weight.float(), None if bias is None else bias.float()
        return _by_rows(lambda rows: F.linear(rows.float(), wide_weight, wide_bias), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, *needs_bias = ctx.needs_input_grad
        dx = dweight = None
        if needs_x:
            wide_weight = weight.float()
            dx = _by_rows(lambda rows: rows.float() @ wide_weight, dy)
        if needs_weight:
            zero = weight.new_zeros((), dtype=torch.float32)
            pairs = zip(_split(dy), _split(x), strict=True)
            with torch.autocast("cpu", enabled=False):
                total = sum((rows.t().float() @ inputs.float() for rows, inputs in pairs), start=zero)
            dweight = total.to(weight.dtype)
        rows = dy.reshape(-1, dy.shape[-1])
        dbias = [rows.sum(0, dtype=torch.float32).to(dy.dtype) if needed else None for needed in needs_bias]
        return dx, dweight, *dbias


def _split(x: Tensor) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = torch.split(x.reshape(-1, x.shape[-1]), _ROWS)
    return pieces


def _by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function of the rows of x, each piece of the result rounded to the type of x."""
    with torch.autocast("cpu", enabled=False):
        pieces = [function(rows).to(x.dtype) for rows in _split(x)]
    return torch.cat(pieces).reshape(*x.shape[:-1], pieces[0].shape[-1])
