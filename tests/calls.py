"""Calls: an operator with concrete arguments, built from a few sizes and a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

ACTIVATIONS = {
    "cema": ("x",),
    "ema": ("x",),
    "cema_coefficients": (),
    "timestep_norm": ("x",),
    "normalized_attention": ("z", "v"),
    "chunk_attention": ("q", "k", "v"),
    "rms_norm": ("x",),
    "layer_norm": ("x",),
    "add_layer_norm": ("branch", "residual"),
    "silu_mul": ("gate", "value"),
    "two_hop_residual": ("branch", "residual"),
}
OPERATORS = tuple(ACTIVATIONS)

STATES = {
    "cema": {"initial_state": "state"},
    "ema": {"initial_state": "state"},
    "timestep_norm": {"initial_count": "count", "initial_mean": "mean", "initial_var": "var"},
    "normalized_attention": {"initial_k": "k", "initial_v": "v", "initial_length": "length"},
    "chunk_attention": {"initial_k": "k", "initial_v": "v", "initial_length": "length"},
}
"""The parts of an initial state and the outputs that continue them, in the order of the state's tuple."""
SEQUENCE_OPERATORS = tuple(STATES)

PARAMETER_TYPE = {torch.float64: torch.float64}
"""What parameters, statistics and states are for a type of activations; float32 where nothing is said."""


