"""The list of what is timed: for each operator its inputs at a given size, itself, its peer and its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megalodon_core import ops
from megalodon_core.bench import peers

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensor | Tensors]


@dataclass(frozen=True)
class Size:
    """The letters of the operators' shapes; the widths of attention are those of one head."""

    length: int
    dim: int
    ndim: int
    groups: int
    z_dim: int
    value_dim: int
    chunk_size: int
    batch: int = 1
    heads: int = 1

    @property
    def letters(self) -> str:
        return (
            f"B={self.batch} H={self.heads} L={self.length} D={self.dim} N={self.ndim} G={self.groups} "
            f"Dz={self.z_dim} Dv={self.value_dim} c={self.chunk_size}"
        )


FULL = Size(length=4096, dim=1024, ndim=16, groups=32, z_dim=256, value_dim=2048, chunk_size=2048)
"""The released mega200M at its training length."""

QUICK = Size(length=4096, dim=192, ndim=16, groups=12, z_dim=48, value_dim=384, chunk_size=256)
"""The demo's model."""

TINY = Size(length=96, dim=32, ndim=4, groups=4, z_dim=16, value_dim=48, chunk_size=32)
"""Where results are compared with float64."""


@dataclass(frozen=True)
class Floor:
    """The least that an operator must do, in one unit, forward and backward.

    `unit` is "copy" (elements that must cross memory, a write counting like a read), "gemm" (floating-point
    operations at the rate of a matrix product in the activations' type) or "gemm32" (at its float32 rate).
    Parameters and states are small beside activations and left out.
    """

    unit: str
    forward: Callable[[Size], float]
    backward: Callable[[Size], float]


@dataclass(frozen=True)
class Case:
    """One operator to time: `ours(*inputs)` and `peer(*peer_inputs(*inputs))` are the same function.

    `inputs(size)` draws float32 tensors from torch's default generator; all of them are differentiated unless
    `differentiable` is false. Which of them are activations, and so change type, the operator's `Spec` says.
    """

    operator: str
    inputs: Callable[[Size], Tensors]
    ours: Callable[[Size], Function]
    peer: Callable[[Size], Function]
    floor: Floor
    peer_inputs: Callable[..., Tensors] = lambda *inputs: inputs
    differentiable: bool = True
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.operator} ({self.note})" if self.note else self.operator

    @property
    def activations(self) -> tuple[bool, ...]:
        return tuple(declared.activation for declared in getattr(ops, self.operator).spec.inputs)

    def draw(self, size: Size, dtype: torch.dtype) -> Tensors:
        """Inputs with activations of `dtype` and float32 parameters."""
        drawn = self.inputs(size)
        flags = self.activations[: len(drawn)]
        return tuple(x.to(dtype) if flag else x for x, flag in zip(drawn, flags, strict=True))


def _sequence(size: Size, width: int) -> Tensor:
    return torch.randn(size.batch, size.length, width)


def _headed(size: Size, width: int) -> Tensor:
    return torch.randn(size.batch, size.length, size.heads, width)


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


def _pair_inputs(size: Size) -> Tensors:
    return _sequence(size, size.dim), _sequence(size, size.dim)


def _normalized_attention_inputs(size: Size) -> Tensors:
    affine = (2, size.heads, size.z_dim)
    z, v = (_headed(size, width) for width in (size.z_dim, size.value_dim))
    return z, (1 + 0.1 * torch.randn(affine)) / size.z_dim**0.5, 0.1 * torch.randn(affine), v


def _chunk_attention_inputs(size: Size) -> Tensors:
    widths = (size.z_dim, size.z_dim, size.value_dim)
    q, k, v = (_headed(size, width) for width in widths)
    return q / size.z_dim**0.5, k, v


def _first(operator: Callable[..., tuple[Tensor, object]], **settings: object) -> Callable[..., Tensor]:
    """A sequence operator without the state that it also returns."""
    return lambda *inputs: operator(*inputs, **settings)[0]


