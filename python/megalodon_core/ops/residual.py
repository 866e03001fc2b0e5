"""Row-wise operators around the block: norms, gate and the two-hop residual. A row is the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from megalodon_core.ops.operator import Call, operator
from megalodon_core.spec import Inferred, Input, Spec


def _like_first(inputs: Sequence[Any], attributes: Sequence[Any]) -> list[Inferred]:
    return [(tuple(inputs[0].shape), "activation")]


_WEIGHT = Input("weight", optional=True)
_BIAS = Input("bias", optional=True)
_EPS = (("eps", float),)

RMS_NORM = Spec("rms_norm", (Input("x", activation=True), _WEIGHT), ("y",), _like_first, _EPS)
LAYER_NORM = Spec("layer_norm", (Input("x", activation=True), _WEIGHT, _BIAS), ("y",), _like_first, _EPS)
ADD_LAYER_NORM = Spec(
    "add_layer_norm",
    (Input("branch", activation=True), Input("residual", activation=True, gradient="branch"), _WEIGHT, _BIAS),
    ("y",),
    _like_first,
    _EPS,
)
SILU_MUL = Spec(
    "silu_mul", (Input("gate", activation=True), Input("value", activation=True)), ("y",), _like_first
)
TWO_HOP_RESIDUAL = Spec(
    "two_hop_residual",
    (
        Input("branch", activation=True),
        Input("residual", activation=True, gradient="dy"),
        Input("alpha", optional=True),
    ),
    ("y",),
    _like_first,
)


class RmsNormGradients(NamedTuple):
    """Gradients of `rms_norm` in its inputs."""

    x: Any
    weight: Any


class LayerNormGradients(NamedTuple):
    """Gradients of `layer_norm` in its inputs."""

    x: Any
    weight: Any
    bias: Any


class AddLayerNormGradients(NamedTuple):
    """Gradients of `add_layer_norm` in its inputs."""

    branch: Any
    residual: Any
    weight: Any
    bias: Any


class SiluMulGradients(NamedTuple):
    """Gradients of `silu_mul` in its inputs."""

    gate: Any
    value: Any


class TwoHopResidualGradients(NamedTuple):
    """Gradients of `two_hop_residual` in its inputs."""

    branch: Any
    residual: Any
    alpha: Any


def _only(outputs: tuple[Any, ...]) -> Any:
    return outputs[0]


@operator(RMS_NORM, _only, RmsNormGradients)
def rms_norm(x: Any, weight: Any = None, *, eps: float = 1e-5) -> Call:
    """Root mean square norm over the last axis: y = x * rsqrt(mean(x^2) + eps) * weight.

    Args:
        x: (..., D), float32, bfloat16, float16 or float64.
        weight: (D,) float32 (float64 beside float64 `x`), or None for 1. The model stores weight - 1.
        eps: finite and > 0.

    Returns:
        y like `x`. Backward saves the inputs only.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Call((x, weight), (eps,))


@operator(LAYER_NORM, _only, LayerNormGradients)
def layer_norm(x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Call:
    """Layer norm over the last axis: y = (x - mean) * rsqrt(var + eps) * weight + bias.

    Args:
        x: (..., D), float32, bfloat16, float16 or float64.
        weight, bias: (D,) float32 (float64 beside float64 `x`), or both None.
        eps: finite and > 0.

    Returns:
        y like `x`. Backward saves the inputs only.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Call((x, weight, bias), (eps,))


@operator(ADD_LAYER_NORM, _only, AddLayerNormGradients)
def add_layer_norm(branch: Any, residual: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Call:
    """`layer_norm(branch + residual)` in one pass (Megalodon, section 3.4: the norm before the FFN).

    The sum is neither rounded to the activations' type nor an output.

    Args:
        branch, residual: (..., D), one shape and type: float32, bfloat16, float16 or float64.
        weight, bias: (D,) float32 (float64 beside float64 activations), or both None.
        eps: finite and > 0.

    Returns:
        y like `branch`. Backward saves the inputs only; both activations have the same gradient.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Call((branch, residual, weight, bias), (eps,))


@operator(SILU_MUL, _only, SiluMulGradients)
def silu_mul(gate: Any, value: Any) -> Call:
    """Gated activation: y = silu(gate) * value, with silu(a) = a * sigmoid(a).

    Args:
        gate, value: one shape (..., D) and type: float32, bfloat16, float16 or float64.

    Returns:
        y like `gate`. Backward saves the inputs only.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Call((gate, value))


@operator(TWO_HOP_RESIDUAL, _only, TwoHopResidualGradients)
def two_hop_residual(branch: Any, residual: Any, alpha: Any = None) -> Call:
    """The second hop of a block (Megalodon, section 3.4): y = residual + alpha * branch.

    `residual` is the input of the block, not the output of its attention half.

    Args:
        branch, residual: (..., D), one shape and type: float32, bfloat16, float16 or float64.
        alpha: (D,) float32 (float64 beside float64 activations), or None for 1.

    Returns:
        y like `branch`. Backward saves the inputs only.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Call((branch, residual, alpha))
