"""Exponential moving averages: `cema`, its real special case `ema`, and the coefficients of `cema`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from megalodon_core.ops.operator import Call, operator
from megalodon_core.spec import Inferred, Input, Spec


def _infer(inputs: Sequence[Any], attributes: Sequence[Any]) -> list[Inferred]:
    x, _, q, _, _, _, cu_seqlens, _ = inputs
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return [(tuple(x.shape), "activation"), ((rows, *q.shape), "parameter")]


_INPUTS = (
    Input("x", activation=True),
    Input("p"),
    Input("q"),
    Input("gamma"),
    Input("omega", optional=True),
    Input("initial_state", optional=True),
    Input("cu_seqlens", optional=True, gradient=None),
    Input("padding_mask", optional=True, gradient=None),
)
CEMA = Spec("cema", _INPUTS, ("y", "state"), _infer)
EMA = Spec("ema", _INPUTS, ("y", "state"), _infer)
COEFFICIENTS = Spec(
    "cema_coefficients",
    (Input("alpha"), Input("delta"), Input("theta")),
    ("p", "q"),
    lambda inputs, attributes: [
        (tuple(inputs[0].shape), "parameter"),
        ((*inputs[0].shape, 2), "parameter"),
    ],
)


class CemaGradients(NamedTuple):
    """Gradients of `cema` or `ema` in its inputs."""

    x: Any
    p: Any
    q: Any
    gamma: Any
    omega: Any
    initial_state: Any


class CoefficientGradients(NamedTuple):
    """Gradients of `cema_coefficients` in its inputs."""

    alpha: Any
    delta: Any
    theta: Any


def _pair(outputs: tuple[Any, ...]) -> tuple[Any, Any]:
    return outputs[0], outputs[1]


@operator(CEMA, _pair, CemaGradients)
def cema(
    x: Any,
    p: Any,
    q: Any,
    gamma: Any,
    omega: Any = None,
    *,
    initial_state: Any = None,
    cu_seqlens: Any = None,
    padding_mask: Any = None,
) -> Call:
    """Complex exponential moving average (Megalodon, section 3.1).

        h_t = q * h_{t-1} + p * x_t                   per channel d and EMA dim k; h_0 = initial_state or 0
        y_t = sum_k Re(gamma_k * h_{t,k}) + omega * x_t

    Any q with |q| <= 1 is accurate, |q| = 1 and q = 0 included. Cost and memory are linear in L.

    Args:
        x: (B, L, D), float32, bfloat16, float16 or float64; any strides.
        p: (D, N), N <= 64. Parameters and states are float32, or float64 beside float64 `x`.
        q: (D, N, 2), real and imaginary part.
        gamma: (D, N, 2).
        omega: (D,), or None for no skip connection.
        initial_state: (B, D, N, 2), or (n, D, N, 2) with `cu_seqlens`; None means 0.
        cu_seqlens: int32 or int64 (n + 1,), `[0, ..., L]`: offsets of packed documents, with B = 1. Documents
            share nothing; empty ones return their initial state.
        padding_mask: bool (B, L), True where the position is padding: y is 0 there and the state unchanged.

    Returns:
        (y, state): y like `x`, and the last h, shaped like `initial_state`. Both are differentiable.

    Backward saves the inputs only; states are recomputed from checkpoints 64 tokens apart.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Call((x, p, q, gamma, omega, initial_state, cu_seqlens, padding_mask))


@operator(EMA, _pair, CemaGradients)
def ema(
    x: Any,
    p: Any,
    q: Any,
    gamma: Any,
    omega: Any = None,
    *,
    initial_state: Any = None,
    cu_seqlens: Any = None,
    padding_mask: Any = None,
) -> Call:
    """Damped exponential moving average with real coefficients (MEGA, arXiv 2209.10655, section 3.2).

        h_t = q * h_{t-1} + p * x_t          y_t = sum_k gamma_k * h_{t,k} + omega * x_t

    Args:
        q, gamma: (D, N).
        initial_state: (B, D, N), or (n, D, N) with `cu_seqlens`; None means 0.
        x, p, omega, cu_seqlens, padding_mask: as in `cema`.

    Returns:
        (y, state): y like `x`, and the last h, shaped like `initial_state`. Both are differentiable.

    Backward saves the inputs only, as in `cema`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Call((x, p, q, gamma, omega, initial_state, cu_seqlens, padding_mask))


@operator(COEFFICIENTS, _pair, CoefficientGradients)
def cema_coefficients(alpha: Any, delta: Any, theta: Any) -> Call:
    """Coefficients of `cema` from unconstrained parameters (released `ComplexExponentialMovingAverage`).

        p = sigmoid(alpha)      |q| = 1 - sigmoid(alpha) sigmoid(delta)
        arg q_k = k sigmoid(theta) 2 pi / N,  k = 1..N

    Args:
        alpha, delta: (D, N), float32 or float64, N <= 64.
        theta: (D,), same type.

    Returns:
        (p, q) of shapes (D, N) and (D, N, 2). Backward saves the inputs only.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Call((alpha, delta, theta))
