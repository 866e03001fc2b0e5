"""Group normalization with cumulative statistics over time, one token at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .precision import cast
from .sequences import sequences


class TimestepNormState(NamedTuple):
    count: Tensor
    mean: Tensor
    var: Tensor


def timestep_norm(
    x, weight, bias, num_groups, *, eps=1e-5, initial_state=None, cu_seqlens=None, padding_mask=None
) -> tuple[Tensor, TimestepNormState]:
    """y_t = (x_t - mean) rsqrt(var + eps) weight + bias, where mean and var include all tokens up to t."""
    x = cast(x)
    weight = x.new_ones(x.shape[-1]) if weight is None else cast(weight)
    bias = x.new_zeros(x.shape[-1]) if bias is None else cast(bias)
    rows = sequences(x, cu_seqlens, padding_mask)
    if initial_state is None:
        shape = (len(rows), num_groups)
        initial_state = torch.zeros(len(rows), dtype=torch.int64), x.new_zeros(shape), x.new_ones(shape)
    counts, means, variances = initial_state
    y, states = torch.zeros_like(x), []
    for (b, positions), n, mean, var in zip(rows, counts.tolist(), cast(means), cast(variances), strict=True):
        for t in positions:
            block = x[b, t].view(num_groups, -1)
            m, v = block.mean(-1), block.var(-1, unbiased=False)
            n = n + 1
            delta = m - mean
            mean = mean + delta / n
            var = ((n - 1) * var + v + delta * delta * ((n - 1) / n)) / n
            y[b, t] = ((block - mean[:, None]) * torch.rsqrt(var + eps)[:, None]).flatten() * weight + bias
        states.append((n, mean, var))
    count, mean, var = zip(*states, strict=True)
    return y, TimestepNormState(torch.tensor(count), torch.stack(mean), torch.stack(var))
