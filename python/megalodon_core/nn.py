"""The layers of a Megalodon block, composed of `megalodon_core.ops`.

Parameter names, shapes and stored offsets are those of the released modules, so that a released state dict
loads by name: norm weights are stored as `w - 1`, `gamma` of the attention as `gamma * sqrt(Dz) - 1`.
Parameters may be cast (`model.bfloat16()`); each layer hands its operator a float32 copy (float64 where the
activations are).

Every layer maps activations (B, L, ...) to activations of the same type. The sequence layers also take and
return a state, and take `cu_seqlens` and `padding_mask` with the meaning the operators give them.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megalodon_core import ops
from megalodon_core.config import MegalodonConfig
from megalodon_core.linear import linear
from megalodon_core.ops import TimestepNormState
from megalodon_core.state import LayerState

LINEAR_INIT: dict[str, Callable[[Tensor], Tensor]] = {
    "he": partial(nn.init.kaiming_normal_, a=math.sqrt(5.0)),
    "bert": partial(nn.init.normal_, std=0.02),
    "xavier": nn.init.xavier_uniform_,
    "gaussian": partial(nn.init.trunc_normal_, std=1.0, a=-3.0, b=3.0),
}
"""Initializer of a linear weight for each `MegalodonConfig.init_mode` (released `utils.get_init_fn`)."""


def truncated_normal_(weight: Tensor, dim: int) -> Tensor:
    """Normal of standard deviation 1/sqrt(dim), cut at three of them: embedding and output matrix."""
    std = 1.0 / math.sqrt(dim)
    return nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)


def operator_dtype(activation: Tensor) -> torch.dtype:
    """The type operators take parameters and states in beside activations of this type."""
    return torch.float64 if activation.dtype == torch.float64 else torch.float32


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, which outside of training is no call at all: a layer has five, for every token."""
    return F.dropout(x, p) if training and p > 0.0 else x


