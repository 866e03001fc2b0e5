"""The operators as one would write them in eager PyTorch: the peers that the compiled ones are timed beside.

Each takes the arguments of the operator of the same name, starts from no state and returns `y` alone;
autograd supplies the backward. They are written to be clear and reasonably fast, not to be beaten: attention
is torch's own fused one, norms are torch's own where torch has them.

Activations of 16 bits come with float32 parameters. Where torch has a 16-bit function the parameters are
rounded for it; FFT, running sums and RoPE are computed in float32, as one has to, and the result is rounded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def cema_coefficients(alpha: Tensor, delta: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """`alpha, delta (D, N)`, `theta (D,)` -> `p (D, N)`, `q (D, N, 2)`."""
    p = torch.sigmoid(alpha)
    magnitude = 1 - p * torch.sigmoid(delta)
    ndim = alpha.shape[1]
    harmonics = torch.arange(1, ndim + 1, dtype=alpha.dtype)
    angle = harmonics * torch.sigmoid(theta)[:, None] * (2 * torch.pi / ndim)
    return p, torch.view_as_real(torch.polar(magnitude, angle))


def cema_spectrum(p: Tensor, q: Tensor, gamma: Tensor, length: int) -> Tensor:
    """The spectrum `(D, length + 1)` of the kernel `sum_k Re(gamma_k p_k q_k^t)`, t = 0 ... length - 1."""
    positions = torch.arange(length, dtype=p.dtype)
    powers = torch.exp(torch.log(torch.view_as_complex(q))[..., None] * positions)
    kernel = torch.einsum("dn,dnl->dl", p * torch.view_as_complex(gamma), powers).real
    spectrum: Tensor = torch.fft.rfft(kernel, n=2 * length)
    return spectrum


def cema_from_spectrum(x: Tensor, spectrum: Tensor, omega: Tensor) -> Tensor:
    """CEMA by FFT with the kernel already transformed: `x (B, L, D)`, `spectrum (D, L + 1)`."""
    length, dtype = x.shape[1], x.dtype
    x = x.to(omega.dtype)
    transformed = torch.fft.rfft(x.transpose(1, 2), n=2 * length)
    convolved: Tensor = torch.fft.irfft(transformed * spectrum, n=2 * length)[..., :length]
    return (convolved.transpose(1, 2) + omega * x).to(dtype)


def cema(x: Tensor, p: Tensor, q: Tensor, gamma: Tensor, omega: Tensor) -> Tensor:
    """CEMA as an FFT convolution, kernel and all, as the released source computes it."""
    return cema_from_spectrum(x, cema_spectrum(p, q, gamma, x.shape[1]), omega)


def ema(x: Tensor, p: Tensor, q: Tensor, gamma: Tensor, omega: Tensor) -> Tensor:
    """The real EMA of MEGA (`0 < q`) as an FFT convolution."""
    length = x.shape[1]
    positions = torch.arange(length, dtype=p.dtype)
    powers = torch.exp(torch.log(q)[..., None] * positions)
    kernel = torch.einsum("dn,dnl->dl", p * gamma, powers)
    return cema_from_spectrum(x, torch.fft.rfft(kernel, n=2 * length), omega)


def timestep_norm(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float = 1e-5) -> Tensor:
    """Cumulative group norm by running sums of the blocks' first and second moments."""
    blocks = x.to(weight.dtype).unflatten(-1, (num_groups, -1))
    counts = torch.arange(1, x.shape[1] + 1, dtype=weight.dtype)[:, None]
    mean = blocks.mean(-1).cumsum(1) / counts
    variance = blocks.square().mean(-1).cumsum(1) / counts - mean.square()
    normed: Tensor = (blocks - mean[..., None]) * torch.rsqrt(variance + eps)[..., None]
    return (normed.flatten(-2) * weight + bias).to(x.dtype)


def chunk_attention(q: Tensor, k: Tensor, v: Tensor, *, chunk_size: int, scale: float = 1.0) -> Tensor:
    """Causal attention inside each chunk by torch's own; the length is a multiple of `chunk_size`."""
    length = q.shape[1]

    def chunks(tensor: Tensor) -> Tensor:
        rows: Tensor = tensor.unflatten(1, (-1, chunk_size))
        return rows.flatten(0, 1).transpose(1, 2)

    attended = F.scaled_dot_product_attention(chunks(q), chunks(k), chunks(v), is_causal=True, scale=scale)
    joined: Tensor = attended.transpose(1, 2).unflatten(0, (-1, length // chunk_size))
    return joined.flatten(1, 2)


def normalized_attention(
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    v: Tensor,
    *,
    chunk_size: int,
    rope_base: float = 10000.0,
    eps: float = 1e-5,
    attention: Callable[..., Tensor] = chunk_attention,
) -> Tensor:
    """RMS norm, affine maps to queries and keys, RoPE inside the chunk, then `attention`."""
    wide = z.to(gamma.dtype)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    q = _rotated(normed * gamma[0] + beta[0], chunk_size, rope_base).to(z.dtype)
    k = _rotated(normed * gamma[1] + beta[1], chunk_size, rope_base).to(z.dtype)
    return attention(q, k, v, chunk_size=chunk_size)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight.to(x.dtype), bias.to(x.dtype), eps)


def add_layer_norm(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    return layer_norm(branch + residual, weight, bias, eps)


def silu_mul(gate: Tensor, value: Tensor) -> Tensor:
    return F.silu(gate) * value


def two_hop_residual(branch: Tensor, residual: Tensor, alpha: Tensor) -> Tensor:
    return residual + alpha.to(branch.dtype) * branch


def _rotated(x: Tensor, chunk_size: int, base: float) -> Tensor:
    """RoPE on `x (B, L, H, Dz)`: pair j at chunk position t turned by `t * base^(-2j/Dz)`."""
    width = x.shape[-1]
    frequencies = base ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
    angles = (torch.arange(x.shape[1]) % chunk_size)[:, None] * frequencies
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)
