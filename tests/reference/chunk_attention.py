"""Causal attention inside chunks, one query at a time, one head at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .cema import times
from .philox import dropped
from .precision import cast
from .sequences import sequences


class ChunkAttentionState(NamedTuple):
    k: Tensor
    v: Tensor
    length: Tensor


def chunk_attention(
    q,
    k,
    v,
    *,
    chunk_size,
    scale=1.0,
    dropout_p=0.0,
    seed=None,
    initial_state=None,
    donate_state=False,  # changes no value
    cu_seqlens=None,
    padding_mask=None,
) -> tuple[Tensor, ChunkAttentionState]:
    """y_t = softmax over s of (scale q_t . k_s) applied to v_s, for s <= t in t's chunk that dropout left."""
    q, k, v = cast(q), cast(k), cast(v)
    rows = sequences(q, cu_seqlens, padding_mask)
    old_k, old_v, old_length = _state_or_empty(initial_state, len(rows), k, v)
    capacity = min(chunk_size - 1, old_k.shape[1] + q.shape[1])
    y, states = torch.zeros_like(v), []
    for row, (b, positions) in enumerate(rows):
        filled = old_length[row]
        keys = torch.cat((old_k[row, :filled], k[b, positions]))  # (T, H, Dz), position 0 opens a chunk
        values = torch.cat((old_v[row, :filled], v[b, positions]))
        for t, time in enumerate(positions, start=filled):
            chunk = range(t - t % chunk_size, t + 1)
            for head in range(q.shape[2]):
                allowed = [s for s in chunk if not (dropout_p and dropped(seed, dropout_p, row, head, t, s))]
                if allowed:
                    scores = scale * (keys[allowed, head] @ q[b, time, head])
                    y[b, time, head] = torch.softmax(scores, 0) @ values[allowed, head]
        unfinished = len(keys) % chunk_size
        states.append((_pad(keys, unfinished, capacity), _pad(values, unfinished, capacity), unfinished))
    new_k, new_v, length = zip(*states, strict=True)
    return y, ChunkAttentionState(torch.stack(new_k), torch.stack(new_v), torch.tensor(length))


def normalized_attention(
    z,
    gamma,
    beta,
    v,
    *,
    chunk_size,
    rope_base=10000.0,
    eps=1e-5,
    dropout_p=0.0,
    seed=None,
    initial_state=None,
    donate_state=False,  # changes no value
    cu_seqlens=None,
    padding_mask=None,
) -> tuple[Tensor, ChunkAttentionState]:
    """chunk_attention of q, k = rope(rms_norm(z) gamma[i] + beta[i]), i = 0, 1, rotated inside the chunk."""
    z, gamma, beta = cast(z), cast(gamma), cast(beta)
    rows = sequences(z, cu_seqlens, padding_mask)
    old_length = [0] * len(rows) if initial_state is None else initial_state[2].tolist()
    q, k = torch.zeros_like(z), torch.zeros_like(z)
    for (b, positions), filled in zip(rows, old_length, strict=True):
        tokens = z[b, positions]
        normalized = tokens * torch.rsqrt((tokens * tokens).mean(-1, keepdim=True) + eps)
        place = (filled + torch.arange(len(positions))) % chunk_size
        q[b, positions] = _rope(normalized * gamma[0] + beta[0], place, rope_base)
        k[b, positions] = _rope(normalized * gamma[1] + beta[1], place, rope_base)
    return chunk_attention(
        q,
        k,
        v,
        chunk_size=chunk_size,
        dropout_p=dropout_p,
        seed=seed,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
        padding_mask=padding_mask,
    )


def _rope(x: Tensor, position: Tensor, base: float) -> Tensor:
    """Each pair (x_2j, x_2j+1) of the last axis as a complex number, turned by position * base^(-2j / Dz)."""
    dim = x.shape[-1]
    angle = position[:, None, None].to(x) * base ** (-torch.arange(0, dim, 2).to(x) / dim)
    turn = torch.stack((torch.cos(angle), torch.sin(angle)), dim=-1)
    return times(x.unflatten(-1, (-1, 2)), turn).flatten(-2)


def _state_or_empty(state, rows: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    if state is None:
        return k.new_zeros(rows, 0, *k.shape[2:]), v.new_zeros(rows, 0, *v.shape[2:]), [0] * rows
    return cast(state[0]), cast(state[1]), state[2].tolist()


def _pad(x: Tensor, unfinished: int, capacity: int) -> Tensor:
    """The last `unfinished` positions of `x (T, H, D)`, then zeros up to `capacity`."""
    return torch.cat((x[len(x) - unfinished :], x.new_zeros(capacity - unfinished, *x.shape[1:])))