def _effective_weight(stored: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if stored is None else stored.to(dtype) + 1.0


def _cast(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if parameter is None else parameter.to(dtype)


class OperatorLayer(nn.Module, ABC):
    """A layer whose operator takes something derived from the parameters, not the parameters themselves."""

    _kept: tuple[dict[torch.dtype, tuple[Any, ...]], ...] = ()  # of each `ConstantParameters` in force

    @abstractmethod
    def derive(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """What the operator takes in the place of the parameters, in its type for parameters."""

    def operands(self, activation: Tensor) -> tuple[Any, ...]:
        """`derive` for this activation; once inside `ConstantParameters`, unless gradients are recorded."""
        dtype = operator_dtype(activation)
        if not self._kept or torch.is_grad_enabled():
            return self.derive(dtype)
        kept = self._kept[-1]
        if dtype not in kept:
            kept[dtype] = self.derive(dtype)
        return kept[dtype]


class ConstantParameters:
    """While it is in force, what the layers of a model derive from their parameters is computed once.

    A context manager that may be entered again and then still has what was derived. Those of several streams
    may begin and end in any order and in different threads.
    """

    _changing = threading.Lock()

    def __init__(self, model: nn.Module) -> None:
        layers = (module for module in model.modules() if isinstance(module, OperatorLayer))
        self._layers: list[tuple[OperatorLayer, dict[torch.dtype, tuple[Any, ...]]]] = [
            (layer, {}) for layer in layers
        ]

    # Written to __dict__, since this is done for every token and a module's __setattr__ takes its time.
    def __enter__(self) -> None:
        with self._changing:
            for layer, kept in self._layers:
                layer.__dict__["_kept"] = (*layer._kept, kept)

    def __exit__(self, *_: object) -> None:
        with self._changing:
            for layer, kept in self._layers:
                layer.__dict__["_kept"] = tuple(other for other in layer._kept if other is not kept)


class Linear(nn.Linear):
    """`nn.Linear` with a given weight initializer, computed by `linear`; the bias starts at 0."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        init: Callable[[Tensor], Tensor],
        **factory: Any,
    ) -> None:
        self.init = init
        super().__init__(in_features, out_features, bias=bias, **factory)

    def reset_parameters(self) -> None:
        self.init(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """`nn.Embedding` with the released initialization."""

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, self.embedding_dim)


class RotaryFrequencies(nn.Module):
    """The released buffer `freqs (Dz/2,) = base^(-2j/Dz)`, kept so that state dicts match name for name.

    The attention operator derives the same angles from `rope_base`, so loading a buffer of another base is an
    error, not a silent change of meaning. The comparison leaves room for a bfloat16 copy of the buffer.
    """

    freqs: Tensor

    def __init__(self, head_dim: int, base: float, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.base = base
        self.register_buffer("freqs", torch.empty(head_dim // 2, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.freqs.copy_(self._expected())

    def _expected(self) -> Tensor:
        return torch.tensor([self.base ** (-2 * j / self.head_dim) for j in range(self.head_dim // 2)])

    def _agrees(self, loaded: Tensor) -> bool:
        return loaded.is_meta or torch.allclose(
            loaded.float().cpu(), self._expected(), rtol=2.0**-7, atol=0.0
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        loaded = state_dict.get(prefix + "freqs")
        if loaded is not None and loaded.shape == self.freqs.shape and not self._agrees(loaded):
            error_messages = args[-1]
            error_messages.append(f"{prefix}freqs: expected those of rope_base = {self.base}, got others")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, base={self.base}"


class TimestepNorm(OperatorLayer):
    """`ops.timestep_norm` with stored weight `w - 1` and bias, both (D,).

    A stream starts from the statistics in the buffers `prior_count ()`, `prior_mean (G,)`, `prior_logv (G,)`:
    that many tokens of that mean and of variance `exp(prior_logv)`. A new layer starts from count 0. No
    gradient flows into them. Source: released `modules/timestep_norm.py`.
    """

    prior_count: Tensor
    prior_mean: Tensor
    prior_logv: Tensor

    def __init__(self, dim: int, num_groups: int, eps: float, **factory: Any) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, **factory))
        self.bias = nn.Parameter(torch.empty(dim, **factory))
        count = torch.empty((), dtype=torch.int64, device=factory.get("device"))
        self.register_buffer("prior_count", count)
        self.register_buffer("prior_mean", torch.empty(num_groups, **factory))
        self.register_buffer("prior_logv", torch.empty(num_groups, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for tensor in (self.weight, self.bias, self.prior_count, self.prior_mean, self.prior_logv):
                tensor.zero_()

    def derive(self, dtype: torch.dtype) -> tuple[Any, ...]:
        return _effective_weight(self.weight, dtype), _cast(self.bias, dtype)

    def initial_state(self, rows: int, dtype: torch.dtype) -> TimestepNormState:
        """The state of `rows` streams that have read nothing yet."""
        return TimestepNormState(
            self.prior_count.expand(rows),
            self.prior_mean.to(dtype).expand(rows, -1),
            self.prior_logv.to(dtype).exp().expand(rows, -1),
        )

    def forward(
        self,
        x: Tensor,
        state: TimestepNormState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, TimestepNormState]:
        if state is None:
            rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            state = self.initial_state(rows, operator_dtype(x))
        weight, bias = self.operands(x)
        return ops.timestep_norm(
            x,
            weight,
            bias,
            self.num_groups,
            eps=self.eps,
            initial_state=state,
            cu_seqlens=cu_seqlens,
            padding_mask=padding_mask,
        )

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, num_groups={self.num_groups}, eps={self.eps}"


class ComplexEMA(OperatorLayer):
    """`ops.cema` with the released parametrization of its coefficients.

    alpha, delta (D, N, 1), theta (D, 1, 1), gamma (D, N, 2), omega (D, 1); the operator gets gamma / sqrt(N).
    Source: released `modules/complex_exponential_moving_average.py`.
    """

    def __init__(self, dim: int, ndim: int, **factory: Any) -> None:
        super().__init__()
        self.dim = dim
        self.ndim = ndim
        self.alpha = nn.Parameter(torch.empty(dim, ndim, 1, **factory))
        self.delta = nn.Parameter(torch.empty(dim, ndim, 1, **factory))
        self.theta = nn.Parameter(torch.empty(dim, 1, 1, **factory))
        self.gamma = nn.Parameter(torch.empty(dim, ndim, 2, **factory))
        self.omega = nn.Parameter(torch.empty(dim, 1, **factory))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.alpha, std=0.2)
        nn.init.normal_(self.delta, std=0.2)
        nn.init.normal_(self.gamma[..., 0])
        self.gamma[..., 1].zero_()
        nn.init.trunc_normal_(self.omega, std=0.25, a=-1.0, b=1.0)
        # sigmoid(theta) = exp(-i log(D) / D) = D^(-i/D): spread evenly in logarithm, from 1/D to almost 1.
        exponents = torch.arange(1, self.dim + 1, dtype=torch.float64) / self.dim
        frequencies = float(self.dim) ** -exponents
        self.theta.view(-1).copy_(torch.logit(frequencies[torch.randperm(self.dim)]))

    def derive(self, dtype: torch.dtype) -> tuple[Any, ...]:
        p, q = ops.cema_coefficients(
            self.alpha.to(dtype).squeeze(-1), self.delta.to(dtype).squeeze(-1), self.theta.to(dtype).flatten()
        )
        return p, q, self.gamma.to(dtype) / math.sqrt(self.ndim), self.omega.to(dtype).squeeze(-1)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return ops.cema(
            x,
            *self.operands(x),
            initial_state=state,
            cu_seqlens=cu_seqlens,
            padding_mask=padding_mask,
        )

    def extra_repr(self) -> str:
        return f"{self.dim}, ndim={self.ndim}"


class RMSNorm(OperatorLayer):
    """`ops.rms_norm` with stored weight `w - 1` (D,), or without weight."""

    def __init__(self, dim: int, eps: float, affine: bool, **factory: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim, **factory)) if affine else None

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.zeros_(self.weight)

    def derive(self, dtype: torch.dtype) -> tuple[Any, ...]:
        return (_effective_weight(self.weight, dtype),)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = ops.rms_norm(x, *self.operands(x), eps=self.eps)
        return y


class AddLayerNorm(OperatorLayer):
    """`ops.add_layer_norm`: LayerNorm(branch + residual) with stored weight `w - 1` and bias, or without."""

    def __init__(self, dim: int, eps: float, affine: bool, **factory: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim, **factory)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim, **factory)) if affine else None

    def reset_parameters(self) -> None:
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def derive(self, dtype: torch.dtype) -> tuple[Any, ...]:
        return _effective_weight(self.weight, dtype), _cast(self.bias, dtype)

    def forward(self, branch: Tensor, residual: Tensor) -> Tensor:
        y: Tensor = ops.add_layer_norm(branch, residual, *self.operands(residual), eps=self.eps)
        return y


class GatedAttention(OperatorLayer):
    """Moving-average gated attention: the first hop's branch h, without the residual.

        x̂ = timestep_norm(x)       m = rms_norm(cema(x̂))
        z = Wz m + bz               v = silu(Wv x̂ + bv)
        a = normalized_attention(z, v) * silu(Wr m + br)
        h = Wh1 m + bh1 + Wh2 a

    Source: paper section 3; released `modules/moving_average_gated_attention.py`.
    """

    def __init__(self, config: MegalodonConfig, **factory: Any) -> None:
        super().__init__()
        dim = config.model_dim
        self.num_heads = config.num_heads
        self.head_dim = config.z_dim // config.num_heads
        self.chunk_size = config.chunk_size
        self.rope_base = config.rope_theta
        self.eps = config.norm_eps
        self.dropout = config.dropout
        self.hidden_dropout = config.hidden_dropout
        self.attention_dropout = config.attention_dropout

        init = LINEAR_INIT[config.init_mode]
        self.timenorm = TimestepNorm(dim, config.norm_num_groups, config.norm_eps, **factory)
        self.cema = ComplexEMA(dim, config.cema_ndim, **factory)
        self.rmsnorm = RMSNorm(dim, config.norm_eps, config.norm_affine, **factory)
        self.wv = Linear(dim, config.value_dim, bias=True, init=init, **factory)
        self.wz = Linear(dim, config.z_dim, bias=True, init=init, **factory)
        self.wr = Linear(dim, config.value_dim, bias=True, init=init, **factory)
        self.wh1 = Linear(dim, dim, bias=True, init=init, **factory)
        self.wh2 = Linear(config.value_dim, dim, bias=False, init=init, **factory)
        self.gamma = nn.Parameter(torch.zeros(2, config.z_dim, **factory))
        self.beta = nn.Parameter(torch.zeros(2, config.z_dim, **factory))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        donate_state: bool = False,
    ) -> tuple[Tensor, LayerState]:
        norm_state, cema_state, attention_state = (None, None, None) if state is None else state
        rows: dict[str, Any] = {"cu_seqlens": cu_seqlens, "padding_mask": padding_mask}

        normed, norm_state = self.timenorm(x, norm_state, **rows)
        averaged, cema_state = self.cema(normed, cema_state, **rows)
        m = dropout(self.rmsnorm(averaged), self.hidden_dropout, self.training)

        z = self._by_head(self.wz(m))
        v = self._by_head(F.silu(self.wv(normed)))
        gamma, beta = self.operands(z)
        dropout_p = self.attention_dropout if self.training else 0.0
        attended, attention_state = ops.normalized_attention(
            z,
            gamma,
            beta,
            v,
            chunk_size=self.chunk_size,
            rope_base=self.rope_base,
            eps=self.eps,
            dropout_p=dropout_p,
            seed=_draw_seed() if dropout_p > 0.0 else None,
            initial_state=attention_state,
            donate_state=donate_state,
            **rows,
        )
        a = dropout(ops.silu_mul(self.wr(m), attended.flatten(-2)), self.hidden_dropout, self.training)
        h = dropout(self.wh1(m) + self.wh2(a), self.dropout, self.training)
        return h, LayerState(norm_state, cema_state, attention_state)

    def derive(self, dtype: torch.dtype) -> tuple[Any, ...]:
        gamma = (self.gamma.to(dtype) + 1.0) / math.sqrt(self.head_dim)
        return self._by_head(gamma), self._by_head(self.beta.to(dtype))

    def _by_head(self, tensor: Tensor) -> Tensor:
        """(..., H * width) as (..., H, width)."""
        return tensor.view(*tensor.shape[:-1], self.num_heads, -1)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, chunk_size={self.chunk_size}, rope_base={self.rope_base}"


class NormalizedFFN(OperatorLayer):
    """The second hop: x + alpha * FFN(LayerNorm(h + x)), where x is the block's input, not x + h.

    FFN(f) = W2 silu(W1 f), or W2 (silu(W1 f) * (W3 f)) with `swiglu`; alpha (D,) only with
    `rescale_nffn`. Source: released `modules/normalized_feedforward_network.py`.
    """

    def __init__(self, config: MegalodonConfig, layer_index: int, **factory: Any) -> None:
        super().__init__()
        dim, hidden = config.model_dim, config.ffn_hidden_dim
        self.dropout = config.dropout
        self.hidden_dropout = config.hidden_dropout
        self.initial_scale = 0.1 * 0.5**layer_index

        init = LINEAR_INIT[config.init_mode]
        self.alpha = nn.Parameter(torch.empty(dim, **factory)) if config.rescale_nffn else None
        self.norm = AddLayerNorm(dim, config.norm_eps, config.norm_affine, **factory)
        self.fc1 = Linear(dim, hidden, bias=False, init=init, **factory)
        self.fc2 = Linear(hidden, dim, bias=False, init=init, **factory)
        self.fc3 = Linear(dim, hidden, bias=False, init=init, **factory) if config.swiglu else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.alpha is not None:
            nn.init.constant_(self.alpha, self.initial_scale)

    def derive(self, dtype: torch.dtype) -> tuple[Any, ...]:
        return (_cast(self.alpha, dtype),)

    def forward(self, branch: Tensor, residual: Tensor) -> Tensor:
        # Under autocast a linear's output is bfloat16 while the residual stream stays float32.
        f = self.norm(branch.to(residual.dtype), residual)
        gate = self.fc1(f)
        hidden = F.silu(gate) if self.fc3 is None else ops.silu_mul(gate, self.fc3(f))
        output = self.fc2(dropout(hidden, self.hidden_dropout, self.training))
        output = dropout(output, self.dropout, self.training).to(residual.dtype)
        y: Tensor = ops.two_hop_residual(output, residual, *self.operands(residual))
        return y


class Block(nn.Module):
    """One Megalodon layer: `GatedAttention`, then `NormalizedFFN`, with the two-hop residual.

    `block(x, state)` maps x (B, L, D) to (y (B, L, D), LayerState). It compiles with
    `torch.compile(fullgraph=True)`, except in training with `attention_dropout`: its seed is a Python number
    drawn from torch's generator, and drawing it parts the graph in two.
    """

    def __init__(self, config: MegalodonConfig, layer_index: int = 0, **factory: Any) -> None:
        super().__init__()
        self.mega = GatedAttention(config, **factory)
        self.nffn = NormalizedFFN(config, layer_index, **factory)

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        donate_state: bool = False,
    ) -> tuple[Tensor, LayerState]:
        branch, state = self.mega(
            x, state, cu_seqlens=cu_seqlens, padding_mask=padding_mask, donate_state=donate_state
        )
        return self.nffn(branch, x), state


def _draw_seed() -> int:
    """A dropout seed from torch's default generator, so that `torch.manual_seed` fixes the pattern."""
    return int(torch.randint(2**63 - 1, ()))
