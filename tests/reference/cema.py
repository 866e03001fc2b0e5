"""The (complex) exponential moving average, one token at a time. A complex number is a pair (re, im)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .precision import cast
from .sequences import sequences


def cema(x, p, q, gamma, omega=None, *, initial_state=None, cu_seqlens=None, padding_mask=None):
    """h_t = q h_{t-1} + p x_t,  y_t = sum_k Re(gamma_k h_{t,k}) + omega x_t."""
    x, p, q, gamma = cast(x), cast(p), cast(q), cast(gamma)
    omega = x.new_zeros(x.shape[-1]) if omega is None else cast(omega)
    y, states = torch.zeros_like(x), []
    for row, (b, positions) in enumerate(sequences(x, cu_seqlens, padding_mask)):
        h = torch.zeros_like(q) if initial_state is None else cast(initial_state[row])
        for t in positions:
            h = times(q, h) + pair(p * x[b, t, :, None])
            y[b, t] = times(gamma, h)[..., 0].sum(-1) + omega * x[b, t]
        states.append(h)
    return y, torch.stack(states)


def ema(x, p, q, gamma, omega=None, *, initial_state=None, cu_seqlens=None, padding_mask=None):
    """cema with real q, gamma and initial_state; then h is real."""
    initial_state = None if initial_state is None else pair(initial_state)
    y, h = cema(
        x,
        p,
        pair(q),
        pair(gamma),
        omega,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
        padding_mask=padding_mask,
    )
    return y, h[..., 0]


def cema_coefficients(alpha, delta, theta) -> tuple[Tensor, Tensor]:
    """p = sigmoid(alpha), |q| = 1 - p sigmoid(delta), arg q_k = k sigmoid(theta) 2 pi / N for k = 1..N."""
    p, delta, theta = (torch.sigmoid(cast(parameter)) for parameter in (alpha, delta, theta))
    n = p.shape[-1]
    angle = torch.arange(1, n + 1).to(p) * theta[:, None] * (2 * math.pi / n)
    radius = 1 - p * delta
    return p, torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)


def pair(real: Tensor) -> Tensor:
    """A real number as a complex one."""
    return torch.stack((real, torch.zeros_like(real)), dim=-1)


def times(a: Tensor, b: Tensor) -> Tensor:
    """The product of two complex numbers."""
    (a_re, a_im), (b_re, b_im) = a.unbind(-1), b.unbind(-1)
    return torch.stack((a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re), dim=-1)
