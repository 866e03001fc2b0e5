"""Linear maps: torch's matrix products, except where torch has no fast one on a CPU."""

from __future__ import annotations

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
    """A linear map of 16-bit tensors by products in float32."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return y.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, *needs_bias = ctx.needs_input_grad
        wide = dy.float()
        rows = wide.reshape(-1, wide.shape[-1])
        with torch.autocast("cpu", enabled=False):
            dx = (wide @ weight.float()).to(x.dtype) if needs_x else None
            dweight = (rows.t() @ x.reshape(-1, x.shape[-1]).float()).to(x.dtype) if needs_weight else None
        dbias = [rows.sum(0).to(x.dtype) if needed else None for needed in needs_bias]
        return dx, dweight, *dbias
