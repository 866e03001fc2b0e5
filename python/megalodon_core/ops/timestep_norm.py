"""Timestep normalization: group norm with cumulative statistics over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from megalodon_core.ops.operator import Call, operator, state_parts
from megalodon_core.spec import Inferred, Input, Spec


class TimestepNormState(NamedTuple):
    """Running statistics of `timestep_norm`: count (B,) int64, mean (B, G) and var (B, G)."""

    count: Any
    mean: Any
    var: Any


class TimestepNormGradients(NamedTuple):
    """Gradients of `timestep_norm` in its inputs."""

    x: Any
    weight: Any
    bias: Any
    initial_mean: Any
    initial_var: Any


def _infer(inputs: Sequence[Any], attributes: Sequence[Any]) -> list[Inferred]:
    x, cu_seqlens = inputs[0], inputs[6]
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    statistics: Inferred = ((rows, attributes[0]), "parameter")
    tokens = (*x.shape[:2], attributes[0])
    kept: list[Inferred] = [(tokens, "float64"), (tokens, "parameter")]
    return [(tuple(x.shape), "activation"), ((rows,), "int64"), statistics, statistics, *kept]


TIMESTEP_NORM = Spec(
    "timestep_norm",
    (
        Input("x", activation=True),
        Input("weight", optional=True),
        Input("bias", optional=True),
        Input("initial_count", optional=True, gradient=None),
        Input("initial_mean", optional=True),
        Input("initial_var", optional=True),
        Input("cu_seqlens", optional=True, gradient=None),
        Input("padding_mask", optional=True, gradient=None),
    ),
    ("y", "count", "mean", "var"),
    _infer,
    attributes=(("num_groups", int), ("eps", float)),
    integer_outputs=("count",),
    kept=("token_mean", "token_scale"),
)


def _pack(outputs: tuple[Any, ...]) -> tuple[Any, TimestepNormState]:
    return outputs[0], TimestepNormState(*outputs[1:])


@operator(TIMESTEP_NORM, _pack, TimestepNormGradients)
def timestep_norm(
    x: Any,
    weight: Any,
    bias: Any,
    num_groups: int,
    *,
    eps: float = 1e-5,
    initial_state: Any = None,
    cu_seqlens: Any = None,
    padding_mask: Any = None,
) -> Call:
    """Timestep normalization (Megalodon, section 3.2; released `TimestepNorm`).

    The D / G values of a token's group have mean m_t and population variance v_t; statistics accumulate over
    tokens and include the token itself:

        n_t = n_{t-1} + 1      d = m_t - mean_{t-1}      mean_t = mean_{t-1} + d / n_t
        var_t = (n_{t-1} var_{t-1} + v_t + d^2 n_{t-1} / n_t) / n_t
        y_t = (x_t - mean_t) * rsqrt(var_t + eps) * weight + bias

    Args:
        x: (B, L, D), float32, bfloat16, float16 or float64; any strides.
        weight, bias: (D,), the effective ones (the model stores weight - 1), or both None.
        num_groups: G, a divisor of D.
        eps: finite and > 0.
        initial_state: TimestepNormState or tuple (count (B,) int64, mean (B, G), var (B, G)), with n rows
            beside `cu_seqlens`; None means count 0, mean 0, var 1. Statistics are float32, or float64 beside
            float64 `x`.
        cu_seqlens, padding_mask: as in `cema`.

    Returns:
        (y, TimestepNormState). Gradients flow through y and the statistics to x and the initial mean and var.

    Statistics accumulate in float64 within a call. Backward saves the inputs and each token's statistics, 12
    bytes per group (16 beside float64 `x`); `timestep_norm.backward`, which has the inputs alone, finds them
    again.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    state = state_parts("timestep_norm", initial_state, TimestepNormState._fields)
    return Call((x, weight, bias, *state, cu_seqlens, padding_mask), (num_groups, eps))