def _attention(operator: str, inputs: Callable[[Size], Tensors]) -> Case:
    ours, peer = getattr(ops, operator), getattr(peers, operator)
    return Case(
        operator,
        inputs,
        lambda size: _first(ours, chunk_size=size.chunk_size),
        lambda size: partial(peer, chunk_size=size.chunk_size),
        _ATTENTION,
    )


def _row_wise(operator: str, inputs: Callable[[Size], Tensors], floor: Floor) -> Case:
    ours, peer = getattr(ops, operator), getattr(peers, operator)
    return Case(operator, inputs, lambda size: ours, lambda size: peer, floor)


def _channels(size: Size) -> int:
    return size.batch * size.length * size.dim


def moves(forward: int, backward: int) -> Floor:
    """A floor of that many tensors (B, L, D) read or written once."""
    return Floor("copy", lambda size: forward * _channels(size), lambda size: backward * _channels(size))


def _recurrence(forward: int, backward: int) -> Floor:
    """A floor of that many floating-point operations per element and EMA dim."""
    return Floor(
        "gemm32",
        lambda size: forward * size.ndim * _channels(size),
        lambda size: backward * size.ndim * _channels(size),
    )


def causal_pairs(size: Size) -> float:
    """Pairs of a query and a key that it attends to, all rows and heads together."""
    chunks, rest = divmod(size.length, size.chunk_size)
    full, part = (n * (n + 1) / 2 for n in (size.chunk_size, rest))
    return size.batch * size.heads * (chunks * full + part)


# Forward: scores and values. Backward: scores again, dP = dy v, dv = P dy, dq = dS k, dk = dS q.
_ATTENTION = Floor(
    "gemm",
    lambda size: 2 * (size.z_dim + size.value_dim) * causal_pairs(size),
    lambda size: 2 * (3 * size.z_dim + 2 * size.value_dim) * causal_pairs(size),
)

# Multiply-adds per element and EMA dim, two operations each. Forward: q h (4), Re(gamma h) (2). Backward: h
# again (4), conj(q) lambda (4), conj(gamma) dy (2), dx (1), dp (1), dq (4), dgamma (2). Real: 1 + 1 and p x;
# h again (2), lambda (2), dx, dp, dq, dgamma.
_CEMA = _recurrence(12, 36)
_EMA = _recurrence(6, 16)

CASES = (
    Case(
        "cema",
        _cema_inputs,
        lambda size: _first(ops.cema),
        lambda size: peers.cema_from_spectrum,
        _CEMA,
        _spectrum_inputs,
        differentiable=False,
        note="ready kernel",
    ),
    Case("cema", _cema_inputs, lambda size: _first(ops.cema), lambda size: peers.cema, _CEMA),
    Case("ema", _ema_inputs, lambda size: _first(ops.ema), lambda size: peers.ema, _EMA),
    Case(
        "cema_coefficients",
        _coefficient_inputs,
        lambda size: ops.cema_coefficients,
        lambda size: peers.cema_coefficients,
        Floor("copy", lambda size: 5 * size.dim * size.ndim, lambda size: 7 * size.dim * size.ndim),
    ),
    Case(
        "timestep_norm",
        _norm_inputs,
        lambda size: lambda x, weight, bias: ops.timestep_norm(x, weight, bias, size.groups)[0],
        lambda size: partial(peers.timestep_norm, num_groups=size.groups),
        moves(2, 3),
    ),
    _attention("normalized_attention", _normalized_attention_inputs),
    _attention("chunk_attention", _chunk_attention_inputs),
    _row_wise("rms_norm", lambda size: _norm_inputs(size)[:2], moves(2, 3)),
    _row_wise("layer_norm", _norm_inputs, moves(2, 3)),
    _row_wise("add_layer_norm", _add_layer_norm_inputs, moves(3, 4)),
    _row_wise("silu_mul", _pair_inputs, moves(3, 5)),
    # Backward: dy and branch give dbranch and dalpha; dresidual is dy itself.
    _row_wise("two_hop_residual", lambda size: (*_pair_inputs(size), torch.randn(size.dim)), moves(3, 3)),
)