@dataclass(frozen=True)
class Call:
    """`inputs` are differentiable and named like their gradients; `options` are all other arguments.

    The parts of an initial state have names of their own: `initial_mean`, `initial_length`, ...
    """

    op: str
    inputs: dict[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        if self.op == "cema_coefficients":
            return ("p", "q")
        return ("y", *STATES.get(self.op, {}).values())

    def arguments(self, convert: Callable = lambda x: x) -> dict[str, Any]:
        """The keyword arguments of the operator, each tensor passed through `convert`."""
        given = self.inputs | self.options
        given = {name: convert(x) if isinstance(x, Tensor) else x for name, x in given.items()}
        if self.op not in STATES:
            return given
        state = tuple(given.pop(name) for name in STATES[self.op])
        if any(part is not None for part in state):
            given["initial_state"] = state if len(state) > 1 else state[0]
        return given

    def with_inputs(self, **inputs: Tensor | None) -> Call:
        return replace(self, inputs=self.inputs | inputs)

    def with_options(self, **options: Any) -> Call:
        return replace(self, options=self.options | options)

    def with_state(self, outputs: dict[str, Tensor]) -> Call:
        """The same call from the state that another call ended with."""
        parts = {name: outputs[output] for name, output in STATES[self.op].items()}
        inputs = {name: x for name, x in parts.items() if name in self.inputs}
        options = {name: x for name, x in parts.items() if name in self.options}
        return self.with_inputs(**inputs).with_options(**options)

    def state(self) -> dict[str, Tensor | None]:
        """The initial state under the names of the outputs that continue it."""
        given = self.inputs | self.options
        return {output: given[name] for name, output in STATES[self.op].items()}

    def with_tokens(self, select: Callable[[Tensor], Tensor]) -> Call:
        """`select` applied to every activation and to the padding mask: all that has axes (B, L)."""
        call = self.with_inputs(**{name: select(self.inputs[name]) for name in ACTIVATIONS[self.op]})
        mask = self.options.get("padding_mask")
        return call if mask is None else call.with_options(padding_mask=select(mask))

    def with_rows(self, rows: slice | Tensor) -> Call:
        """The same call with these rows of the initial state only."""
        return self.with_state({name: None if x is None else x[rows] for name, x in self.state().items()})


@dataclass(frozen=True)
class Tokens:
    """How (B, L) tokens fall into sequences: a batch, documents of given lengths, or a padded batch."""

    batch: int = 2
    length: int = 13
    documents: tuple[int, ...] | None = None
    padded: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return (self.batch, self.length) if self.documents is None else (1, sum(self.documents))

    @property
    def rows(self) -> int:
        return self.batch if self.documents is None else len(self.documents)

    def options(self, draw: Draw) -> dict[str, Tensor | None]:
        options: dict[str, Tensor | None] = {"cu_seqlens": None, "padding_mask": None}
        if self.documents is not None:
            options["cu_seqlens"] = torch.tensor((0, *self.documents)).cumsum(0)
        if self.padded:
            options["padding_mask"] = draw.uniform(*self.shape) < 0.4
        return options


class Draw:
    """Random arrays of a call: activations of type `dtype`, parameters of the type that goes with it."""

    def __init__(self, dtype: torch.dtype, seed: int):
        self.dtype, self.parameter_dtype = dtype, PARAMETER_TYPE.get(dtype, torch.float32)
        self.generator = torch.Generator().manual_seed(seed)

    def activation(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def parameter(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.parameter_dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.parameter_dtype)

    def integer(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers in [low, high]."""
        return torch.randint(low, high + 1, shape, generator=self.generator)


BATCH = Tokens()


def cema(dtype, tokens=BATCH, *, dim=5, ndim=3, omega=True, state=True, seed=0) -> Call:
    draw = Draw(dtype, seed)
    angle, radius = 7 * draw.uniform(dim, ndim), draw.uniform(dim, ndim)
    inputs = {
        "x": draw.activation(*tokens.shape, dim),
        "p": draw.parameter(dim, ndim),
        "q": torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), -1),
        "gamma": draw.parameter(dim, ndim, 2),
        "omega": draw.parameter(dim) if omega else None,
        "initial_state": draw.parameter(tokens.rows, dim, ndim, 2) if state else None,
    }
    return Call("cema", inputs, tokens.options(draw))


def ema(dtype, tokens=BATCH, **sizes) -> Call:
    call = cema(dtype, tokens, **sizes)
    pairs = {name: call.inputs[name] for name in ("q", "gamma", "initial_state")}
    real = {name: None if x is None else x[..., 0].contiguous() for name, x in pairs.items()}
    return replace(call.with_inputs(**real), op="ema")


def cema_coefficients(dtype, *, dim=5, ndim=3, seed=0) -> Call:
    draw = Draw(dtype, seed)
    inputs = {
        "alpha": draw.parameter(dim, ndim),
        "delta": draw.parameter(dim, ndim),
        "theta": draw.parameter(dim),
    }
    return Call("cema_coefficients", inputs)


def timestep_norm(
    dtype, tokens=BATCH, *, groups=3, width=2, affine=True, state=True, eps=1e-5, seed=0
) -> Call:
    """D = groups * width."""
    draw, dim = Draw(dtype, seed), groups * width
    inputs = {
        "x": draw.activation(*tokens.shape, dim),
        "weight": draw.parameter(dim) if affine else None,
        "bias": draw.parameter(dim) if affine else None,
        "initial_mean": draw.parameter(tokens.rows, groups) if state else None,
        "initial_var": 0.5 + draw.uniform(tokens.rows, groups) if state else None,
    }
    options = {
        "num_groups": groups,
        "eps": eps,
        "initial_count": draw.integer(1, 5, tokens.rows) if state else None,
    }
    return Call("timestep_norm", inputs, options | tokens.options(draw))


def chunk_attention(
    dtype,
    tokens=BATCH,
    *,
    heads=2,
    key_dim=4,
    value_dim=6,
    chunk_size=5,
    capacity=None,
    scale=0.5,
    dropout_p=0.0,
    seed=0,
) -> Call:
    """`capacity` is that of the initial state, filled differently in each row; None is no state."""
    draw = Draw(dtype, seed)
    inputs = {
        "q": draw.activation(*tokens.shape, heads, key_dim),
        "k": draw.activation(*tokens.shape, heads, key_dim),
        "v": draw.activation(*tokens.shape, heads, value_dim),
    }
    options = {"chunk_size": chunk_size, "scale": scale} | _dropout(dropout_p)
    call = Call("chunk_attention", inputs, options)
    return _with_attention_state(call, draw, tokens, key_dim, capacity)


def normalized_attention(
    dtype,
    tokens=BATCH,
    *,
    heads=2,
    key_dim=4,
    value_dim=6,
    chunk_size=5,
    capacity=None,
    eps=1e-5,
    dropout_p=0.0,
    seed=0,
) -> Call:
    draw = Draw(dtype, seed)
    inputs = {
        "z": draw.activation(*tokens.shape, heads, key_dim),
        "gamma": draw.parameter(2, heads, key_dim),
        "beta": draw.parameter(2, heads, key_dim),
        "v": draw.activation(*tokens.shape, heads, value_dim),
    }
    options = {"chunk_size": chunk_size, "rope_base": 1e4, "eps": eps} | _dropout(dropout_p)
    call = Call("normalized_attention", inputs, options)
    return _with_attention_state(call, draw, tokens, key_dim, capacity)


def _dropout(p: float) -> dict[str, Any]:
    return {"dropout_p": p, "seed": 0x1E3779B97F4A7C15 if p else None}


def _with_attention_state(call: Call, draw: Draw, tokens: Tokens, key_dim: int, capacity: int | None) -> Call:
    call = call.with_options(**tokens.options(draw))
    if capacity is None:
        return call.with_inputs(initial_k=None, initial_v=None).with_options(initial_length=None)
    _, _, heads, value_dim = call.inputs["v"].shape
    length = draw.integer(0, capacity, tokens.rows)
    empty = (torch.arange(capacity) >= length[:, None])[:, :, None, None]
    return call.with_inputs(
        initial_k=draw.parameter(tokens.rows, capacity, heads, key_dim).masked_fill(empty, 0),
        initial_v=draw.parameter(tokens.rows, capacity, heads, value_dim).masked_fill(empty, 0),
    ).with_options(initial_length=length)


def rms_norm(dtype, *, shape=(3, 7), affine=True, eps=1e-5, seed=0) -> Call:
    draw = Draw(dtype, seed)
    inputs = {"x": draw.activation(*shape), "weight": draw.parameter(shape[-1]) if affine else None}
    return Call("rms_norm", inputs, {"eps": eps})


def layer_norm(dtype, *, shape=(3, 7), affine=True, eps=1e-5, seed=0) -> Call:
    call = rms_norm(dtype, shape=shape, affine=affine, eps=eps, seed=seed)
    bias = Draw(dtype, seed + 1).parameter(shape[-1]) if affine else None
    return replace(call.with_inputs(bias=bias), op="layer_norm")


def add_layer_norm(dtype, *, shape=(3, 7), affine=True, eps=1e-5, seed=0) -> Call:
    draw = Draw(dtype, seed)
    inputs = {
        "branch": draw.activation(*shape),
        "residual": draw.activation(*shape),
        "weight": draw.parameter(shape[-1]) if affine else None,
        "bias": draw.parameter(shape[-1]) if affine else None,
    }
    return Call("add_layer_norm", inputs, {"eps": eps})


def silu_mul(dtype, *, shape=(3, 7), seed=0) -> Call:
    draw = Draw(dtype, seed)
    return Call("silu_mul", {"gate": draw.activation(*shape), "value": draw.activation(*shape)})


def two_hop_residual(dtype, *, shape=(3, 7), affine=True, seed=0) -> Call:
    draw = Draw(dtype, seed)
    inputs = {
        "branch": draw.activation(*shape),
        "residual": draw.activation(*shape),
        "alpha": draw.parameter(shape[-1]) if affine else None,
    }
    return Call("two_hop_residual", inputs)


def example(op: str, dtype: torch.dtype, **sizes) -> Call:
    """A small call of any operator; the builder of the same name says what `sizes` there are."""
    return globals()[op](dtype, **sizes)


def cotangents(outputs: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Random cotangents for every differentiable output."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        for name, x in outputs.items()
        if x.is_floating_point()
    }
