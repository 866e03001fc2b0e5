"""The list of what is timed: for each operator its inputs at a given size, itself, and its peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megalodon_core import ops
from megalodon_core.bench import peers

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Size:
    """The letters of the operators' shapes; batch and heads are 1, as in the released models below 1.3B."""

    length: int
    dim: int
    ndim: int
    groups: int
    z_dim: int
    value_dim: int
    chunk_size: int


FULL = Size(length=4096, dim=1024, ndim=16, groups=32, z_dim=256, value_dim=2048, chunk_size=2048)
"""The released mega200M at its training length."""

QUICK = Size(length=4096, dim=192, ndim=16, groups=12, z_dim=48, value_dim=384, chunk_size=256)
"""The demo's model."""

TINY = Size(length=96, dim=32, ndim=4, groups=4, z_dim=16, value_dim=48, chunk_size=32)
"""Where results are compared with float64."""


@dataclass(frozen=True)
class Comparison:
    """One row: `ours(*inputs)` and `peer(*peer_inputs(*inputs))` are the same function of the same inputs.

    `inputs(size)` draws float32 tensors from torch's default generator; all of them are differentiated unless
    `differentiable` is false.
    """

    operator: str
    peer_name: str
    inputs: Callable[[Size], Tensors]
    ours: Callable[[Size], Callable[..., Tensor | Tensors]]
    peer: Callable[[Size], Callable[..., Tensor | Tensors]]
    peer_inputs: Callable[..., Tensors] = lambda *inputs: inputs
    differentiable: bool = True


def _sequence(size: Size, width: int) -> Tensor:
    return torch.randn(1, size.length, width)


def _coefficient_inputs(size: Size) -> Tensors:
    shape = (size.dim, size.ndim)
    return torch.randn(shape) * 0.2, torch.randn(shape) * 0.2, torch.randn(size.dim) - 4


def _cema_inputs(size: Size) -> Tensors:
    p, q = ops.cema_coefficients(*_coefficient_inputs(size))
    gamma = torch.randn(size.dim, size.ndim, 2) / size.ndim**0.5
    return _sequence(size, size.dim), p, q, gamma, torch.randn(size.dim)


def _ema_inputs(size: Size) -> Tensors:
    x, p, q, gamma, omega = _cema_inputs(size)
    return x, p, torch.linalg.vector_norm(q, dim=-1), gamma[..., 0].contiguous(), omega


def _spectrum_inputs(x: Tensor, p: Tensor, q: Tensor, gamma: Tensor, omega: Tensor) -> Tensors:
    return x, peers.cema_spectrum(p, q, gamma, x.shape[1]), omega


def _norm_inputs(size: Size) -> Tensors:
    return _sequence(size, size.dim) + 0.5, 1 + 0.1 * torch.randn(size.dim), torch.randn(size.dim)


def _add_layer_norm_inputs(size: Size) -> Tensors:
    return (_sequence(size, size.dim), *_norm_inputs(size))


def _normalized_attention_inputs(size: Size) -> Tensors:
    affine = (2, 1, size.z_dim)
    z = _sequence(size, size.z_dim).unsqueeze(2)
    v = _sequence(size, size.value_dim).unsqueeze(2)
    return z, (1 + 0.1 * torch.randn(affine)) / size.z_dim**0.5, 0.1 * torch.randn(affine), v


def _chunk_attention_inputs(size: Size) -> Tensors:
    widths = (size.z_dim, size.z_dim, size.value_dim)
    q, k, v = (_sequence(size, width).unsqueeze(2) for width in widths)
    return q / size.z_dim**0.5, k, v


def _first(operator: Callable[..., tuple[Tensor, object]], **settings: object) -> Callable[..., Tensor]:
    """A sequence operator without the state that it also returns."""
    return lambda *inputs: operator(*inputs, **settings)[0]


def _elementwise(operator: str, inputs: Callable[[Size], Tensors], peer_name: str) -> Comparison:
    ours, peer = getattr(ops, operator), getattr(peers, operator)
    return Comparison(operator, peer_name, inputs, lambda size: ours, lambda size: peer)


COMPARISONS = (
    Comparison(
        "cema",
        "FFT, kernel given",
        _cema_inputs,
        lambda size: _first(ops.cema),
        lambda size: peers.cema_from_spectrum,
        _spectrum_inputs,
        differentiable=False,
    ),
    Comparison("cema", "FFT", _cema_inputs, lambda size: _first(ops.cema), lambda size: peers.cema),
    Comparison("ema", "FFT", _ema_inputs, lambda size: _first(ops.ema), lambda size: peers.ema),
    Comparison(
        "cema_coefficients",
        "eager",
        _coefficient_inputs,
        lambda size: ops.cema_coefficients,
        lambda size: peers.cema_coefficients,
    ),
    Comparison(
        "timestep_norm",
        "cumsum",
        _norm_inputs,
        lambda size: lambda x, weight, bias: ops.timestep_norm(x, weight, bias, size.groups)[0],
        lambda size: partial(peers.timestep_norm, num_groups=size.groups),
    ),
    Comparison(
        "normalized_attention",
        "SDPA",
        _normalized_attention_inputs,
        lambda size: _first(ops.normalized_attention, chunk_size=size.chunk_size),
        lambda size: partial(peers.normalized_attention, chunk_size=size.chunk_size),
    ),
    Comparison(
        "chunk_attention",
        "SDPA",
        _chunk_attention_inputs,
        lambda size: _first(ops.chunk_attention, chunk_size=size.chunk_size),
        lambda size: partial(peers.chunk_attention, chunk_size=size.chunk_size),
    ),
    _elementwise("rms_norm", lambda size: _norm_inputs(size)[:2], "F.rms_norm"),
    _elementwise("layer_norm", _norm_inputs, "F.layer_norm"),
    _elementwise("add_layer_norm", _add_layer_norm_inputs, "+, F.layer_norm"),
    _elementwise(
        "silu_mul", lambda size: (_sequence(size, size.dim), _sequence(size, size.dim)), "F.silu, *"
    ),
    _elementwise(
        "two_hop_residual",
        lambda size: (_sequence(size, size.dim), _sequence(size, size.dim), torch.randn(size.dim)),
        "+, *",
    ),
)
