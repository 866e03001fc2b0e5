"""The operators around the three sequence operators: norms over the last axis, gate, second hop."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import cast


def rms_norm(x, weight=None, *, eps=1e-5) -> Tensor:
    x = cast(x)
    y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * cast(weight)


def layer_norm(x, weight, bias, *, eps=1e-5) -> Tensor:
    x = cast(x)
    y = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
    return y if weight is None else y * cast(weight) + cast(bias)


def add_layer_norm(branch, residual, weight, bias, *, eps=1e-5) -> Tensor:
    return layer_norm(cast(branch) + cast(residual), weight, bias, eps=eps)


def silu_mul(gate, value) -> Tensor:
    gate = cast(gate)
    return gate * torch.sigmoid(gate) * cast(value)


def two_hop_residual(branch, residual, alpha=None) -> Tensor:
    branch = cast(branch)
    return cast(residual) + (branch if alpha is None else cast(alpha) * branch)
